"""`l7proxy diff`: what it prints, as people and programs read it, and its exit codes."""

from __future__ import annotations

import pytest
from verbs import Verbs

from l7proxy.commands import diff
from l7proxy.commands.diff import plain
from l7proxy.model import Address, Endpoint, Location, Protocol

OLD = """\
listeners:
  web: {address: 127.0.0.1:8080, timeouts: {idle: 10s}}
routes:
  - {name: api, matches: [{path: /v1}], backendRefs: [{name: api}]}
  - {name: all, backendRefs: [{name: app}]}
backends:
  api: {endpoints: [127.0.0.1:9001]}
  app: {endpoints: [127.0.0.1:9002]}
"""
NEW = """\
# another file
listeners:
  web: {address: 127.0.0.1:8080, timeouts: {idle: 20s}}
  two: {address: 127.0.0.1:8081}
routes:
  - {name: all, backendRefs: [{name: app, weight: 3}, {name: next}]}
  - {name: v2, matches: [{path: /v2}], respond: 404}
backends:
  app: {endpoints: [127.0.0.1:9002]}
  next: {endpoints: [127.0.0.1:9003]}
"""


def test_nothing(l7proxy: Verbs) -> None:
    l7proxy.write(OLD, "old.yaml")
    l7proxy.write(f"# moved down\n{OLD}", "new.yaml")
    assert l7proxy("diff", "old.yaml", "new.yaml") == (0, "no difference\n", "")
    code, found = l7proxy.json("diff", "--json", "old.yaml", "new.yaml")
    assert (code, found["same"], found["changes"], found["effects"]) == (0, True, [], [])


def test_for_people(l7proxy: Verbs) -> None:
    l7proxy.write(OLD, "old.yaml")
    l7proxy.write(NEW, "new.yaml")
    code, out, err = l7proxy("diff", "old.yaml", "new.yaml")
    assert (code, err) == (1, "")
    changes, _, effects = out.partition("\n\n")
    assert (
        changes
        == """\
~ listener web
    timeouts.idle: 10.0 -> 20.0
+ listener two
- route api
~ route all
    backendRefs: [{name: app}] -> [{name: app, weight: 3}, {name: next}]
+ route v2
- backend api
+ backend next"""
    )
    assert effects.startswith(
        "listener web: api (backend api) -> all (backend app 3/4, next 1/4)\n"
        "    GET http://unknown.example/v1\n"
    )
    assert "-> v2 (respond 404)\n    GET http://unknown.example/v2\n" in effects


def test_as_json(l7proxy: Verbs) -> None:
    l7proxy.write(OLD, "old.yaml")
    l7proxy.write(NEW, "new.yaml")
    code, found = l7proxy.json("diff", "--json", "old.yaml", "new.yaml")
    assert (code, found["same"], found["complete"]) == (1, False, True)
    assert found["changes"][0] == {
        "noun": "listener",
        "name": "web",
        "what": "changed",
        "fields": [{"name": "timeouts.idle", "old": 10.0, "new": 20.0}],
    }
    effect = found["effects"][0]
    assert set(effect) == {"listener", "old", "new", "examples", "count"}
    assert effect["examples"][0] == "GET http://unknown.example/v1"


def test_moved(l7proxy: Verbs) -> None:
    lines = OLD.splitlines(keepends=True)
    lines[3], lines[4] = lines[4], lines[3]
    l7proxy.write(OLD, "old.yaml")
    l7proxy.write("".join(lines), "new.yaml")
    code, out, _ = l7proxy("diff", "old.yaml", "new.yaml")
    assert (code, out) == (1, "~ route all (moved)\n")


def test_errors_are_exit_code_2(l7proxy: Verbs) -> None:
    l7proxy.write(OLD, "old.yaml")
    code, out, err = l7proxy("diff", "old.yaml", "none.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("none.yaml:1:1: error: cannot read this file")
    code, out, err = l7proxy("diff", "none.yaml", "old.yaml")
    assert (code, out) == (2, "")


def test_values_of_the_model_as_json() -> None:
    endpoint = Endpoint(Address("::1", 80), 2, Location("p.yaml", 1, 1))
    assert plain((Protocol.TLS, 1.5, None, True)) == ["TLS", 1.5, None, True]
    assert plain(Address("::1", 80)) == "[::1]:80"
    assert plain(endpoint) == "[::1]:80"


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("filters.mirror.backend", "filters.mirror.backendRef"),
        ("filters.response_headers.set", "filters.responseHeaders.set"),
        ("rate_limit.per", "rateLimit.per"),
        ("timeouts.keep_alive", "timeouts.keepAlive"),
        ("backend_refs", "backendRefs"),
        ("filters.url_rewrite.path", "filters.urlRewrite.path"),
        ("access.allow_clients", "allow.clients"),
        ("health.interval", "healthCheck.interval"),
        ("ejection.most", "ejection.max"),
        ("slow_start", "slowStart"),
        ("limits.client_connections", "limits.clientConnections"),
    ],
)
def test_fields_have_the_names_that_policies_give_them(model: str, key: str) -> None:
    assert diff._key(model) == key
