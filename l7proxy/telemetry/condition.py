"""Whether this l7proxy is well, and what ails it: `condition` of `/stats`.

One place decides it, so that the status page, `l7proxy top` and a script that asks `/stats` never
contradict each other. Pure: the object of `/stats` in, a small object out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

FAILING = "failing"
IMPAIRED = "impaired"
DRAINING = "draining"
GOOD = "good"

MOST = 50
"""Problems that are told one by one."""

_OUT = frozenset({"down", "ejected"})
_NO_SHARE = _OUT | {"drained"}


@dataclass(frozen=True, slots=True)
class Problem:
    """`level`: FAILING (somebody is not served) or IMPAIRED. `about`: a backend, if one is ill."""

    level: str
    what: str
    why: str = ""
    about: str = ""


def condition(stats: Mapping[str, Any]) -> dict[str, Any]:
    """`is`: good, draining, impaired, failing; `problems`, the gravest first; and how many more."""
    found = sorted(_problems(stats), key=lambda one: one.level != FAILING)
    if stats["draining"]:
        is_now = DRAINING
    elif found:
        is_now = found[0].level
    else:
        is_now = GOOD
    return {
        "is": is_now,
        "problems": [asdict(one) for one in found[:MOST]],
        "more": max(0, len(found) - MOST),
    }


def _problems(stats: Mapping[str, Any]) -> Iterator[Problem]:
    workers = stats["workers"]
    missing = workers["configured"] - workers["running"]
    if missing > 0 and not stats["draining"]:
        level = IMPAIRED if workers["running"] else FAILING
        yield Problem(level, f"{missing} of {workers['configured']} workers are not running")
    for name, group in stats.get("backends", {}).items():
        yield from _of_group(name, group)
    if "guarded" in stats.get("kept", {}) and stats["kept"]["guarded"] is None:
        yield Problem(IMPAIRED, "the guardian has gone: connections end with this process")
    reason = stats["datapath_reason"]
    if stats["datapath"] != "sockmap" and not reason.startswith("asked for"):
        yield Problem(IMPAIRED, "the kernel does not splice, user space relays", reason)
    if error := stats["policy"].get("last_error"):
        what = f"the last reload was refused, policy {stats['policy']['generation']} goes on"
        yield Problem(IMPAIRED, what, _first_line(error["text"]))


def _of_group(name: str, group: Mapping[str, Any]) -> Iterator[Problem]:
    for unresolved in group["unresolved"]:
        level = IMPAIRED if group["endpoints"] else FAILING
        yield Problem(level, f"backend {name}: no address is known of {unresolved}", "", name)
    endpoints = group["endpoints"]
    out = [one for one in endpoints if one["state"] in _OUT]
    if not out:
        return
    first = out[0]
    why = f"{first['address']} is {first['state']}"
    if first.get("why"):
        why += f": {first['why']}"
    if len(out) > 1:
        why += f"; and {len(out) - 1} more"
    if all(one["state"] in _NO_SHARE for one in endpoints):
        what = f"backend {name}: no endpoint is healthy"
        if group["panic"]:  # they are dialled all the same, and may answer
            what += ", so all of them are tried"
        yield Problem(FAILING, what, why, name)
    else:
        what = f"backend {name}: {len(out)} of {len(endpoints)} endpoints are out"
        yield Problem(IMPAIRED, what, why, name)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
