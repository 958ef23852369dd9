"""Every message of `check`, by its exact text and position: see policy_cases/__init__.py."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import policy_cases
import pytest
import yaml

from l7proxy import config
from l7proxy.config import check_text, nodes
from l7proxy.config.bad import Bad
from l7proxy.config.walker import Walker

FILES = (
    *("listeners", "interception", "routes", "requests", "backends", "accesslog"),
    *("warnings", "yaml", "environment"),
)
CASES = [
    pytest.param(case, id=f"{name}: {case.about}")
    for name in FILES
    for case in policy_cases.read(name)
]


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def _each_yaml_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """libyaml words its errors in one way and PyYAML's own parser in another; we in one."""
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML without libyaml")
    monkeypatch.setattr(nodes, "_LOADER", getattr(yaml, request.param))


@pytest.mark.usefixtures("_each_yaml_parser")
@pytest.mark.parametrize("case", CASES)
def test_said(case: policy_cases.Case) -> None:
    report = check_text(case.policy, "policy.yaml", case.environment)
    assert sorted(policy_cases.said(report, notes=case.notes)) == sorted(case.expected)
    assert (report.policy is None) == bool(report.errors)


def test_cases_are_read_to_the_letter() -> None:
    """The format above, on a case with everything in it."""
    lines = (
        "about",
        "| routes: [x,",
        "!          ^ error: no: such",
        "! = hint",
        "!           ^ note: here",
        "| y]",
    )
    block = "\n".join(lines)
    case = policy_cases._case(block)
    assert case.policy.startswith("routes: [x,\ny]\nlisteners: ")
    assert case.expected == (
        (1, 10, 1, "error", "no: such", "hint"),
        (1, 11, 1, "note", "here", ""),
    )


MESSAGE_ARGUMENT = {"error": 1, "warn": 1, "note": 0, "Note": 0, "Bad": 0, "Problem": 1}
TELLERS = {"_tell": 0, "_tell_opening": 0, "_tell_both": 0, "_problem": 2, "_unreadable": 1}
ELSEWHERE = {  # said about files, or about what is too large to write down: test_config.py
    "cannot read this file: ",
    "cannot read this folder: ",
    "there is no policy in this folder",
    "policy files in this folder",
    " policy files in this folder",
    "variables make more than ",  # and about the environment: test_environment.py
    "` holds what cannot stand in a policy (U+",
    "a policy has at most ",
    "this file is UTF-16",
    "the byte 0x",
    "not valid YAML: ",
    "aliases blow this policy up to more than ",
    "a byte order mark",  # first half of a message put together from two
    " cannot stand here",
}


def _messages(path: Path) -> list[str]:
    """The constant parts of all messages in a module, the longest of each."""
    found = []
    for call in ast.walk(ast.parse(path.read_text())):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        at = {**MESSAGE_ARGUMENT, **TELLERS}.get(name)
        if at is None or len(call.args) <= at:
            continue
        parts = [
            node.value
            for node in ast.walk(call.args[at])
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        found += [max(parts, key=len)] if parts else []
    return found


@pytest.mark.parametrize("path", sorted(Path(config.__file__).parent.rglob("*.py")), ids=str)
def test_no_message_is_left_out(path: Path) -> None:
    said = "\n".join(message for case in CASES for message in _texts(case.values[0]))
    missing = [part for part in _messages(path) if part not in said]
    assert [part for part in missing if part not in ELSEWHERE] == []


def _texts(case: object) -> list[str]:
    assert isinstance(case, policy_cases.Case)
    return [text for said in case.expected for text in said[4:]]


def test_the_search_for_messages_finds_them() -> None:
    """Guards the test above: a teller that is renamed would make it pass for nothing."""
    folder = Path(config.__file__).parent
    counts: Counter[str] = Counter()
    for path in folder.rglob("*.py"):
        within = path.relative_to(folder)
        counts[within.parts[0] if len(within.parts) > 1 else path.stem] += len(_messages(path))
    assert counts["values"] + counts["addresses"] >= 25
    assert counts["schema"] + counts["walker"] >= 15
    assert counts["syntax"] >= 10
    assert counts["references"] >= 5
    assert counts["lint"] >= 12


# The search above knows the words of a message. This one knows where it is said: two places that
# say the same are two messages, and each needs a case.

SAID_BY = ("error", "warn", "note", "Bad")
SITES_ELSEWHERE = {  # test_environment.py, test_config.py
    ("environment", "variables make more than "),
    ("environment", "it has to be text in UTF-8 without control characters"),
    ("walker", "write the parts out, or use fewer aliases inside of aliases"),
}


def _sites(path: Path) -> dict[tuple[int, int], str]:
    """First and last line of each call that says something, with the longest words in it."""
    found = {}
    for call in ast.walk(ast.parse(path.read_text())):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name in SAID_BY:
            words = [
                part.value
                for part in ast.walk(call)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            found[call.lineno, call.end_lineno or call.lineno] = max(words, key=len, default="")
    return found


def test_every_place_that_says_something_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: set[tuple[str, int]] = set()

    def watched(original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            caller = sys._getframe(1)
            reached.add((caller.f_code.co_filename, caller.f_lineno))
            return original(*args, **kwargs)

        return call

    for name in ("error", "warn", "note"):
        monkeypatch.setattr(Walker, name, watched(getattr(Walker, name)))
    monkeypatch.setattr(Bad, "__init__", watched(Bad.__init__))
    for case in (param.values[0] for param in CASES):
        assert isinstance(case, policy_cases.Case)
        check_text(case.policy, "policy.yaml", case.environment)
    missing = [
        f"{path.stem}:{first}: {words}"
        for path in sorted(Path(config.__file__).parent.rglob("*.py"))
        for (first, last), words in _sites(path).items()
        if (path.stem, words) not in SITES_ELSEWHERE
        and not any((str(path), line) in reached for line in range(first, last + 1))
    ]
    assert missing == []
    assert len(reached) > 150
