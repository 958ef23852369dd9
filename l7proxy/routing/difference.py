"""What another policy would change, in the terms of routing. Pure.

Two lists. *Changes* say what was written: listeners, routes and backends that came, went, moved or
have another value somewhere. *Effects* say what comes of it: requests made up from everything that
either policy asks for, whose answer is another one.

What is asked is in `probes`. Each answer that is told is a true one; a change that no probe meets
is not told.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice

from l7proxy.model import Location, Policy, Request, Respond
from l7proxy.routing.probes import Asked, Intercepted, Probes, shown
from l7proxy.routing.router import Router, compile_routers
from l7proxy.routing.rules import Rule

MOST_PROBES = 20_000
EXAMPLES = 3  # requests that are kept of those whose answers changed in the same way

Named = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A value, by the path of its name in the model ("timeouts.idle"); None: not there."""

    name: str
    old: object
    new: object


@dataclass(frozen=True, slots=True)
class Change:
    """Something that came, went, moved (a route: others stand before it now), or changed."""

    noun: str  # listener, route, backend; policy, for what is none of them
    name: str
    what: str  # added, removed, moved, changed
    fields: tuple[FieldChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Effect:
    """Requests of one listener that get another answer. `asked`: a few of them, `count` of all."""

    listener: str
    old: str
    new: str
    asked: tuple[Asked, ...]
    count: int

    def __str__(self) -> str:
        more = f" and {self.count - 1:,} more" if self.count > 1 else ""
        return f"{shown(self.asked[0])}{more} on {self.listener}: {self.old} -> {self.new}"


@dataclass(frozen=True, slots=True)
class Difference:
    """All of it. `probes` were asked; `complete`: every combination was among them."""

    changes: tuple[Change, ...]
    effects: tuple[Effect, ...]
    probes: int
    complete: bool

    def __bool__(self) -> bool:
        return bool(self.changes or self.effects)


def difference(old: Policy, new: Policy, most: int = MOST_PROBES) -> Difference:
    """What `new` would change. Time is linear in the policies and in `most`."""
    before = {route.name: route for route in old.routes}
    after = {route.name: route for route in new.routes}
    changes = [
        *_changes("listener", old.listeners, new.listeners),
        *_changes("route", before, after),
        *(Change("route", name, "moved") for name in _moved(list(before), list(after))),
        *_changes("backend", old.backends, new.backends),
        *_changes("policy", {"accessLog": old.access_log}, {"accessLog": new.access_log}),
    ]
    urgent = {change.name for change in changes if change.noun == "route"}
    effects, probes, complete = _effects(old, new, most, urgent)
    return Difference(tuple(changes), tuple(effects), probes, complete)


# ---- what was written


def _changes(noun: str, old: Named, new: Named) -> Iterator[Change]:
    for name in old:
        if name not in new:
            yield Change(noun, name, "removed")
    for name, value in new.items():
        if name not in old:
            yield Change(noun, name, "added")
        elif found := tuple(_fields("", old[name], value)):
            yield Change(noun, name, "changed", found)


def _fields(name: str, old: object, new: object) -> Iterator[FieldChange]:
    if _same(old, new):
        return
    # What is told field by field: nouns and the groups in them, not values such as an address.
    if is_dataclass(old) and type(old) is type(new) and type(old).__str__ is object.__str__:
        for one in fields(old):
            inner = f"{name}.{one.name}" if name else one.name
            yield from _fields(inner, getattr(old, one.name), getattr(new, one.name))
    else:
        yield FieldChange(name, old, new)


def _same(old: object, new: object) -> bool:
    """Whether two values say the same, wherever they stand."""
    if old is new or isinstance(old, Location) or isinstance(new, Location):
        return True
    if isinstance(old, tuple) and isinstance(new, tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    if is_dataclass(old) and type(old) is type(new):
        return all(
            one.name == "location" or _same(getattr(old, one.name), getattr(new, one.name))
            for one in fields(old)
        )
    return old == new


def _moved(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """The fewest names that have to be moved to turn the old order into the new one.

    They are those outside of a longest increasing subsequence of the old places (patience sorting).
    """
    places = {name: at for at, name in enumerate(old)}
    common = [name for name in new if name in places]
    piles: list[int] = []  # the least place that ends an increasing run of each length
    ends: list[str] = []
    before: dict[str, str] = {}
    for name in common:
        place = places[name]
        low, high = 0, len(piles)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if piles[middle] < place else (low, middle)
        piles[low : low + 1] = [place]
        ends[low : low + 1] = [name]
        if low:
            before[name] = ends[low - 1]
    kept: set[str] = set()
    last = ends[-1] if ends else None
    while last is not None:
        kept.add(last)
        last = before.get(last)
    return [name for name in common if name not in kept]


# ---- what comes of it


def _effects(
    old: Policy, new: Policy, most: int, urgent: Container[str]
) -> tuple[list[Effect], int, bool]:
    shared = [
        (one, new.listeners[name])
        for name, one in old.listeners.items()
        if name in new.listeners and new.listeners[name].protocol is one.protocol
    ]
    routers = compile_routers(old), compile_routers(new)
    texts: dict[int, str] = {}
    found: dict[tuple[str, str, str], list[Asked]] = {}
    counts: dict[tuple[str, str, str], int] = {}
    probes, complete = 0, True
    for listener, changed in shared:
        asked = Probes(((old, listener), (new, changed)), urgent)
        for probe in islice(asked.all(), most - probes):
            probes += 1
            one, two = (_answer(r[listener.name], probe, texts) for r in routers)
            if one != two:
                key = (listener.name, one, two)
                counts[key] = counts.get(key, 0) + 1
                examples = found.setdefault(key, [])
                if len(examples) < EXAMPLES:
                    examples.append(probe)
        complete = complete and probes < most
    effects = [Effect(*key, tuple(examples), counts[key]) for key, examples in found.items()]
    return effects, probes, complete


def _answer(router: Router, asked: Asked, texts: dict[int, str]) -> str:
    """What a listener does with a probe, in few words."""
    plain, destination = (
        (asked.asked, asked.destination) if isinstance(asked, Intercepted) else (asked, None)
    )
    rule = (
        router.find(plain, destination)
        if isinstance(plain, Request)
        else router.find_stream(plain, destination)
    )
    if rule is None:
        return "no route"
    if isinstance(rule, Respond):
        return str(rule.status)
    key = id(rule)
    if key not in texts:
        texts[key] = _does(rule)
    return texts[key]


def _does(rule: Rule) -> str:
    route = rule.route
    if route.redirect is not None:
        return f"{route.name} (redirect {route.redirect.status})"
    if route.respond is not None:
        return f"{route.name} (respond {route.respond.status})"
    if route.deny:
        return f"{route.name} (deny)"
    refs = [ref for ref in route.backend_refs if ref.weight]
    total = sum(ref.weight for ref in refs)
    shares = ", ".join(
        ref.name if len(refs) == 1 else f"{ref.name} {ref.weight}/{total}" for ref in refs
    )
    return f"{route.name} (backend {shares or 'none'})"
