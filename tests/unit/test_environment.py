"""`${NAME}`: which were used, what they become, and what the environment may not hold."""

from __future__ import annotations

import pytest
from policy_cases import SOUND

from l7proxy.config import Report, check_text, environment
from l7proxy.model import Address

TEXT = """\
listeners:
  web:
    address: ${HOST:-127.0.0.1}:${PORT}
    limits:
      headers: ${HEADERS}
routes: [{name: all, backendRefs: [{name: app}]}]
backends: {app: {endpoints: ["${BACKEND:-127.0.0.1:9000}"]}}
"""


def check(**values: str) -> Report:
    return check_text(TEXT, "p.yaml", values)


def test_values_come_from_the_mapping_and_defaults() -> None:
    policy = check(PORT="80", HEADERS="7").policy
    assert policy is not None
    assert policy.listeners["web"].address == Address("127.0.0.1", 80)
    assert policy.listeners["web"].limits.headers == 7
    assert policy.backends["app"].endpoints[0].address == Address("127.0.0.1", 9000)


def test_which_variables_were_used_and_where() -> None:
    report = check(PORT="80", HEADERS="7", HOST="", OTHER="x")
    assert [(one.name, str(one.place.location), one.default) for one in report.variables] == [
        ("HOST", "p.yaml:3:14", True),
        ("PORT", "p.yaml:3:33", False),
        ("HEADERS", "p.yaml:5:16", False),
        ("BACKEND", "p.yaml:7:31", True),
    ]
    assert [one.place.width for one in report.variables] == [18, 7, 10, 26]


def test_the_environment_of_the_process_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "80")
    monkeypatch.setenv("HEADERS", "7")
    assert [error.message for error in check_text(TEXT).errors] == [
        "the variable `PORT` is not set",
        "the variable `HEADERS` is not set",
    ]


@pytest.mark.parametrize(
    "value",
    [
        "127.0.0.1:1, protocol: TCP",
        "127.0.0.1:1}, x: {address: 127.0.0.1:2",
        '127.0.0.1:1"',
        "127.0.0.1:1\n  x: {address: 127.0.0.1:2}",
        "{address: 127.0.0.1:2}",
        "[a]",
        "*a",
        "&a 127.0.0.1:1",
        "!!str 127.0.0.1:1",
        "# 127.0.0.1:1",
        "${PORT}",
    ],
)
def test_a_value_cannot_change_the_structure(value: str) -> None:
    rest = f"{SOUND['routes']}\n{SOUND['backends']}\n"
    text = "listeners:\n  web:\n    address: ${A}\n" + rest
    report = check_text(text, environment={"A": value})
    assert len(report.errors) == 1
    assert report.errors[0].place.location.line == 3
    assert "address" in report.errors[0].message or "port" in report.errors[0].message


@pytest.mark.parametrize(
    ("value", "code"), [("a\0", "0000"), ("\x1b[2J", "001B"), ("\udcff", "DCFF")]
)
def test_what_cannot_stand_in_a_policy(value: str, code: str) -> None:
    (error,) = check(PORT=value, HEADERS="7").errors
    assert error.message == f"the value of `PORT` holds what cannot stand in a policy (U+{code})"
    assert error.hint == "it has to be text in UTF-8 without control characters"
    assert (error.place.location.column, error.place.width) == (33, 7)


def test_the_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "MAX_CHARACTERS", 1_000)
    report = check(PORT="8" * 1_001, HEADERS="7")
    assert report.policy is None
    assert "variables make more than 1,000 characters" in [one.message for one in report.errors]


def test_a_literal_and_a_dollar() -> None:
    text = TEXT.replace("routes: [{", 'routes: [{matches: [{path: "/$${A}$/$B"}], ')
    report = check_text(text, environment={"PORT": "80", "HEADERS": "7"})
    assert [error.message for error in report.errors] == [
        "`{` cannot stand in a path as it is",
    ]
    assert "/${A}$/$B" not in report.render()
