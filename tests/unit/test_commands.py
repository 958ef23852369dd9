"""The verbs that only look at policies: what they print, to whom, and their exit codes."""

from __future__ import annotations

import pytest
from verbs import Verbs

GOOD = """\
listeners: {web: {address: 127.0.0.1:8080}}
routes: [{name: all, backendRefs: [{name: app}]}]
backends: {app: {endpoints: [127.0.0.1:9000]}}
"""
UNUSED = GOOD.replace("backends: {", "backends: {old: {endpoints: [127.0.0.1:1]}, ")


def test_check_of_a_good_policy(l7proxy: Verbs) -> None:
    assert l7proxy("check", l7proxy.write(GOOD))[0::2] == (0, "")


def test_check_of_a_folder(l7proxy: Verbs) -> None:
    (l7proxy.folder / "d").mkdir()
    for number, line in enumerate(GOOD.splitlines()):
        l7proxy.write(line, f"d/{number}.yaml")
    code, found = l7proxy.json("check", "--json", "d")
    assert (code, found["ok"], found["source"]) == (0, True, "d")
    assert found["files"] == ["d/0.yaml", "d/1.yaml", "d/2.yaml"]


def test_strict(l7proxy: Verbs) -> None:
    l7proxy.write(UNUSED)
    code, out, err = l7proxy("check", "p.yaml")
    assert (code, err) == (0, "")
    assert out.endswith("p.yaml: 1 warning\n")
    code, out, err = l7proxy("check", "--strict", "p.yaml")
    assert (code, out) == (1, "")
    assert err.endswith("p.yaml: 1 warning, and with --strict that is an error\n")
    assert l7proxy.json("check", "--json", "p.yaml")[1]["ok"] is True
    code, found = l7proxy.json("check", "--json", "--strict", "p.yaml")
    assert (code, found["ok"]) == (1, False)
    l7proxy.write(GOOD)
    assert l7proxy("check", "--strict", "p.yaml")[0] == 0


def test_check_as_json_to_the_letter(l7proxy: Verbs) -> None:
    l7proxy.write(GOOD.replace("name: app}", "name: apps}"))
    code, found = l7proxy.json("check", "--json", "p.yaml")
    assert code == 1
    assert found == {
        "ok": False,
        "source": "p.yaml",
        "problems": [
            {
                "severity": "error",
                "file": "p.yaml",
                "line": 2,
                "column": 43,
                "endLine": 2,
                "endColumn": 47,
                "message": "no backend has the name `apps`",
                "hint": "did you mean `app`?",
                "notes": [
                    {
                        "message": "backend `app`",
                        "file": "p.yaml",
                        "line": 3,
                        "column": 12,
                        "endLine": 3,
                        "endColumn": 15,
                    }
                ],
            }
        ],
        "files": ["p.yaml"],
        "splice": [],
        "variables": [],
    }


