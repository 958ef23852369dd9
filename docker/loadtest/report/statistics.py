"""From samples to what is told: medians over the rounds, spreads, ratios, percentiles.

Rules:

- Only valid samples count.
- A ratio is taken within a round and then the median of the ratios is told, never the ratio of two
  medians: what drifted between rounds drifted for both.
- The best peer is the best of its round, for this figure: another one may win the next round.
- The latency of an open loop that was saturated is above any other: it is infinite. So it is in the
  median as what it was, and is never quoted: where half of the rounds or more were saturated there
  is no number, and who was saturated now and then is not told by its better rounds alone. Of a
  ratio, a round whose base was saturated says nothing.
- A spread is the least and the greatest of what the median was taken of. With five rounds a
  quartile would be one sample all the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from loadtest.results import Results, Sample

Better = Literal["higher", "lower"]
DIRECT = "direct"

LATENCY = re.compile(r"(\w+_)?p\d+_us")

# Fewer latencies than this beyond a percentile, and it would be the story of a few of them.
TAIL = 5


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of `count` values, the least and the greatest of them."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None of no value."""
        found = list(values)
        return cls(median(found), min(found), max(found), len(found)) if found else None


@dataclass(frozen=True, slots=True)
class Where:
    """The samples that are compared with each other: those of one workload under one load."""

    workload: str
    load: str | None


class Statistics:
    """What a run's samples say."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.names = [contender.name for contender in results.contenders]
        self.peers = [contender.name for contender in results.contenders if contender.peer]
        self._samples: dict[tuple[Where, str], list[Sample]] = {}
        for sample in results.samples:
            where = Where(sample.workload, sample.load)
            self._samples.setdefault((where, sample.contender), []).append(sample)

    def loads(self, workload: str) -> list[str | None]:
        """Those that a workload has samples of, in the order in which they were first taken."""
        return list(dict.fromkeys(w.load for w, _ in self._samples if w.workload == workload))

    def contenders(self, where: Where) -> list[str]:
        """Who was measured there, in the order of the tables."""
        return [name for name in self.names if (where, name) in self._samples]

    def taken(self, where: Where, contender: str) -> list[Sample]:
        """All of its samples, the invalid ones too."""
        return self._samples.get((where, contender), [])

    def valid(self, where: Where, contender: str) -> list[Sample]:
        """Its samples that count."""
        return [sample for sample in self.taken(where, contender) if sample.valid]

    def keys(self, where: Where) -> set[str]:
        """The figures that a valid sample there has."""
        return {
            key
            for name in self.contenders(where)
            for sample in self.valid(where, name)
            for key in sample.figures
        }

    def values(self, where: Where, contender: str, key: str) -> dict[int, float]:
        """A figure by round."""
        return {
            sample.round: value
            for sample in self.valid(where, contender)
            if not math.isnan(value := _figure(sample, key))
        }

    def spread(self, where: Where, contender: str, key: str) -> Spread | None:
        """A figure over the rounds; None without a valid sample that has it."""
        return Spread.of(self.values(where, contender, key).values())

    def ratio(self, where: Where, contender: str, key: str, base: str) -> Spread | None:
        """Contender / base within each round that has both; None without such a round.

        A round in which the base is not above zero (memory that shrank), or is infinite, says
        nothing.
        """
        return _ratios(self.values(where, contender, key), self.values(where, base, key))

    def growth(self, where: Where, base: Where, contender: str, key: str) -> Spread | None:
        """A contender there / the same one at `base`, within each round that has both."""
        return _ratios(self.values(where, contender, key), self.values(base, contender, key))

    def ratio_to_best(
        self, where: Where, contender: str, key: str, better: Better
    ) -> Spread | None:
        """Contender / the best peer of the same round. Peers are compared with themselves too: the
        best of them has 1."""
        return _ratios(self.values(where, contender, key), self.best(where, key, better))

    def best(self, where: Where, key: str, better: Better) -> dict[int, float]:
        """What the best peer of each round reached."""
        pick = max if better == "higher" else min
        rounds: dict[int, list[float]] = {}
        for peer in self.peers:
            for number, value in self.values(where, peer, key).items():
                rounds.setdefault(number, []).append(value)
        return {number: pick(values) for number, values in rounds.items()}

    def latency(
        self, where: Where, contender: str, percentiles: Sequence[float]
    ) -> list[tuple[float, Spread]]:
        """(percentile, latency in us over the rounds), as far into the tail as samples reach;
        nothing where half of the rounds or more were saturated."""
        valid = self.valid(where, contender)
        histograms = [s.histogram for s in valid if s.histogram]
        infinite = [math.inf for s in valid if s.saturated]
        told = []
        for percentile in percentiles:
            found = [quantile(histogram, percentile) for histogram in histograms]
            spread = Spread.of([*(value for value in found if value is not None), *infinite])
            if spread is None or not math.isfinite(spread.median):
                continue
            if spread.count == len(histograms) + len(infinite):
                told.append((percentile, spread))
        return told

    def series(
        self, where: Where, contender: str, key: str, points: int = 24
    ) -> list[tuple[float, Spread]]:
        """(seconds, a figure of a series over the rounds) at evenly spaced times, as long as every
        round has it. At each time, a round has what it last read."""
        rounds = [
            [(point["t"], point[key]) for point in sample.series if key in point]
            for sample in self.valid(where, contender)
            if sample.series
        ]
        rounds = [series for series in rounds if series]
        if not rounds:
            return []
        first = max(series[0][0] for series in rounds)
        last = min(series[-1][0] for series in rounds)
        steps = max(points - 1, 1)
        told = []
        for step in range(points):
            at = first + (last - first) * step / steps
            read = [next((v for t, v in reversed(s) if t <= at), s[0][1]) for s in rounds]
            spread = Spread.of(read)
            assert spread is not None
            told.append((at, spread))
        return told

    def invalid(self) -> list[Sample]:
        """What was taken and enters no median."""
        return [sample for sample in self.results.samples if not sample.valid]


def quantile(histogram: Sequence[tuple[float, int]], percentile: float) -> float | None:
    """The least latency that `percentile` % of all are at or below (nearest rank); None where
    fewer than TAIL are above that rank. The histogram is in ascending order."""
    total = sum(count for _, count in histogram)
    rank = math.ceil(total * percentile / 100 - 1e-9)
    if total - rank < TAIL:
        return None
    seen = 0
    for latency, count in histogram:
        seen += count
        if seen >= rank:
            return latency
    return None


def _figure(sample: Sample, key: str) -> float:
    """NaN where it has none."""
    if sample.saturated and LATENCY.fullmatch(key):
        return math.inf
    return sample.figures.get(key, math.nan)


def _ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Spread | None:
    both = sorted(ours.keys() & theirs.keys())
    return Spread.of(
        ours[number] / theirs[number] for number in both if 0 < theirs[number] < math.inf
    )
