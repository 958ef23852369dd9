"""What is in place, and whether it fits a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from l7proxy.sidecar import marked, nft
from l7proxy.sidecar.plan import Plan
from l7proxy.sidecar.ruleset import of, removal, ruleset

_LISTEN = "0A"  # /proc/net/tcp, `st`


class Fit(StrEnum):
    """How what is in place stands to what was asked about."""

    NOTHING = "nothing"  # there is nothing of ours
    FITS = "fits"
    DIFFERS = "differs"  # it is of another policy, or was asked for in another way
    CHANGED = "changed"  # somebody has changed it by hand, or parts of it are missing
    IN_PLACE = "in place"  # nobody said what it should be like


@dataclass(frozen=True, slots=True)
class State:
    """What is in place. `taken`: connections that each chain has brought to its listener."""

    fit: Fit
    why: str = ""
    taken: dict[str, int] = field(default_factory=dict)
    silent: tuple[str, ...] = ()  # listeners whose port nobody listens on

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "state": str(self.fit),
            "why": self.why,
            "taken": self.taken,
            "notListening": list(self.silent),
        }


def enable(plan: Plan) -> None:
    """Put everything in place, whatever is there of ours. Raises SidecarError.

    Marked packets are delivered before any packet is marked, and if the ruleset is refused all is
    as it was.
    """
    text = ruleset(plan)
    if not plan.marks:
        nft.apply(text)
        marked.remove()
        return
    nft.apply(text, check=True)
    before = marked.marks()
    marked.add(plan.mark)
    try:
        nft.apply(text)
    except BaseException:
        if not before:
            marked.remove()
        raise


def disable() -> bool:
    """Take everything away; whether there was anything. Raises SidecarError."""
    there = nft.find() is not None or bool(marked.marks()) or marked.routes()
    nft.apply(removal())
    marked.remove()
    return there


def look(plan: Plan | None) -> State:
    """What is in place. Raises SidecarError."""
    found, rules, routes = nft.find(), marked.marks(), marked.routes()
    if found is None:
        left = "rules for routing are left of it: run `l7proxy sidecar disable`"
        return State(Fit.CHANGED, left) if rules or routes else State(Fit.NOTHING)
    taken = {
        name: one.packets
        for name, one in found.chains.items()
        if name.startswith(("redirect-", "tproxy-")) and name.count("-") > 1  # a listener's
    }
    if plan is None:
        return State(Fit.IN_PLACE, "", taken)
    listening = _listening()
    silent = tuple(one.name for one in plan.takings if one.port not in listening)
    text = ruleset(plan)
    if of(text) not in found.comments:
        return State(Fit.DIFFERS, "it is not what this policy asks for", taken, silent)
    if {name: one.rules for name, one in found.chains.items()} != _expected(text):
        return State(Fit.CHANGED, "its rules were changed by hand", taken, silent)
    if plan.marks and not (routes and plan.mark in rules):
        return State(Fit.CHANGED, "the routing of marked packets is missing", taken, silent)
    if not plan.marks and (rules or routes):
        return State(Fit.CHANGED, "routing of marked packets is left over", taken, silent)
    return State(Fit.FITS, "", taken, silent)


def _expected(text: str) -> dict[str, int]:
    """The number of rules in each chain of a ruleset of ours."""
    counts: dict[str, int] = {}
    name = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["chain"]:
            name = words[1]
            counts[name] = 0
        elif line.startswith("\t\t") and words[0] != "type":
            counts[name] += 1
    return counts


def _listening() -> set[int]:
    """The ports that somebody here listens on, on whatever address."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[3] == _LISTEN:
                found.add(int(words[1].rpartition(":")[2], 16))
    return found
