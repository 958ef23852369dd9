"""What is shipped: a wheel holds every module, the BPF object and both licences, and no tests."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OBJECT = "l7proxy/datapath/l7proxy.bpf.o"
EM_BPF = 247  # include/uapi/linux/elf-em.h


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_directory_with_modules_is_a_listed_package(pyproject: dict[str, Any]) -> None:
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "l7proxy").rglob("*.py")
    }
    assert set(pyproject["tool"]["setuptools"]["packages"]) == on_disk
    missing = [
        name for name in on_disk if not (ROOT / name.replace(".", "/") / "__init__.py").exists()
    ]
    assert missing == []


def test_the_object_is_a_bpf_program_with_btf() -> None:
    data = (ROOT / OBJECT).read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"  # 64 bit, little endian
    assert struct.unpack_from("<H", data, 18)[0] == EM_BPF
    assert b".BTF.ext\0" in data, "no BTF.ext: CO-RE cannot relocate"
    assert b".debug_info\0" not in data, "DWARF is not shipped: it makes the object depend on paths"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built offline, from a copy: building writes into its source tree."""
    have = int(importlib.metadata.version("setuptools").partition(".")[0])
    if have < 77 and not os.environ.get("CI"):
        pytest.skip(
            f"setuptools {have} here cannot build the wheel; `make test` installs one that can"
        )
    tree = tmp_path_factory.mktemp("tree")
    for name in ("l7proxy", "bpf"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tree / "dist")], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (found,) = (tree / "dist").glob("*.whl")
    return found


def test_the_wheel_holds_everything_that_runs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "l7proxy").rglob("*.py")}
    page = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "l7proxy/admin/page").iterdir()
        if path.is_file()
    }
    assert "l7proxy/admin/page/index.html" in page
    wanted = sources | page | {OBJECT, "l7proxy/py.typed", "l7proxy/admin/openapi.json"}
    assert wanted <= names
    extra = {name for name in names if not re.match(r"l7proxy-[^/]*\.dist-info/", name)}
    assert extra == wanted
    assert {"LICENSE", "LICENSE.GPL-2.0"} <= {name.rpartition("/")[2] for name in names}


def test_the_wheel_holds_the_object_that_was_tested(wheel: Path) -> None:
    assert zipfile.ZipFile(wheel).read(OBJECT) == (ROOT / OBJECT).read_bytes()


def test_the_command_exists(pyproject: dict[str, Any]) -> None:
    point = importlib.metadata.EntryPoint(
        "l7proxy", pyproject["project"]["scripts"]["l7proxy"], "console_scripts"
    )
    assert callable(point.load())


# --- the lock files ---------------------------------------------------------------------------

LOCKS = ["requirements.lock", "tests/requirements.lock"]


def pins(path: str) -> dict[str, str]:
    """Name and version of what a lock file pins."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / path).read_text(), re.M))


def normal(requirement: str) -> str:
    """The normalised project name of a requirement (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~;\[ ]", requirement)[0]).lower()


@pytest.mark.parametrize("path", LOCKS)
def test_every_pin_has_hashes_and_no_place(path: str) -> None:
    text = (ROOT / path).read_text()
    entries = re.split(r"^(?=[a-z0-9-]+==)", text, flags=re.M)[1:]
    assert entries
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    # Where packages come from is the machine's business.
    assert re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host| @ ", text) is None


def test_the_locks_hold_what_is_declared_and_agree(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    run, test = pins(LOCKS[0]), pins(LOCKS[1])
    needed = {normal(name) for name in project["dependencies"]}
    assert needed <= run.keys()
    assert {normal(name) for name in project["optional-dependencies"]["dev"]} <= test.keys()
    assert run.items() <= test.items()
