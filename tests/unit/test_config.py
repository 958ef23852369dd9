"""From a file to a policy: what comes out, how problems are shown, and what files can do wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from time import process_time

import pytest
import yaml

from l7proxy.config import Report, check, check_text, load, nodes, render, syntax, walker
from l7proxy.config.problems import Source
from l7proxy.config.sources import MAX_BYTES
from l7proxy.config.walker import MAX_PROBLEMS, MAX_VISITS
from l7proxy.errors import PolicyError
from l7proxy.model import (
    Address,
    Backend,
    BackendRef,
    Endpoint,
    HeaderChanges,
    Limits,
    Listener,
    Location,
    Match,
    PathMatch,
    PathType,
    Policy,
    Protocol,
    Route,
    Timeouts,
)

WHOLE = """\
listeners:
  web: {address: 127.0.0.1:8080}
  raw: {address: "[::1]:9000", protocol: TCP}
routes:
  - name: api
    listeners: [web]
    hostnames: [API.example.com, "*.example.org"]
    matches: [{path: {type: Exact, value: /v1}}, {path: {value: /v2}}, {path: /v3/}]
    backendRefs: [{name: api, weight: 3}, {name: app}]
  - name: everything-else
    backendRefs: [{name: app}]
backends:
  api: {endpoints: [127.0.0.1:9001, "[0:0::1]:9002"]}
  app: {endpoints: [127.0.0.1:9003]}
"""
GOOD = """\
listeners: {web: {address: 127.0.0.1:8080}}
routes: [{name: all, backendRefs: [{name: app}]}]
backends: {app: {endpoints: [127.0.0.1:9000]}}
"""


def at(line: int, column: int) -> Location:
    return Location("p.yaml", line, column)


def test_a_policy() -> None:
    prefix, exact = PathType.PATH_PREFIX, PathType.EXACT
    assert check_text(WHOLE, "p.yaml").policy == Policy(
        listeners={
            "web": Listener("web", Address("127.0.0.1", 8080), location=at(2, 3)),
            "raw": Listener("raw", Address("::1", 9000), Protocol.TCP, location=at(3, 3)),
        },
        routes=(
            Route(
                name="api",
                matches=(
                    Match(PathMatch(exact, "/v1"), location=at(8, 15)),
                    Match(PathMatch(prefix, "/v2"), location=at(8, 50)),
                    Match(PathMatch(prefix, "/v3/"), location=at(8, 72)),
                ),
                backend_refs=(BackendRef("api", 3), BackendRef("app", 1)),
                hostnames=("api.example.com", "*.example.org"),
                listeners=("web",),
                location=at(5, 11),
            ),
            Route(
                name="everything-else",
                matches=(Match(PathMatch(prefix, "/"), location=at(10, 11)),),
                backend_refs=(BackendRef("app"),),
                location=at(10, 11),
            ),
        ),
        backends={
            "api": Backend(
                "api",
                (
                    Endpoint(Address("127.0.0.1", 9001), location=at(13, 21)),
                    Endpoint(Address("::1", 9002), location=at(13, 37)),
                ),
                at(13, 3),
            ),
            "app": Backend(
                "app", (Endpoint(Address("127.0.0.1", 9003), location=at(14, 21)),), at(14, 3)
            ),
        },
        source="p.yaml",
    )


def test_limits_and_timeouts() -> None:
    policy = check_text(
        """\
listeners:
  web:
    address: 127.0.0.1:0
    limits: {headBytes: 256, headers: 1, connections: 10000000}
    timeouts: {head: 1h, dial: 250ms, idle: 1h30m, overflow: 0s}
  half: {address: 127.0.0.1:0, limits: {headers: 5}, timeouts: {idle: 1s}}
routes: [{name: all, backendRefs: [{name: app}]}]
backends: {app: {endpoints: [127.0.0.1:9000]}}
"""
    ).policy
    assert policy is not None
    web, half = policy.listeners["web"], policy.listeners["half"]
    assert web.limits == Limits(head_bytes=256, headers=1, connections=10_000_000)
    assert web.timeouts == Timeouts(head=3600.0, dial=0.25, idle=5400.0, overflow=0.0)
    assert half.limits == Limits(headers=5)
    assert half.timeouts == Timeouts(idle=1.0)


def test_anchors_and_merges() -> None:
    policy = check_text(
        """\
