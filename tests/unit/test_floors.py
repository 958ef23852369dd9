"""The floors of ARCHITECTURE.md, enforced on every import statement of the package.

A module imports only from strictly lower floors; inside one package imports are free. Two packages
of floor 2 do not know each other. Floors 0 and 1 are pure: values in, values out, so they import
only what stands in `PURE`. A floor can be a stair: what stands on a higher step may use what stands
on a lower one (`head` asks `authority`), never the other way. A module without a place here fails.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "l7proxy"

# From the ground up. A floor's sets are its steps; where there is one set, none knows another.
FLOORS: tuple[tuple[frozenset[str], ...], ...] = (
    (frozenset({"errors"}), frozenset({"model"})),
    (
        frozenset(
            {"access", "answer", "authority", "budget", "cookies", "filters", "gate", "health"}
        )
        | frozenset(
            {"ledger", "logformat", "maglev", "patterns", "proxyproto", "ratelimit", "responses"}
        ),
        frozenset({"balance"}),
        frozenset({"clienthello", "forwarded", "routing", "session", "target"}),
        frozenset({"chunked", "head", "response"}),
    ),
    (frozenset({"config", "datapath", "net", "telemetry"}),),
    (
        frozenset({"worker", "prober", "admin", "doctor"}),
        frozenset({"supervisor"}),
    ),
    (
        frozenset({"demo", "top", "sidecar"}),
        frozenset({"commands"}),
        frozenset({"cli"}),
        frozenset({"__main__"}),
    ),
)
# Unit -> (floor, step): compared as they stand, an import has to go to a lesser one.
PLACE = {
    unit: (floor, step)
    for floor, steps in enumerate(FLOORS)
    for step, units in enumerate(steps)
    for unit in units
}

# The package itself (`import l7proxy`, `from l7proxy import __version__`) lies below all floors.
GROUND = (-1, 0)

# What a decision may know. No socket, no clock, no file, no process, no chance, no log.
PURE = frozenset(
    {
        "__future__",
        "abc",
        "array",
        "base64",
        "bisect",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "enum",
        "functools",
        "h11",
        "hashlib",
        "heapq",
        "http",
        "ipaddress",
        "itertools",
        "math",
        "operator",
        "re",
        "re2",
        "string",
        "struct",
        "types",
        "typing",
        "urllib.parse",
    }
)


def place(module: str) -> tuple[str, tuple[int, int]]:
    """The unit that a dotted module belongs to, and its place. `KeyError` if it has none."""
    unit = module.split(".")[1] if "." in module else ""
    return unit, PLACE[unit] if unit else GROUND


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported, wherever the statement stands."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                # `from l7proxy import routing` names a module; `__version__` is none.
                is_module = base == PACKAGE and alias.name in PLACE
                yield node.lineno, f"{base}.{alias.name}" if is_module else base


def is_pure(name: str) -> bool:
    """Whether a module outside the package may be known on floors 0 and 1."""
    parts = name.split(".")
    return any(".".join(parts[:n]) in PURE for n in range(1, len(parts) + 1))


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Every import of `module` that breaks a rule, as one sentence each."""
    try:
        unit, here = place(module)
    except KeyError:
        return [f"{module} stands on no floor"]
    found = []
    for line, name in imports(source, module, is_package):
        where = f"{module}:{line} (floor {here[0]}) imports {name}"
        if name.split(".")[0] != PACKAGE:
            if 0 <= here[0] <= 1 and not is_pure(name):
                found.append(f"{where}, which is not pure")
            continue
        try:
            other, there = place(name)
        except KeyError:
            found.append(f"{where}, which stands on no floor")
            continue
        if other != unit and there >= here:
            found.append(f"{where} (floor {there[0]}): not lower")
    return found


def modules() -> list[tuple[str, Path]]:
    """Every module of the package by its dotted name."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


@pytest.mark.parametrize(
    ("module", "path"), modules(), ids=lambda value: str(value).rpartition("/")[2]
)
def test_every_import_goes_down(module: str, path: Path) -> None:
    assert violations(path.read_text(), module, is_package=path.name == "__init__.py") == []


def test_no_unit_has_two_places() -> None:
    assert len(PLACE) == sum(len(units) for steps in FLOORS for units in steps)


def test_only_declared_dependencies_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {line.split(">")[0].split("=")[0].lower() for line in project["dependencies"]}
    names = {"yaml": "pyyaml", "re2": "google-re2"}
    foreign = {
        names.get(top, top)
        for module, path in modules()
        for _, name in imports(path.read_text(), module, path.name == "__init__.py")
        if (top := name.split(".")[0]) != PACKAGE and top not in sys.stdlib_module_names
    }
    assert foreign <= declared


# One broken source for each rule: the check itself has to be able to fail.
BROKEN = [
    ("a decision reads the clock", "l7proxy.session", "import time"),
    ("a decision opens files", "l7proxy.routing", "from os import path"),
    ("a decision talks asyncio", "l7proxy.head", "import asyncio.events"),
    ("a decision throws dice", "l7proxy.balance", "import random"),
    ("an import hides in a function", "l7proxy.ledger", "def f():\n    import socket\n"),
    (
        "an import hides behind a type check",
        "l7proxy.model",
        "if X:\n    from l7proxy import head\n",
    ),
    ("up the stair", "l7proxy.authority", "from l7proxy.head import Head"),
    ("same step", "l7proxy.session", "from l7proxy.head import Head"),
    ("upwards", "l7proxy.routing", "from l7proxy.config import load"),
    ("upwards, by the package", "l7proxy.routing", "from l7proxy import config"),
    ("upwards, relative", "l7proxy.routing", "from .config import load"),
    ("edges know each other", "l7proxy.datapath.relay", "from l7proxy.net.dial import dial"),
    ("edges know each other, relative", "l7proxy.datapath.relay", "from ..net import dial"),
    ("drivers know each other", "l7proxy.prober", "import l7proxy.worker"),
    ("a module without a floor", "l7proxy.misc", ""),
    ("an import of a module without a floor", "l7proxy.cli", "import l7proxy.misc"),
]


@pytest.mark.parametrize(
    ("module", "source"), [case[1:] for case in BROKEN], ids=[c[0] for c in BROKEN]
)
def test_a_broken_rule_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


ALLOWED = [
    ("down", "l7proxy.session", "from l7proxy.model import Side"),
    (
        "inside one package",
        "l7proxy.datapath.sockmap",
        "from l7proxy.datapath.libbpf import Object",
    ),
    ("inside one package, relative", "l7proxy.datapath.sockmap", "from . import libbpf"),
    ("an edge does input and output", "l7proxy.net.dial", "import socket"),
    ("a submodule of a pure one", "l7proxy.head", "from collections.abc import Iterator"),
    ("the version", "l7proxy.head", "from l7proxy import __version__"),
]


@pytest.mark.parametrize(
    ("module", "source"), [c[1:] for c in ALLOWED], ids=[c[0] for c in ALLOWED]
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(source, module) == []
