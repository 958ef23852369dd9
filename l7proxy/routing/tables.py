"""Where the rules of a listener are looked up: by hostname, then by path, then in their rank.

A table of one hostname has the rules of each exact path and of each prefix in a list of their own,
found by one look-up, and all regular expressions in one. A list is sorted, so that the first rule
that holds is its best; what stands behind a rule without conditions can never win, and is dropped.

Priorities would make the order of the tables wrong: a rule on a shorter prefix may beat one on a
longer. So the search goes on as long as there may be something with a higher priority, and each
table and each list knows the highest that it has. Where all priorities are equal it ends with the
first find.
"""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

from l7proxy.model import PathType
from l7proxy.routing.claims import compared_path
from l7proxy.routing.conditions import Facts
from l7proxy.routing.hosts import suffixes
from l7proxy.routing.rules import Rule

_LOWEST = -(1 << 62)
_rank = attrgetter("rank")


def insert(rules: list[Rule], rule: Rule) -> None:
    """Put a rule where it ranks, and drop what could never win there."""
    if rules and not rules[-1].conditions and rules[-1].rank < rule.rank:
        return
    insort(rules, rule, key=_rank)
    if not rule.conditions:
        del rules[rules.index(rule) + 1 :]


def first(rules: list[Rule], facts: Facts, floor: int) -> Rule | None:
    """The best rule that holds and has a higher priority than `floor`."""
    for rule in rules:
        if rule.priority <= floor:
            return None
        if not rule.conditions or rule.holds(facts):
            return rule
    return None


class Paths:
    """The rules of one hostname. Cost of `find`: the elements of its longest prefix, at most."""

    __slots__ = ("exact", "longest", "patterns", "prefixes", "top")

    def __init__(self) -> None:
        self.exact: dict[str, list[Rule]] = {}
        self.prefixes: dict[str, list[Rule]] = {}  # "/" is "" here, "/abc/" is "/abc"
        self.patterns: list[Rule] = []
        self.longest = 0  # characters of a prefix
        self.top = _LOWEST  # the highest priority

    def add(self, rule: Rule) -> None:
        """Take in a rule."""
        path = rule.match.path
        value = compared_path(path)
        self.top = max(self.top, rule.priority)
        if path.type is PathType.EXACT:
            insert(self.exact.setdefault(value, []), rule)
        elif path.type is PathType.PATH_PREFIX:
            insert(self.prefixes.setdefault(value, []), rule)
            self.longest = max(self.longest, len(value))
        else:
            insort(self.patterns, rule, key=_rank)

    def find(self, path: str, facts: Facts, best: Rule | None) -> Rule | None:
        """The best rule for a path, `best` when none has a higher priority than that one."""
        floor = _LOWEST if best is None else best.priority
        top = self.top
        if top <= floor:
            return best
        rules = self.exact.get(path)
        if rules is not None and (rule := first(rules, facts, floor)) is not None:
            best, floor = rule, rule.priority
            if floor == top:
                return best
        if self.patterns and (found := self._by_pattern(path, facts, floor)) is not None:
            best, floor = found, found.priority
            if floor == top:
                return best
        # A prefix can end only where an element ends. Looking no further than the longest pattern
        # bounds the work by the policy: a client cannot buy time with a path of a thousand slashes.
        end = len(path)
        if end > self.longest:
            end = path.rfind("/", 0, self.longest + 1)
        prefixes = self.prefixes
        while end > 0:
            rules = prefixes.get(path[:end])
            if rules is not None and (rule := first(rules, facts, floor)) is not None:
                best, floor = rule, rule.priority
                if floor == top:
                    return best
            end = path.rfind("/", 0, end)
        rules = prefixes.get("")
        return best if rules is None else first(rules, facts, floor) or best

    def _by_pattern(self, path: str, facts: Facts, floor: int) -> Rule | None:
        text = path.encode("utf-8", "replace")
        for rule in self.patterns:
            if rule.priority <= floor:
                return None
            pattern = rule.pattern
            if rule.holds(facts) and pattern is not None and pattern.matches(text):
                return rule
        return None


class Hosts:
    """The rules of one listener."""

    __slots__ = ("_every", "_exact", "_longest", "_wildcards")

    def __init__(self) -> None:
        self._exact: dict[str, Paths] = {}
        self._wildcards: dict[str, Paths] = {}  # "*.example.com" is ".example.com" here
        self._every = Paths()
        self._longest = 0  # characters of a wildcard

    def add(self, host: str, rule: Rule) -> None:
        """Take in a rule for one hostname pattern, "" for every host."""
        host = host.lower()
        if not host:
            paths = self._every
        elif host.startswith("*."):
            paths = self._wildcards.setdefault(host[1:], Paths())
            self._longest = max(self._longest, len(host) - 1)
        else:
            paths = self._exact.setdefault(host, Paths())
        paths.add(rule)

    def find(self, host: str, path: str, facts: Facts) -> Rule | None:
        """The rule that wins; `path` is a reading."""
        best: Rule | None = None
        paths = self._exact.get(host)
        if paths is not None:
            best = paths.find(path, facts, best)
        if self._wildcards:
            for suffix in suffixes(host, self._longest):
                paths = self._wildcards.get(suffix)
                if paths is not None:
                    best = paths.find(path, facts, best)
        return self._every.find(path, facts, best)
