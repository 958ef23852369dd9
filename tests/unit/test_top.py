"""`l7proxy top` without a terminal: readings, tables, keys, screens, the document for scripts."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.telemetry.condition import condition
from l7proxy.top.document import FORMAT, as_document, as_text
from l7proxy.top.figures import amount, clean, count, duration, fit, flow, often, share, width
from l7proxy.top.frame import ASCII, Frame, draw
from l7proxy.top.look import FASTEST, SLOWEST, Look, Order, press
from l7proxy.top.reading import Picture, Reading, compare
from l7proxy.top.views import BACKENDS, CONNECTIONS, VIEWS, arranged, chosen, laid_out

NAN = math.nan

# ---- numbers

FIGURES = [
    (amount, [(0, "0 B"), (999, "999 B"), (999.6, "1.00 kB"), (99_950, "100 kB"), (NAN, "-")]),
    (amount, [(999_499, "999 kB"), (999_500, "1.00 MB"), (45.6e6, "45.6 MB"), (None, "-")]),
    (flow, [(2.5e9, "2.50 GB/s"), (NAN, "-")]),
    (count, [(1_234_567, "1,234,567"), (NAN, "-")]),
    (
        often,
        [(0, "0/s"), (0.004, "<0.01/s"), (0.25, "0.25/s"), (12.34, "12.3/s"), (4321, "4,321/s")],
    ),
    (share, [(1, "100 %"), (0.99999, "99.9 %"), (0.5, "50.0 %"), (1e-5, "0.1 %"), (0, "0 %")]),
    (duration, [(7.25, "7.2s"), (59.9, "59s"), (192, "3m 12s"), (18_125, "5h 02m")]),
    (duration, [(1_051_200, "12d 4h"), (NAN, "-")]),
]


@pytest.mark.parametrize(("write", "cases"), FIGURES)
def test_numbers_are_written_for_people(write: Any, cases: list[tuple[Any, str]]) -> None:
    assert [(value, write(value)) for value, _ in cases] == cases


def test_what_a_terminal_would_obey_is_taken_out() -> None:
    assert clean("a\x1b[2Jb\x07\u202ec\nd\x9b") == "a?[2Jb??c?d?"


@pytest.mark.parametrize(
    ("text", "columns", "wanted"),
    [
        ("abc", 5, "abc  "),
        ("abc", 3, "abc"),
        ("abcd", 3, "ab~"),
        ("漢字", 3, "漢~"),
        ("漢字", 2, "~ "),
    ],
)
def test_text_takes_exactly_its_columns(text: str, columns: int, wanted: str) -> None:
    assert fit(text, columns) == wanted
    assert width(wanted) == columns


# ---- what is told


def stats(many: int = 0, name: str = "api", **changes: Any) -> dict[str, Any]:
    def endpoint(number: int, state: str) -> dict[str, Any]:
        found = {"address": f"10.0.0.{number}:80", "state": state, "weight": 1, "failures": 0}
        found |= {"connections": 3, "accepted": many * number}
        return found | ({"why": "refused"} if state == "down" else {})

    group = {
        "panic": False,
        "unresolved": [],
        "endpoints": [endpoint(1, "up"), endpoint(2, "down")],
    }
    found = {
        "version": "1.2.3",
        "datapath": "sockmap",
        "datapath_reason": "the kernel passed the self-test",
        "workers": {"configured": 2, "running": 2, "restarts": 0},
        "uptime_seconds": 100.0 + many,
        "draining": False,
        "policy": {"generation": 1, "source": f"{name}.yaml", "last_error": None},
        "listeners": {name: {"address": "127.0.0.1:1", "protocol": "HTTP", "active": 6}},
        "connections": {"accepted": many * 4, "active": 6, "refused": 0},
        "pairs": {"active": 5, "spliced": 4, "relayed": 1},
        "bytes": {
            "redirected": {"from_client": 0, "from_backend": many * 3_000_000},
            "relayed": {"from_client": many * 250_000, "from_backend": many * 750_000},
        },
        "errors": {"bad_request": many, "stalled": 0},
        "backends": {name: group},
        **changes,
    }
    return found | {"condition": condition(found)}


def listed(many: int = 0, name: str = "api", rows: int = 3) -> dict[str, Any]:
    return {
        "connections": [
            {
                "id": f"0-{number}",
                "worker": 0,
                "listener": name,
                "route": name,
                "backend": name,
                "endpoint": "10.0.0.1:80",
                "client": f"192.0.2.{number}:4000",
                "state": "spliced",
                "way": "kernel" if number else "relay",
                "age_seconds": 100.0 - number,
                "idle_seconds": 0.5,
                "bytes": {"to_backend": 0, "to_client": number * many * 1000, "kernel": 0},
            }
            for number in range(rows)
        ],
        "total": rows + 7,
        "shown": rows,
    }


POLICY = {
    "routes": [
        {"name": "r", "file": "p.yaml", "line": 7, "listeners": ["web"], "splice": "x", "why": "y"}
    ]
}


def picture(name: str = "api", rows: int = 3, **changes: Any) -> Picture:
    """Two readings, two seconds apart."""
    before = Reading(10.0, stats(1, name), listed(1, name, rows))
    return compare(before, Reading(12.0, stats(3, name, **changes), listed(3, name, rows), POLICY))


def test_rates_are_between_two_readings() -> None:
    found = picture()
    assert found.seconds == 2
    assert (found.rates.to_client, found.rates.to_backend) == (3_750_000, 250_000)
    assert (found.rates.kernel, found.rates.user, found.rates.share) == (3e6, 1e6, 0.75)
    assert (found.rates.accepted, found.rates.errors) == (4, 1)
    assert [row.rate for row in found.connections] == [0, 1000, 2000]
    assert [(row.address, row.rate) for row in found.backends] == [
        ("10.0.0.2:80", 2),  # it is ill, so it comes first
        ("10.0.0.1:80", 1),
    ]
    assert [(row.reason, row.rate) for row in found.errors] == [("bad_request", 1)]


def test_another_process_has_no_rates_yet() -> None:
    before = Reading(10.0, stats(5), listed(5))
    found = compare(before, Reading(12.0, stats(1), listed(1)))
    assert found.seconds == 0
    assert math.isnan(found.rates.to_client)
    assert math.isnan(found.rates.share)
    assert all(math.isnan(row.rate) for row in (*found.connections, *found.backends, *found.errors))


def test_a_connection_that_is_new_has_no_rate_yet() -> None:
    before = Reading(10.0, stats(1), listed(1, rows=1))
    found = compare(before, Reading(12.0, stats(3), listed(3, rows=2)))
    assert [row.rate for row in found.connections] == [0, pytest.approx(NAN, nan_ok=True)]


def test_without_connections_and_policy_the_rest_is_shown() -> None:
    found = compare(None, Reading(1.0, stats(1)))
    assert (found.connections, found.total, found.routes) == ((), 0, ())


# ---- tables


def names(rows: list[Any]) -> list[str]:
    return [row.name for row in rows]


def test_rows_are_sorted_and_what_is_unknown_comes_last() -> None:
    found = picture()
    first = replace(found.connections[0], rate=NAN)
    found = replace(found, connections=(first, *found.connections[1:]))
    assert names(arranged(CONNECTIONS, found, 4, True)) == ["0-2", "0-1", "0-0"]
    assert names(arranged(CONNECTIONS, found, 4, False)) == ["0-1", "0-2", "0-0"]
    assert names(arranged(CONNECTIONS, found, None, False)) == ["0-0", "0-1", "0-2"]


def test_rows_are_filtered_by_every_word() -> None:
    assert names(arranged(CONNECTIONS, picture(), None, False, "192.0.2.1 SPLICED")) == ["0-1"]
    # the proxy has chosen by this one already
    assert len(arranged(CONNECTIONS, picture(), None, False, "route:other")) == 3
    assert [r.address for r in arranged(BACKENDS, picture(), None, False, "down")] == [
        "10.0.0.2:80"
    ]


@pytest.mark.parametrize(
    ("text", "fields", "words"),
    [
        ("", {}, ()),
        (" 10.0  route:api way:relay", {"route": "api", "way": "relay"}, ("10.0",)),
        ("client:[::1]:80 State: x:y", {"client": "[::1]:80"}, ("state:", "x:y")),
    ],
)
def test_what_a_filter_leaves_to_the_proxy(
    text: str, fields: dict[str, str], words: tuple[str, ...]
) -> None:
    assert chosen(text) == (fields, words)


def test_columns_that_do_not_fit_are_left_out_before_any_is_cut() -> None:
    rows = list(picture().connections)
    titles = lambda columns: [  # noqa: E731
        CONNECTIONS.columns[number].title for number, _ in laid_out(CONNECTIONS, rows, columns)[0]
    ]
    assert len(titles(200)) == len(CONNECTIONS.columns)
    assert "LISTENER" not in titles(80)
    assert titles(60) == ["CLIENT", "ENDPOINT", "STATE", "RATE", "BYTES", "AGE"]
    _, cells = laid_out(CONNECTIONS, rows, 50)
    assert cells[0][0].endswith("~")
    assert len(" ".join(cells[0])) <= 50


# ---- keys


def test_keys() -> None:
    look = Look()
    story: list[tuple[str, dict[str, Any]]] = [
        ("down", {"top": 1}),
        ("page_down", {"top": 11}),
        ("end", {"top": 90}),
        ("down", {"top": 90}),
        ("home", {"top": 0}),
        ("up", {"top": 0}),
        ("2", {"view": 1}),
        ("tab", {"view": 2}),
        ("back_tab", {"view": 1}),
        ("1", {"view": 0}),
        (">", {"order": Order(5, True)}),
        ("r", {"order": Order(5, False), "asks": "-bytes"}),
        ("<", {"order": Order(4, True), "asks": "bytes"}),
        ("<", {"order": Order(3, False), "asks": "state"}),
        ("p", {"paused": True}),
        ("p", {"paused": False}),
        ("-", {"seconds": 4.0}),
        ("+", {"seconds": 2.0}),
        ("9", {"view": 0}),
        ("x", {"typing": False}),
        ("/", {"typing": True}),
        ("q", {"filter": "q", "typing": True}),
        ("2", {"filter": "q2", "view": 0}),
        ("backspace", {"filter": "q"}),
        ("up", {"filter": "q"}),
        ("\x01", {"filter": "q"}),
        ("enter", {"filter": "q", "typing": False}),
        ("2", {"filter": "", "view": 1}),  # each table has its own
        ("1", {"filter": "q"}),
        ("escape", {"filter": ""}),
        ("/", {"typing": True}),
        ("a", {"filter": "a"}),
        ("escape", {"filter": "", "typing": False}),
    ]
    for key, wanted in story:
        after = press(look, key, rows=100, page=10)
        assert after is not None, key
        look = after
        assert {name: getattr(look, name) for name in wanted} == wanted, key
    assert press(look, "q", 100, 10) is None


def test_each_column_can_be_sorted_by_and_none() -> None:
    for view, table in enumerate(VIEWS):
        look: Look | None = Look(view=view)
        seen = set()
        for _ in range(20):
            assert look is not None
            seen.add(look.order.column)
            look = press(look, ">", 10, 10)
        assert seen == {n for n, column in enumerate(table.columns) if column.key} | {None}


def test_the_speed_has_ends() -> None:
    fast = slow = Look()
    for _ in range(20):
        fast, slow = press(fast, "+", 0, 0) or fast, press(slow, "-", 0, 0) or slow
    assert (fast.seconds, slow.seconds) == (FASTEST, SLOWEST)


# ---- the screen


def screen(frame: Frame) -> list[str]:
    return ["".join(text for text, _ in line).rstrip() for line in frame.lines]


def test_the_screen_of_80_by_24() -> None:
    flows = [NAN, 1e6, 4e6, 2e6]
    found = screen(draw(Look(), picture(), flows, (24, 80), glyphs=ASCII))
    assert found[:11] == [
        "l7proxy 1.2.3  up 1m 43s  2/2 workers  sockmap  policy 1: api.yaml    IMPAIRED",
        "to clients 3.75 MB/s  to backends 250 kB/s   new 4.0/s      errors 1.0/s",
        "live 6          spliced 4          relayed 1          every 2s",
        "kernel 75.0 %  #################################################................",
        "flow                                                       -#= 4.00 MB/s at most",
        "! backend api: 1 of 2 endpoints are out (10.0.0.2:80 is down: refused)",
        "1 Connections 10  2 Backends 2 (1 ill)  3 Listeners 1  4 Routes 1  5 Errors 1",
        "CLIENT         ROUTE  ENDPOINT    STATE       RATEv   BYTES  KERNEL    AGE  IDLE",
        "192.0.2.2:4000 api    10.0.0.1:80 spliced 2.00 kB/s 6.00 kB     0 % 1m 38s  0.5s",
        "192.0.2.1:4000 api    10.0.0.1:80 spliced 1.00 kB/s 3.00 kB     0 % 1m 39s  0.5s",
        "192.0.2.0:4000 api    10.0.0.1:80 spliced     0 B/s     0 B       - 1m 40s  0.5s",
    ]
    assert found[-1] == (
        "q quit  1-5 show  <> sort  r reverse  / filter  p pause  +- speed  arrows scroll"
    )
    assert len(found) == 24


@pytest.mark.parametrize("view", range(len(VIEWS)))
def test_each_table_has_its_screen(view: int) -> None:
    found = screen(draw(Look(view=view), picture(), [], (24, 80)))
    assert VIEWS[view].columns[0].title in "\n".join(found)
    assert not any("nothing is" in line for line in found)


def test_the_rows_scroll() -> None:
    frame = draw(
        replace(Look(), top=95, orders=(Order(None, False),) * 5), picture(rows=100), [], (24, 80)
    )
    assert (frame.rows, frame.page) == (100, 15)
    found = screen(frame)
    assert found[8].startswith("192.0.2.85:")  # as far as there are rows to fill the screen
    assert found[22].startswith("192.0.2.99:")


def test_it_says_when_nobody_answers() -> None:
    found = "\n".join(screen(draw(Look(), None, [], (24, 80), trouble="connection refused")))
    assert "connection refused" in found
    found = "\n".join(screen(draw(Look(), picture(), [], (24, 80), trouble="connection refused")))
    assert "NO ANSWER" in found
    assert "connection refused" in found
    assert "IMPAIRED" not in found


def test_a_filter_is_seen_while_it_is_typed_and_after() -> None:
    look = replace(Look(), filters=("nobody", *[""] * 4), typing=True)
    found = screen(draw(look, picture(), [], (24, 80)))
    assert found[-1].startswith("filter: nobody_")
    assert "nothing is like that" in found
    assert screen(draw(replace(look, typing=False), picture(), [], (24, 80)))[-1].startswith(
        "/nobody"
    )


HOSTILE = "\x1b]0;pwned\x07\x1b[2J漢\u202e\n" * 20


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 60),
    columns=st.integers(1, 200),
    view=st.integers(0, len(VIEWS) - 1),
    name=st.sampled_from(["api", HOSTILE, "a" * 500]),
    trouble=st.sampled_from(["", HOSTILE]),
    typing=st.booleans(),
)
def test_no_screen_is_larger_than_the_terminal(
    height: int, columns: int, view: int, name: str, trouble: str, typing: bool
) -> None:
    look = Look(view=view, filters=(HOSTILE,) * 5 if typing else ("",) * 5, typing=typing)
    frame = draw(look, picture(name), [1e6] * 300, (height, columns), trouble=trouble)
    assert len(frame.lines) == height
    for line in frame.lines:
        text = "".join(part for part, _ in line)
        assert width(text) <= columns
        assert text.isprintable()


# ---- once


def test_the_document_for_scripts() -> None:
    found = as_document(picture(), limit=2)
    json.dumps(found, allow_nan=False)
    assert found.keys() == {
        "format", "version", "seconds", "uptime_seconds", "condition", "datapath", "workers",
        "policy", "live", "rates", "listeners", "routes", "backends", "errors", "connections",
        "connections_total",
    }  # fmt: skip
    assert found["format"] == FORMAT == 1
    assert found["seconds"] == 2
    assert found["condition"]["is"] == "impaired"
    assert found["live"] == {"connections": 6, "spliced": 4, "relayed": 1}
    assert found["rates"] == {
        "to_client": 3_750_000,
        "to_backend": 250_000,
        "kernel": 3_000_000,
        "user": 1_000_000,
        "kernel_share": 0.75,
        "accepted": 4,
        "errors": 1,
    }
    assert found["backends"][0] == {
        "backend": "api",
        "address": "10.0.0.2:80",
        "state": "down",
        "connections": 3,
        "rate": 2,
        "failures": 0,
        "weight": 1,
        "why": "refused",
    }
    assert [one["id"] for one in found["connections"]] == ["0-2", "0-1"]
    assert found["connections"][0] == {
        "id": "0-2",
        "client": "192.0.2.2:4000",
        "listener": "api",
        "route": "api",
        "backend": "api",
        "endpoint": "10.0.0.1:80",
        "state": "spliced",
        "way": "kernel",
        "age": 98.0,
        "idle": 0.5,
        "to_backend": 0,
        "to_client": 6000,
        "kernel": 0,
        "rate": 2000,
    }
    assert found["connections_total"] == 10
    assert found["routes"] == [
        {"name": "r", "listeners": "web", "splice": "x", "place": "p.yaml:7", "why": "y"}
    ]


def test_the_readme_has_each_key_of_the_document() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (told,) = re.findall(r"its keys are added to, never renamed: (.*?)\n\n", readme, re.S)
    keys = set(re.findall(r"`(\w+)`", told))
    assert as_document(picture(), limit=2).keys() <= keys


def test_what_is_not_known_is_null() -> None:
    found = as_document(compare(None, Reading(1.0, stats(1), listed(1))), limit=5)
    assert set(found["rates"].values()) == {None}
    assert found["connections"][0]["rate"] is None


def test_the_plain_text_has_all_tables_and_no_escape() -> None:
    found = as_text(picture(HOSTILE), limit=1)
    for view in VIEWS:
        assert f"\n{view.columns[0].title}" in found
    assert "1 of 10 connections" in found
    assert "impaired" in found
    assert found.replace("\n", "").isprintable()