def test_check_as_json_names_variables(l7proxy: Verbs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L7_HOST", "127.0.0.1")
    text = GOOD.replace("127.0.0.1:9000", '"${L7_HOST}:${L7_PORT:-9000}"')
    _, found = l7proxy.json("check", "--json", l7proxy.write(text))
    at = {"file": "p.yaml", "line": 3, "endLine": 3}
    assert found["variables"] == [
        {"name": "L7_HOST", "default": False, **at, "column": 31, "endColumn": 41},
        {"name": "L7_PORT", "default": True, **at, "column": 42, "endColumn": 58},
    ]
    assert "127.0.0.1" not in str(found["variables"])


RELAYED = {
    "heads": "the first request's is parsed, routed and written anew; nobody reads the later ones",
    "smallBodies": "user space relays them",
    "largeBodies": "user space relays them",
    "upgrades": "user space relays",
}
EACH = {
    **RELAYED,
    "heads": "each one is parsed, routed and written anew, of requests and of responses",
    "largeBodies": "the kernel moves those of 256 KiB and more, if their length is known; user"
    " space relays the others",
    "upgrades": "after 101, or 2xx to CONNECT, the kernel moves everything",
}


def test_check_tells_which_way_bytes_go(l7proxy: Verbs) -> None:
    many = ", ".join(
        f"{{name: r{n}, matches: [{{path: /{n}}}], backendRefs: [{{name: app}}]}}" for n in range(7)
    )
    never = "{name: never, matches: [{path: /x}], splice: never, backendRefs: [{name: app}]}"
    own = "{name: own, matches: [{path: /own}], respond: 404}"
    l7proxy.write(GOOD.replace("routes: [", f"routes: [{many}, {own}, {never}, "))
    code, out, _ = l7proxy("check", "p.yaml")
    assert code == 0
    end = [
        "listener `web`, `r0`, `r1`, `r2`, `r3`, `r4` and 3 more: `splice: request`, chosen by"
        " auto",
        "    heads        " + EACH["heads"],
        "    small bodies user space relays them",
        "    large bodies " + EACH["largeBodies"],
        "    upgrades     after 101, or 2xx to CONNECT, the kernel moves everything",
        "listener `web`, `never`: `splice: never`",
        "    heads        " + RELAYED["heads"],
        "    bodies       user space relays them",
        "    upgrades     user space relays",
        "p.yaml: 1 warning",
    ]
    assert out.splitlines()[-len(end) :] == end
    wrong = l7proxy.write(GOOD.replace("name: app", "name: ap"))
    assert "user space" not in l7proxy("check", wrong)[2]


def test_check_as_json_tells_what_auto_chose(l7proxy: Verbs) -> None:
    raw = "raw: {address: 127.0.0.1:9, protocol: TCP}"
    second = "{name: never, matches: [{path: /x}], splice: never, backendRefs: [{name: x}]}"
    text = GOOD.replace("backends: {", "backends: {x: {endpoints: [127.0.0.1:1]}, ")
    text = text.replace("8080}", f"8080}}, {raw}").replace("routes: [", f"routes: [{second}, ")
    code, found = l7proxy.json("check", "--json", l7proxy.write(text))
    assert code == 0
    apart = "later requests of a connection may match another route: `never`, `all`"
    told = [[*list(one.values())[:-1], list(one["ways"].values())] for one in found["splice"]]
    assert told == [
        ["web", "never", "never", False, "the route says so", list(RELAYED.values())],
        ["web", "all", "request", True, apart, list(EACH.values())],
        [
            *("raw", "all", "connection", True),
            "what comes over TCP has no requests to tell apart",
            ["none are looked for", "the kernel moves them"],
        ],
    ]
    assert list(found["splice"][0]) == ["listener", "route", "splice", "auto", "why", "ways"]
    assert [list(one["ways"]) for one in found["splice"]] == [
        list(EACH),
        list(EACH),
        ["heads", "bytes"],
    ]
    assert [one["severity"] for one in found["problems"]] == ["warning", "note", "note"]


def test_notes_are_shown_and_are_no_fault(l7proxy: Verbs) -> None:
    l7proxy.write(GOOD)
    code, out, err = l7proxy("check", "--strict", "p.yaml")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("p.yaml:1:13: note: `splice: auto` is `connection` on")
    assert out.endswith("p.yaml: ok\n")


def test_a_name_that_is_no_text_can_be_printed(l7proxy: Verbs) -> None:
    code, found = l7proxy.json("check", "--json", "\udcff.yaml")
    assert (code, found["source"]) == (1, "\udcff.yaml")
    code, _, err = l7proxy("check", "\udcff.yaml")
    assert code == 1
    assert err.startswith("\ufffd.yaml:1:1: error: cannot read this file: No such file")


def test_schema_and_manual(l7proxy: Verbs) -> None:
    code, found = l7proxy.json("schema")
    assert (code, found["title"]) == (0, "l7proxy policy")
    code, out, err = l7proxy("schema", "--manual")
    assert (code, err) == (0, "")
    assert out.startswith("# Policies\n")
    assert not out.endswith("\n\n")
