"""The JSON Schema: fresh, sound, admits what `check` admits, and refuses what an editor should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import policy_cases
import pytest
import yaml
from jsonschema import Draft202012Validator

from l7proxy.config import check_text, jsonschema
from l7proxy.config.jsonschema import default_value, schema
from l7proxy.config.readers import Reader

POLICIES = Path(__file__).resolve().parents[2] / "policies"
SAMPLES = sorted(POLICIES.glob("*.yaml"))
VALIDATOR = Draft202012Validator(schema())


def errors(text: str) -> list[str]:
    """Where the schema finds something wrong."""
    found = VALIDATOR.iter_errors(yaml.safe_load(text))
    return sorted(".".join(map(str, error.absolute_path)) for error in found)


def test_the_committed_schema_is_fresh() -> None:
    committed = (POLICIES / "schema.json").read_text()
    assert committed == jsonschema.text(), "run: l7proxy schema > policies/schema.json"


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema())
    assert json.loads(jsonschema.text()) == schema()


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_samples(sample: Path) -> None:
    text = sample.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    assert errors(text) == []


def sound_cases() -> list[Any]:
    """Every case that has no error, of all files of cases."""
    return [
        pytest.param(case, id=f"{path.stem}: {case.about}")
        for path in sorted(policy_cases.HERE.glob("*.txt"))
        for case in policy_cases.read(path.stem)
        if not any(severity == "error" for _, _, _, severity, _, _ in case.expected)
    ]


@pytest.mark.parametrize("case", sound_cases())
def test_what_check_admits(case: policy_cases.Case) -> None:
    assert check_text(case.policy, environment=case.environment).policy is not None
    assert errors(case.policy) == []


def test_there_are_cases() -> None:
    assert len(sound_cases()) > 20


LISTENER = "listeners: {web: {address: 127.0.0.1:80, %s}}"
ROUTE = "routes: [{name: a, %s}]"
BROKEN = [
    ("listener: {}", ""),
    ("routes: {}", "routes"),
    ("routes: []", "routes"),
    ("[]", ""),
    ("{}", ""),
    ("listeners: {web: {}}", "listeners.web"),
    ("listeners: {web: {address: 80}}", "listeners.web.address"),
    ("listeners: {web: {address: '127.0.0.1'}}", "listeners.web.address"),
    ("listeners: {'a b': {address: 127.0.0.1:80}}", "listeners"),
    (LISTENER % "protocol: HTTPS", "listeners.web.protocol"),
    (LISTENER % "protocol: ''", "listeners.web.protocol"),
    (LISTENER % "adress: x", "listeners.web"),
    (LISTENER % "limits: {headers: 0}", "listeners.web.limits.headers"),
    (LISTENER % "limits: {headers: '7'}", "listeners.web.limits.headers"),
    (LISTENER % "limits: {headers: 1.5}", "listeners.web.limits.headers"),
    (LISTENER % "timeouts: {idle: 10}", "listeners.web.timeouts.idle"),
    (LISTENER % "timeouts: {idle: 10 s}", "listeners.web.timeouts.idle"),
    (LISTENER % "hostnames: []", "listeners.web.hostnames"),
    (LISTENER % "hostnames: a.example.com", "listeners.web.hostnames"),
    (LISTENER % "allow: [example.com]", "listeners.web.allow.0"),
    (LISTENER % "forwarded: {via: yes please}", "listeners.web.forwarded.via"),
    ("routes: [{backendRefs: [{name: app}]}]", "routes.0"),
    ("routes: [{name: a}]", "routes.0"),
    (ROUTE % "backendRefs: [{name: app}], respond: 404", "routes.0"),
    (ROUTE % "backendRefs: [{name: app}], deny: true", "routes.0"),
    (ROUTE % "backendRefs: [app]", "routes.0.backendRefs.0"),
    (ROUTE % "backendRefs: [{name: app, weight: -1}]", "routes.0.backendRefs.0.weight"),
    (ROUTE % "backendRefs: [{name: app}], matches: {path: /}", "routes.0.matches"),
    (ROUTE % "backendRefs: [{name: app}], matches: [{}]", "routes.0.matches.0"),
    (ROUTE % "backendRefs: [{name: app}], matches: [{path: x}]", "routes.0.matches.0.path"),
    (ROUTE % "backendRefs: [{name: app}], matches: [{paths: /x}]", "routes.0.matches.0"),
    (ROUTE % "backendRefs: [{name: app}], splice: always", "routes.0.splice"),
    (ROUTE % "respond: {body: x}", "routes.0.respond"),
    (ROUTE % "respond: {status: 99}", "routes.0.respond"),
    (ROUTE % "redirect: {status: 304}", "routes.0.redirect.status"),
    (ROUTE % "deny: [nobody]", "routes.0.deny"),
    ("backends: {app: {endpoints: []}}", "backends.app.endpoints"),
    ("backends: {app: {}}", "backends.app"),
    ("backends: {app: {endpoints: 127.0.0.1:80}}", "backends.app.endpoints"),
]


@pytest.mark.parametrize(("text", "where"), BROKEN, ids=[text for text, _ in BROKEN])
def test_what_an_editor_should_underline(text: str, where: str) -> None:
    assert where in errors(text)
    assert check_text(text).policy is None


VARIABLES = [
    "listeners: {web: {address: '${HOST}:${PORT}', limits: {headers: '${N}'}}}",
    "routes: [{name: '${A:-a}', splice: '${S}', matches: [{path: '${P}'}], respond: '${S}'}]",
]


@pytest.mark.parametrize("text", VARIABLES)
def test_a_variable_may_stand_for_any_value(text: str) -> None:
    assert errors(text) == []


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("10", 10),
        ("-1", -1),
        ("true", True),
        ("false", False),
        ("10s", "10s"),
        ("append", "append"),
        ("/", "/"),
        ("", None),
        ("any", None),
        ("the listener's", None),
    ],
)
def test_defaults(written: str, value: object) -> None:
    assert default_value(written) == value
    assert type(default_value(written)) is type(value)


def properties(part: Any) -> Any:
    """Every property in a schema, by name."""
    if isinstance(part, dict):
        for name, value in part.get("properties", {}).items():
            yield name, value
        for value in part.values():
            yield from properties(value)
    elif isinstance(part, list):
        for value in part:
            yield from properties(value)


def test_every_key_is_described_in_sentences() -> None:
    found = [pair for pair in properties(schema()) if pair != ("deny", {"const": True})]
    assert len(found) > 50
    for name, value in found:
        assert not value["description"][0].islower(), name
        assert value["description"].endswith("."), name


def test_what_nobody_told_the_schema_about() -> None:
    class Unknown:
        def read(self, *_: object) -> None:
            raise NotImplementedError

    reader: Reader[Any] = Unknown()
    with pytest.raises(TypeError, match="no JSON Schema for Unknown"):
        jsonschema._value(reader)
