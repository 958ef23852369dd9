"""The status page's pure parts, in Node: the same files that the browser gets."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NOTHING = "\N{EN DASH}"
PAGE = Path(__file__).resolve().parents[2] / "l7proxy" / "admin" / "page"


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node") or shutil.which("nodejs")
    if found is None:
        pytest.skip("no Node here: apt-get install nodejs")
    return found


def run(node: str, folder: Path, module: str, expressions: list[str]) -> list[Any]:
    """The values of JavaScript expressions, in which `it` is the module. NaN comes as null."""
    # the page's files are modules because of how the browser loads them; Node goes by the name
    copy = folder / f"{module}.mjs"
    copy.write_text((PAGE / f"{module}.js").read_text())
    script = (
        f"import * as it from {json.dumps(str(copy))};"
        f"console.log(JSON.stringify([{','.join(f'({one})' for one in expressions)}]))"
    )
    done = subprocess.run(
        [node, "--input-type=module", "-e", script], capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


FORMATS = {
    "it.bytes(0)": "0 B",
    "it.bytes(999)": "999 B",
    "it.bytes(999.6)": "1.00 kB",
    "it.bytes(1234)": "1.23 kB",
    "it.bytes(99950)": "100 kB",
    "it.bytes(999499)": "999 kB",
    "it.bytes(999500)": "1.00 MB",
    "it.bytes(45.6e6)": "45.6 MB",
    "it.bytes(1e21)": "1000000 PB",
    "it.bytes(NaN)": NOTHING,
    "it.flow(2.5e9)": "2.50 GB/s",
    "it.flow(NaN)": NOTHING,
    "it.count(0)": "0",
    "it.count(1234567)": "1,234,567",
    "it.count(NaN)": NOTHING,
    "it.often(0)": "0/s",
    "it.often(0.004)": "<0.01/s",
    "it.often(0.25)": "0.25/s",
    "it.often(12.34)": "12.3/s",
    "it.often(4321)": "4,321/s",
    "it.share(1)": "100 %",
    "it.share(0.99999)": "99.9 %",
    "it.share(0.5)": "50.0 %",
    "it.share(0.00001)": "0.1 %",
    "it.share(0)": "0 %",
    "it.share(0 / 0)": NOTHING,
    "it.duration(0.25)": "0.3s",
    "it.duration(59.9)": "59s",
    "it.duration(192)": "3m 12s",
    "it.duration(18125)": "5h 02m",
    "it.duration(1051200)": "12d 4h",
}


def test_numbers_are_written_for_people(node: str, tmp_path: Path) -> None:
    assert dict(zip(FORMATS, run(node, tmp_path, "format", list(FORMATS)), strict=True)) == FORMATS


HISTORY = "(() => {{ const h = new it.History({}, {}, ['x']); {}; return [...h.read('x')]; }})()"

HISTORIES = [
    ("a reading a second", (1, 4), "h.add(10,11,{x:1}); h.add(11,12,{x:2})", [None, 1, 2, None]),
    ("half of a step", (10, 2), "h.add(10,15,{x:1}); h.add(15,19,{x:2.8})", [None, 1.8]),
    ("one reading after a long sleep", (1, 3), "h.add(10,100,{x:7})", [7, 7, None]),
    ("a gap", (1, 4), "h.add(10,11,{x:1}); h.add(12,13.5,{x:2})", [1, None, 2, 2]),
    ("no time at all", (1, 2), "h.add(10,10,{x:1}); h.add(11,10,{x:1})", [None, None]),
    ("what is older than all", (1, 2), "h.add(10,11.5,{x:1}); h.add(3,5,{x:9})", [1, 1]),
    ("time goes on", (1, 3), "h.add(10,11.5,{x:1}); h.advance(12)", [1, 1, None]),
]


def test_history(node: str, tmp_path: Path) -> None:
    scripts = [HISTORY.format(*size, script) for _, size, script, _ in HISTORIES]
    for (what, *_, wanted), found in zip(
        HISTORIES, run(node, tmp_path, "history", scripts), strict=True
    ):
        assert found == [v if v is None else pytest.approx(v) for v in wanted], what


def test_a_day_of_readings_takes_no_more_room_than_the_first(node: str, tmp_path: Path) -> None:
    day = """(() => {
        const h = new it.History(288, 300, ['x', 'y']);
        const size = () =>
            [h.covered, ...h.sums.values()].reduce((sum, array) => sum + array.length, 0);
        const before = size();
        for (let at = 0; at < 86400; at += 1) h.add(at, at + 1, {x: at % 2, y: 3});
        return [before, size(), h.sums.size, [...h.read('x')].at(-2)];
    })()"""
    assert run(node, tmp_path, "history", [day]) == [[900, 900, 2, 0.5]]


def stats(**changes: Any) -> str:
    found = {
        "uptime_seconds": 10,
        "bytes": {
            "redirected": {"from_client": 0, "from_backend": 100},
            "relayed": {"from_client": 10, "from_backend": 0},
        },
        "connections": {"accepted": 5, "active": 4, "refused": 0},
        "pairs": {"active": 3, "spliced": 2, "relayed": 1},
        "errors": {"bad_request": 1, "stalled": 0},
    }
    return json.dumps(found | changes)


def test_rates_are_of_one_process_only(node: str, tmp_path: Path) -> None:
    later = stats(
        uptime_seconds=12,
        bytes={
            "redirected": {"from_client": 20, "from_backend": 400},
            "relayed": {"from_client": 10, "from_backend": 80},
        },
        errors={"bad_request": 3, "stalled": 0},
    )
    found, restarted, at_once = run(
        node,
        tmp_path,
        "readings",
        [
            f"it.rates({stats()}, {later}, 2)",
            f"it.rates({later}, {stats()}, 2)",
            f"it.rates({stats()}, {stats()}, 0)",
        ],
    )
    assert found == {
        "kernel": 160,
        "user": 40,
        "toClient": 190,
        "toBackend": 10,
        "accepted": 0,
        "errors": 1,
        "active": 4,
        "spliced": 2,
        "relayed": 1,
        "early": 1,
    }
    assert restarted is None
    assert at_once is None


def test_the_ill_endpoints_come_first_and_know_their_rate(node: str, tmp_path: Path) -> None:
    def group(accepted: int, *states: str) -> dict[str, Any]:
        endpoints = [
            {"address": str(number), "state": state, "accepted": accepted, "seconds": 1.2}
            for number, state in enumerate(states)
        ]
        return {"panic": False, "unresolved": [], "endpoints": endpoints}

    before = {"a": group(10, "up"), "b": group(10, "up")}
    after = {"a": group(14, "up", "starting"), "b": group(12, "ejected")}
    (rows,) = run(
        node,
        tmp_path,
        "readings",
        [f"it.endpoints({json.dumps(after)}, {json.dumps(before)}, 2)"],
    )
    assert [(row["backend"], row["state"], row["rate"]) for row in rows] == [
        ("b", "ejected", 1),
        ("a", "starting", None),  # it was not there before
        ("a", "up", 2),
    ]
    assert rows[0]["why"] == "back in 2 s"


def test_connections_that_ended_are_forgotten(node: str, tmp_path: Path) -> None:
    def one(name: str, there: int) -> dict[str, Any]:
        return {"id": name, "bytes": {"to_client": there, "to_backend": 0}}

    first, second = json.dumps([one("a", 10), one("b", 10)]), json.dumps([one("b", 30)])
    ((rows, left),) = run(
        node,
        tmp_path,
        "readings",
        [
            f"(() => {{ const {{seen}} = it.connections({first}, new Map(), 1);"
            f" const after = it.connections({second}, seen, 3);"
            " return [after.rows, [...after.seen.keys()]]; })()"
        ],
    )
    assert [(row["id"], row["all"], row["rate"]) for row in rows] == [("b", 30, 10)]
    assert left == ["b"]


def test_what_a_filter_leaves_to_the_proxy(node: str, tmp_path: Path) -> None:
    asked = [
        "it.chosen('')",
        "it.chosen(' 10.0  route:api way:relay')",
        "it.chosen('client:[::1]:80 state:')",
        "it.chosen('constructor:x 127.0.0.1:80')",
    ]
    assert run(node, tmp_path, "readings", asked) == [
        {"fields": {}, "words": ""},
        {"fields": {"route": "api", "way": "relay"}, "words": "10.0"},
        {"fields": {"client": "[::1]:80"}, "words": "state:"},
        {"fields": {}, "words": "constructor:x 127.0.0.1:80"},
    ]


AXES = {
    "it.axisEnd(0, 1000)": 1000,
    "it.axisEnd(1001, 1000)": 2000,
    "it.axisEnd(2e9, 1)": 2e9,
    "it.axisEnd(2.1e9, 1)": 5e9,
    "it.axisEnd(0.5, 0.1)": 0.5,
    "it.axisEnd(0.7, 0.1)": 1,
}


def test_an_axis_ends_at_a_round_number(node: str, tmp_path: Path) -> None:
    found = run(node, tmp_path, "chart", list(AXES))
    assert found == pytest.approx(list(AXES.values()))


def test_gaps_stay_gaps(node: str, tmp_path: Path) -> None:
    values = "Float64Array.of(NaN, 1, 2, NaN, 4, NaN)"
    found = run(
        node,
        tmp_path,
        "chart",
        [
            f"it.stretches({values})",
            f"it.path({values}, 4)",
            "it.path(Float64Array.of(1, 2), 4, Float64Array.of(0, 1))",
            "it.stacked([Float64Array.of(1, NaN), Float64Array.of(2, 3)]).map((one) => [...one])",
        ],
    )
    assert found == [
        [[1, 3], [4, 5]],
        "M200 75L400 50M800 0",
        "M0 75L1000 50L1000 75L0 100Z",
        [[1, None], [3, None]],
    ]
