"""Whatever stands in a file: problems come out, or a policy, and never an exception."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l7proxy.config import Report, check, check_text
from l7proxy.model import Request
from l7proxy.routing import compile_routers

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "policies").glob("*.yaml"))
EVERYTHING = (ROOT / "tests" / "everything.yaml").read_text()
TEXTS = [*(path.read_text() for path in SAMPLES), EVERYTHING]


def sound(report: Report) -> None:
    """What holds for every report."""
    assert (report.policy is None) == bool(report.errors)
    shown = report.render()
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert all(char.isprintable() or char in "\n\t" for char in shown)
    for problem in (*report.errors, *report.warnings):
        for place in (problem.place, *(note.place for note in problem.notes)):
            assert place.location.line >= 1
            assert 1 <= place.location.column <= len(place.text) + 1
            assert place.width >= 1
            assert place.location.column + place.width <= len(place.text) + 2
        assert problem.message
        assert "\n" not in problem.message
    if report.policy is not None:
        for router in compile_routers(report.policy).values():
            router.decide(Request(host="a.example.com", path="/v1/../x"))
            router.decide_stream()


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    sound(check_text(text, "p.yaml"))


@given(st.text(alphabet="[]{}:,-?&*!|>'\"%@`#~<= \t\n\r.0aé\u2028\x85/", max_size=80))
def test_any_yaml_characters(text: str) -> None:
    sound(check_text(text, "p.yaml"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(data)
    sound(check(str(file)))


pieces = st.one_of(
    st.sampled_from(["${", "${A}", "${A:-b}", "${B}", "$${A}", "${A", "\\x24{A}", "$", "}"]),
    st.sampled_from(["", " ", "\n", "\t", ":", "?", "|", "-", "[", "]", "{", "}", ",", "*"]),
    st.sampled_from(["- ", ": ", "&a ", "*a", "<<: ", "'", '"', "no", "null", "~", "0x", "012"]),
    st.sampled_from(["1:30", "/..", "%2f", "*.", "::1", "é", "\x00", "---\n", "!!", "#", "@", "%"]),
)


@given(st.data())
def test_samples_with_something_changed(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(pieces) + text[at + data.draw(st.integers(0, 12)) :]
    sound(check_text(text, "p.yaml", {"A": data.draw(st.sampled_from(["", "1", "*", "{a: b}"]))}))


@given(st.text(), st.sampled_from(["${A}", "'${A}'", '"${A}"', "x${A}", "|\n      ${A}\n"]))
def test_no_variable_changes_the_structure(value: str, written: str) -> None:
    text = (
        f"listeners:\n  web:\n    address: {written}\n"
        "routes: [{name: a, respond: 404}]\nbackends: {app: {endpoints: [127.0.0.1:9]}}\n"
    )
    report = check_text(text, "p.yaml", {"A": value})
    sound(report)
    assert all(error.place.location.line in (3, 4) for error in report.errors)
    assert report.policy is None or set(report.policy.listeners) == {"web"}


# Right shape, wrong content: reaches what broken YAML never does.

words = st.one_of(
    st.sampled_from(["listeners", "routes", "backends", "web", "app", "address", "protocol", "<<"]),
    st.sampled_from(["limits", "timeouts", "headBytes", "head", "idle", "name", "hostnames"]),
    st.sampled_from(["matches", "path", "type", "value", "backendRefs", "weight", "endpoints"]),
    st.sampled_from(["splice", "method"]),
)
scalars = st.one_of(
    words,
    st.text(max_size=12),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.none(),
    st.dates(),
    st.sampled_from(["127.0.0.1:80", "[::1]:80", "localhost:1", "10s", "0s", "/x", "/x/../y"]),
    st.sampled_from(["*.example.com", "a.example.com", "TCP", "HTTP", "Exact", "PathPrefix"]),
    st.sampled_from(["1:2:3", "no"]),
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=5),
    max_leaves=25,
)
listeners = st.fixed_dictionaries(
    {"address": st.sampled_from(["127.0.0.1:80", "[::1]:80", "127.0.0.1:0"]) | scalars},
    optional={"protocol": st.sampled_from(["HTTP", "TCP"]), "timeouts": trees, "limits": trees},
)
routes = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "b", "c", "d"]),
        "backendRefs": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["app", "api"])}, optional={"weight": st.integers(-1, 5)}
            ),
            min_size=1,
            max_size=3,
        ),
    },
    optional={
        "listeners": st.lists(st.sampled_from(["web", "raw", "x"]), max_size=3),
        "hostnames": st.lists(st.sampled_from(["a.b", "*.a.b", "A.b", "c.d"]), max_size=3),
        "matches": st.lists(
            st.fixed_dictionaries({"path": st.sampled_from(["/", "/x", "/x/", "/%78"]) | trees}),
            max_size=3,
        ),
    },
)
likely = st.fixed_dictionaries(
    {
        "listeners": st.dictionaries(st.sampled_from(["web", "raw"]), listeners, min_size=1),
        "routes": st.lists(routes, min_size=1, max_size=4),
        "backends": st.dictionaries(
            st.sampled_from(["app", "api"]),
            st.fixed_dictionaries(
                {"endpoints": st.lists(st.sampled_from(["127.0.0.1:80", "[::1]:80"]), max_size=3)}
            ),
        ),
    }
)


@given(trees, st.booleans())
def test_any_tree(tree: object, flow: bool) -> None:
    sound(check_text(yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True), "p.yaml"))


@given(likely, st.booleans())
def test_policies_that_are_nearly_right(tree: object, flow: bool) -> None:
    sound(check_text(yaml.safe_dump(tree, default_flow_style=flow), "p.yaml"))


@given(likely)
def test_json_is_yaml_too(tree: object) -> None:
    """The same policy in flow and block style is the same policy, but for its places."""
    one = check_text(yaml.safe_dump(tree, default_flow_style=True, width=1 << 20), "p.yaml")
    two = check_text(yaml.safe_dump(tree, default_flow_style=False), "p.yaml")
    assert sorted(p.message for p in one.errors) == sorted(p.message for p in two.errors)
    assert sorted(p.message for p in one.warnings) == sorted(p.message for p in two.warnings)


# A policy with every key in it, and a few things in the wrong place: reaches what only the right
# keys in the right tables lead to.

Tree = object
WHOLE = yaml.safe_load(EVERYTHING)


def parts(tree: Tree, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """The way to each part of a tree, by keys and indices."""
    yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from parts(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from parts(value, (*path, index))


def at(tree: Any, path: tuple[object, ...]) -> Any:
    for step in path:
        tree = tree[step]
    return tree


PARTS = list(parts(WHOLE))
VALUES = [at(WHOLE, path) for path in PARTS if len(path) > 2]
KEYS = sorted({str(path[-1]) for path in PARTS if path and isinstance(path[-1], str)})
ODD = ["", " ", "*", "*:0", "no", "/..", "unix:", "[::]:1", "0.0.0.0/0", "2xx", "(", "a{1001}"]
ODD += ["TLS", "TCP", "HTTP", "Exact", "RegularExpression", "ReplacePrefixMatch", "hash", "request"]
values = st.one_of(
    st.sampled_from(VALUES),
    st.sampled_from(ODD),
    st.integers(-1, 70_000),
    st.booleans(),
    st.none(),
    st.just([]),
    st.builds(dict),
    st.text(max_size=5),
)


@st.composite
def misshapen(draw: st.DrawFn) -> Tree:
    """The whole policy with up to four things renamed, replaced, dropped, wrapped or added."""
    tree = copy.deepcopy(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(PARTS[1:]))
        try:
            parent, step = at(tree, path[:-1]), path[-1]
            parent[step]
        except (KeyError, IndexError, TypeError):
            continue  # changed already
        match draw(st.sampled_from(("rename", "replace", "drop", "wrap", "name", "add"))):
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from(KEYS))] = parent.pop(step)
            case "drop":
                del parent[step]
            case "wrap":
                parent[step] = [parent[step]]
            case "name":
                parent[step] = {draw(st.sampled_from(KEYS)): parent[step]}
            case "add" if isinstance(parent, dict):
                parent[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(values))
            case _:
                parent[step] = copy.deepcopy(draw(values))
    return tree


@settings(max_examples=300, deadline=None)
@given(misshapen(), st.booleans())
def test_the_whole_language_misshapen(tree: Tree, flow: bool) -> None:
    sound(check_text(yaml.safe_dump(tree, default_flow_style=flow, sort_keys=False), "p.yaml"))


@settings(deadline=None)
@given(misshapen())
def test_what_is_wrong_does_not_depend_on_how_it_is_written(tree: Tree) -> None:
    """The YAML of a tree says what the tree says: block style or flow style, the same messages."""
    one = check_text(yaml.safe_dump(tree, default_flow_style=True, width=1 << 20), "p.yaml")
    two = check_text(yaml.safe_dump(tree, default_flow_style=False), "p.yaml")
    assert sorted(p.message for p in one.errors) == sorted(p.message for p in two.errors)


def test_the_shape_itself_is_sound() -> None:
    """Guards the tests above: they change a policy that has nothing wrong in it."""
    assert check_text(yaml.safe_dump(WHOLE, sort_keys=False), "p.yaml").errors == ()
    assert len(PARTS) > 200
