"""The table of consistent hashing."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from l7proxy import maglev

NAMES = [f"10.0.0.{n}:80" for n in range(1, 6)]


def test_a_table_is_the_same_in_every_process() -> None:
    """And in every version: else a reload or a restart would move the keys of everybody."""
    program = (
        "from l7proxy import maglev; import hashlib, sys;"
        f"slots = maglev.table({NAMES!r}, [1, 2, 3, 4, 5]);"
        "print(slots[:8].tolist(), hashlib.sha256(slots.tobytes()).hexdigest()[:16])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {GOLDEN}


GOLDEN = "[4, 3, 4, 2, 3, 3, 4, 3] 702b55085413d6db\n"


def test_the_order_of_the_names_does_not_matter() -> None:
    one = maglev.table(NAMES, [1, 2, 3, 4, 5])
    two = maglev.table(NAMES[::-1], [5, 4, 3, 2, 1])
    assert [NAMES[at] for at in one] == [NAMES[::-1][at] for at in two]


@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1], [1, 2, 3, 4, 5], [100, 1, 0, 7, 7]])
def test_shares_are_by_weight(weights: list[int]) -> None:
    slots = Counter(maglev.table(NAMES, weights))
    for at, weight in enumerate(weights):
        assert slots[at] == pytest.approx(maglev.SIZE * weight / sum(weights), abs=3)
    assert sum(slots.values()) == maglev.SIZE


def test_filling_in_steps_comes_to_the_same_table() -> None:
    filling, steps = maglev.Filling(NAMES, [1, 2, 3, 4, 5], 251), 0
    while (slots := filling.go_on(10)) is None:
        steps += 1
    assert steps > 10
    assert slots == maglev.table(NAMES, [1, 2, 3, 4, 5], 251)


@pytest.mark.parametrize(
    ("names", "weights", "why"),
    [
        ([], [], "weights"),
        (["a"], [0], "weights"),
        (["a", "b"], [2, -1], "weights"),
        (["a", "b", "c", "d"], [1, 1, 1, 1], "4 names for 3 slots"),
    ],
)
def test_what_has_no_table(names: list[str], weights: list[int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        maglev.Filling(names, weights, 3)


def test_parts_are_told_apart() -> None:
    assert maglev.digest(b"", b"a", b"bc") != maglev.digest(b"", b"ab", b"c")
    assert maglev.digest(b"one", b"a") != maglev.digest(b"two", b"a")