listeners:
  a: &a
    address: 127.0.0.1:1
    protocol: TCP
    timeouts: &t {idle: 5s, dial: 1s}
  b: {<<: *a, address: 127.0.0.1:2}
  c: {address: 127.0.0.1:3, <<: [{protocol: HTTP}, *a], timeouts: {<<: *t, dial: 2s}}
routes: [{name: all, backendRefs: &refs [{name: &n app}]}, {name: x, listeners: [c], hostnames: [
  x.example.com], backendRefs: *refs}]
backends: {*n : {endpoints: [127.0.0.1:9000]}}
"""
    ).policy
    assert policy is not None
    a, b, c = policy.listeners.values()
    assert (a.protocol, b.protocol, c.protocol) == (Protocol.TCP, Protocol.TCP, Protocol.HTTP)
    assert (a.address.port, b.address.port, c.address.port) == (1, 2, 3)
    assert (a.timeouts, c.timeouts) == (Timeouts(idle=5, dial=1), Timeouts(idle=5, dial=2))
    assert policy.routes[1].backend_refs == (BackendRef("app"),)


def test_load(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    assert load(str(file)) == check(str(file)).policy
    file.write_text(GOOD.replace("app}", "apps}"))
    with pytest.raises(PolicyError) as caught:
        load(str(file))
    assert str(caught.value) == check(str(file)).render()


def test_byte_order_mark_and_line_ends() -> None:
    expected = check_text(GOOD).policy
    assert check_text("\ufeff" + GOOD).policy == expected
    assert check_text(GOOD.replace("\n", "\r\n")).policy == expected
    assert check_text(GOOD.replace("\n", "\r")).policy == expected


def test_without_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = check_text(WHOLE)
    monkeypatch.setattr(nodes, "_LOADER", yaml.SafeLoader)
    assert check_text(WHOLE) == expected


# How it is shown.


def test_render_a_problem_with_hint_and_note() -> None:
    report = check_text(
        "listeners:\n  a: {address: 127.0.0.1:1, address: x}\n" + GOOD.partition("\n")[2], "p.yaml"
    )
    assert report.render() == (
        "p.yaml:2:29: error: the key `address` is written twice\n"
        "    2 |   a: {address: 127.0.0.1:1, address: x}\n"
        "      |                             ^^^^^^^\n"
        "p.yaml:2:7: note: first written here\n"
        "    2 |   a: {address: 127.0.0.1:1, address: x}\n"
        "      |       ^^^^^^^\n"
        "p.yaml: 1 error"
    )


def test_render_sorts_and_counts() -> None:
    text = "backends: {app: {endpoints: [x]}}\nroutes: [{}]\nlisteners: {web: }\n"
    report = check_text(text, "p.yaml")
    assert [line for line in report.render().splitlines() if line.startswith("p.yaml")] == [
        "p.yaml:1:30: error: `x` has no port",
        "p.yaml:2:10: error: a route needs `backendRefs`, `respond`, `redirect` or `deny: true`",
        "p.yaml:2:10: error: a route needs `name`",
        "p.yaml:3:13: error: `web` has no value",
        "p.yaml: 4 errors",
    ]


def test_render_warnings_and_nothing() -> None:
    assert check_text(GOOD, "p.yaml").render() == "p.yaml: ok"
    unused = GOOD.replace("backends: {", "backends: {old: {endpoints: [127.0.0.1:1]}, ")
    assert check_text(unused, "p.yaml").render() == (
        "p.yaml:3:12: warning: no route forwards to backend `old`\n"
        "    3 | backends: {old: {endpoints: [127.0.0.1:1]}, app: {endpoints: [127.0.0.1:9000]}}\n"
        "      |            ^^^\n"
        "      = remove it, or name it in the `backendRefs` of a route\n"
        "p.yaml: 1 warning"
    )


def first(report: Report) -> str:
    return render(report.errors[0])


def test_caret_under_tabs_and_wide_characters() -> None:
    assert first(check_text("# 漢\nlisteners: {\t漢: {x: 1}}\n", "p.yaml")) == (
        "p.yaml:2:1: error: a policy needs `backends`\n"
        "    2 | listeners: {\t漢: {x: 1}}\n"
        "      | ^\n"
        "      = write backends: {app: {endpoints: [127.0.0.1:9000]}}"
    )
    assert render(check_text("listeners: {\t漢: {x: 1}}\n", "p.yaml").errors[2]) == (
        "p.yaml:1:14: error: `漢` is no name\n"
        "    1 | listeners: {\t漢: {x: 1}}\n"
        "      |             \t^^\n"
        "      = use letters, digits, `-`, `_` and `.`, with a letter or digit first and last"
    )
    assert render(check_text("listeners: {\t漢: {x: 1}}\n", "p.yaml").errors[4]) == (
        "p.yaml:1:18: error: unknown key `x` in a listener\n"
        "    1 | listeners: {\t漢: {x: 1}}\n"
        "      |             \t     ^\n"
        "      = known are `address`, `mode`, `protocol`, `hostnames`, `proxyProtocol`,"
        " `trustedProxies`, `forwarded`, `allow`, `deny`, `transparent`, `limits`, `timeouts`"
    )


def test_long_lines_are_cut_around_the_caret() -> None:
    text = "{listeners: {web: {address: 127.0.0.1:8080, " + "x" * 300 + ": " + "y" * 300 + "}}}"
    problem = next(p for p in check_text(text).errors if "unknown" in p.message)
    shown = render(problem).splitlines()
    assert problem.place.location.column == 45
    assert (problem.place.width, problem.place.text) == (300, text)
    assert shown[0].endswith("unknown key `" + "x" * 57 + "...` in a listener")
    assert shown[1] == "    1 | " + text[:120] + "..."
    assert shown[2] == "      | " + " " * 44 + "^" * 76
    errors = check_text("{" + "x" * 300 + ": 1, yy: 2}").errors
    late = next(problem for problem in errors if "`yy`" in problem.message)
    assert render(late).splitlines()[1:3] == [
        "    1 | ..." + "x" * 55 + ": 1, yy: 2}",
        "      |    " + " " * 60 + "^^",
    ]


def test_nothing_shown_can_steer_a_terminal() -> None:
    shown = check_text("\x1b[2J: 1\n", "p\x1b.yaml").render()
    assert "the control character U+001B cannot stand here" in shown
    assert "    1 | \ufffd[2J: 1" in shown
    escaped = check_text('"\\u202e\\u2066": 1\n').render()
    assert "\u202e" not in escaped
    assert "unknown key `\ufffd\ufffd` in a policy" in escaped


# What files can do wrong.


def problem_of(path: Path, data: bytes) -> tuple[int, int, str, str]:
    path.write_bytes(data)
    report = check(str(path))
    assert report.policy is None
    (problem,) = report.errors
    location = problem.place.location
    assert location.file == str(path)
    return location.line, location.column, problem.message, problem.hint


def test_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    hint = "save the file as UTF-8"
    assert problem_of(file, b"# \xc3\xa4\n#  \xe4\n") == (2, 4, "the byte 0xe4 is not UTF-8", hint)
    utf16 = GOOD.encode("utf-16")
    assert problem_of(file, utf16) == (1, 1, "this file is UTF-16", "save it as UTF-8")


@pytest.mark.parametrize("data", [b"", b"\n\n", b"# nothing\n", b"---\n", b"~\n", b"\xef\xbb\xbf"])
def test_empty(tmp_path: Path, data: bytes) -> None:
    hint = "a policy has `listeners`, `routes` and `backends`"
    assert problem_of(tmp_path / "p.yaml", data) == (1, 1, "this file is empty", hint)


def test_too_large(tmp_path: Path) -> None:
    expected = (1, 1, "a policy has at most 16 MiB", "")
    assert problem_of(tmp_path / "p.yaml", b"#" * (MAX_BYTES + 1)) == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.yaml", "No such file or directory"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_unreadable(tmp_path: Path, name: str, reason: str) -> None:
    path = f"{tmp_path}/{name}"
    (problem,) = check(path).errors
    assert problem.message == f"cannot read this file: {reason}"
    shown = path.replace("\0", "\ufffd")
    assert render(problem) == f"{shown}:1:1: error: {problem.message}"


def test_byte_order_mark_in_the_middle() -> None:
    (problem,) = check_text("listeners:\n\ufeffroutes:\n").errors
    assert problem.message == "a byte order mark cannot stand here"
    assert (problem.place.location.line, problem.place.location.column) == (2, 1)


def test_what_nobody_foresaw_is_told_in_the_words_of_the_yaml_parser() -> None:
    (problem,) = check_text("a: !<x b\n", "p.yaml").errors
    assert problem.message.startswith("not valid YAML: ")
    assert problem.place.location == Location("p.yaml", 1, 7)


def test_an_exception_without_a_place() -> None:
    problem = syntax.explain(Source("p.yaml", "a: b"), yaml.YAMLError("it broke"))
    assert render(problem).splitlines()[0] == "p.yaml:1:1: error: not valid YAML: it broke"


def test_the_part_to_blame_is_shown_where_it_can_be_told_for_sure() -> None:
    for written, column, width in [
        ("127.0.0.1:http", 38, 4),
        ("'127.0.0.1:http'", 39, 4),
        ('"127.0.0.1\\x3ahttp"', 42, 4),
        ('"127.0.0.1:\\x68ttp"', 28, 19),
    ]:
        text = GOOD.replace("127.0.0.1:8080", written)
        (problem,) = check_text(text).errors
        assert problem.message == "the port `http` is no number"
        assert (problem.place.location.column, problem.place.width) == (column, width)


# What policies can blow up.


def test_alias_bomb_of_lists_is_no_match_for_the_schema() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    errors = check_text("\n".join(lines) + "\nlisteners: *a29\n").errors
    assert "`listeners` must be a map, and this is a list" in [error.message for error in errors]


def test_alias_bomb_of_merges_is_bounded() -> None:
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 30)]
    report = check_text("\n".join(lines) + "\nlisteners: {web: *a29}\n")
    blown = f"aliases blow this policy up to more than {MAX_VISITS:,} values"
    assert report.policy is None
    assert blown in [error.message for error in report.errors]


def test_wide_aliases_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less of them: it takes as long as a policy of that size, with the limit as it is."""
    monkeypatch.setattr(walker, "MAX_VISITS", MAX_VISITS // 10)
    matches = ", ".join("{path: /x}" for _ in range(900))
    routes = ", ".join(["{name: r, matches: *m, backendRefs: [{name: app}]}"] * 130)
    text = GOOD.replace("routes: [", f"routes: [{{name: q, matches: &m [{matches}]}}, {routes}, ")
    assert any("aliases blow this policy up" in p.message for p in check_text(text).errors)


def test_so_many_problems_and_no_more() -> None:
    names = ", ".join(f"k{i}: 1" for i in range(MAX_PROBLEMS * 2))
    assert len(check_text(f"{{{names}}}").errors) == MAX_PROBLEMS


@pytest.mark.parametrize("opening", ["[", "- ", "{a: ", "? ", "[{a: "])
def test_deep_nesting_does_not_end_the_process(opening: str) -> None:
    """In a process of its own: PyYAML's C composer overflows the stack with this."""
    script = (
        "from l7proxy.config import check_text\n"
        f"(problem,) = check_text({opening!r} * 200_000).errors\n"
        "print(problem.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=180, check=False
    )
    assert (done.returncode, done.stdout) == (0, "nested more than 32 levels deep\n")


def test_ten_thousand_routes() -> None:
    """With headers, filters and weights; `make bench` tells the time, this that it is linear."""
    lines = ["listeners: {web: {address: 127.0.0.1:8080}}", "routes:"]
    for i in range(10_000):
        lines += [
            f"- name: r{i}",
            f"  hostnames: [h{i}.example.com]",
            f'  matches: [{{path: /v{i}, headers: {{x-canary: "{i}"}}}}]',
            f"  filters: {{requestHeaders: {{set: {{X-Route: r{i}}}}}}}",
            f"  backendRefs: [{{name: b{i}, weight: 90}}, {{name: b{i + 1}, weight: 10}}]",
        ]
    lines += ["backends:", *(f"  b{i}: {{endpoints: [10.0.0.1:{i + 1}]}}" for i in range(10_001))]
    begin = process_time()
    report = check_text("\n".join(lines))
    took = process_time() - begin
    assert report.policy is not None
    assert len(report.policy.routes) == 10_000
    assert report.policy.routes[-1].filters.request_headers == HeaderChanges(
        set=(("X-Route", "r9999"),)
    )
    assert took < 30  # 3 s where nothing else runs; quadratic would be minutes


def test_ten_thousand_mistakes() -> None:
    """Each with a hint that looks at all there is: they stay cheap, too."""
    lines = ["listeners: {web: {address: 127.0.0.1:8080}}", "routes:"]
    lines += [f"- {{name: r{i}, backendRefs: [{{name: x{i}}}]}}" for i in range(10_000)]
    lines += ["backends:", *(f"  b{i}: {{endpoints: [10.0.0.1:{i + 1}]}}" for i in range(10_000))]
    begin = process_time()
    report = check_text("\n".join(lines))
    assert len(report.errors) == MAX_PROBLEMS
    assert process_time() - begin < 20
