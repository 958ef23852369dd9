"""A policy that is written and read again is the same policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy import config
from l7proxy.config.emitting import emit
from l7proxy.config.writing import write
from l7proxy.routing.difference import difference

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = [ROOT / "tests" / "everything.yaml", *sorted((ROOT / "policies").glob("*.yaml"))]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_policy_comes_back(path: Path) -> None:
    policy = config.load(str(path), {})
    text = write(policy)
    report = config.check_text(text)
    assert report.policy is not None, report.render()
    assert not difference(policy, report.policy)
    assert write(report.policy) == text
    # not only what routing looks at
    assert yaml.safe_load(text).keys() <= {"listeners", "routes", "backends", "accessLog"}
    assert report.policy.access_log == policy.access_log


def test_defaults_variables_and_files_are_written_out(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("listeners: {web: {address: '127.0.0.1:${PORT:-8080}'}}\n")
    (tmp_path / "b.yaml").write_text(
        "routes: [{name: all, backendRefs: [{name: app}]}]\n"
        "backends: {app: {endpoints: [127.0.0.1:9000]}}\n"
    )
    assert write(config.load(str(tmp_path), {"PORT": "81"})) == (
        "listeners:\n"
        "  web:\n"
        '    address: "127.0.0.1:81"\n'
        "    protocol: HTTP\n"
        "    forwarded: {xForwardedFor: append, xForwardedProto: append, xForwardedHost: append,"
        " xForwardedPort: pass, xRealIp: pass, forwarded: pass, via: append}\n"
        "    limits: {headBytes: 32768, headers: 100, connections: 10000}\n"
        "    timeouts: {head: 10s, dial: 5s, idle: 1h, overflow: 5m, keepAlive: 1m}\n"
        "routes:\n"
        "  - name: all\n"
        "    backendRefs: [{name: app, weight: 1}]\n"
        "backends:\n"
        "  app:\n"
        '    endpoints: [{address: "127.0.0.1:9000", weight: 1}]\n'
        "    balance: round_robin\n"
        "    ejection: {failures: 3, base: 5s, max: 5m, share: 100}\n"
        "    retries: {attempts: 3, budget: 20}\n"
    )


SCALARS = st.one_of(st.text(), st.integers(), st.booleans())
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=100), inner)
)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_any_value_comes_back(value: object) -> None:
    document = {"items": [{"key": value}], "map": {"of": {"more": value, "last": 1}}}
    assert yaml.safe_load(emit(document)) == document


TEXTS = """\
null ~ No 1e3 0x10 1_000 1:30 .5 -a a:b a#b 2001-01-01 = << 1h 10 é
x\x85 x\u2028 \ufeff \U0001f600 \\ " \x00\x7f
"""


@pytest.mark.parametrize("text", ["", "- a", "a: b", "a #b", " ", *TEXTS.split()])
def test_a_text_stays_a_text(text: str) -> None:
    assert yaml.safe_load(emit({"items": [{"key": text}]})) == {"items": [{"key": text}]}
