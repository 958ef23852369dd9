"""Metrics as text: the Prometheus text format 0.0.4, and OpenMetrics 1.0 for whoever asks for it.

Where the two differ:

- In OpenMetrics a counter's family is named without `_total`, and an info's without `_info`; in
  0.0.4 the family has the name that its samples have.
- 0.0.4 knows neither infos, which are gauges there, nor units nor `# EOF`.
- OpenMetrics wants the bounds of buckets as floats ("1.0"); 0.0.4 takes any number.

Names follow Prometheus: base units (seconds, bytes), a unit at the end of the name, `_total`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"

_UNITS = ("seconds", "bytes")
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})

Labels = tuple[str, ...]


class Kind(StrEnum):
    """What a family's samples are."""

    COUNTER = "counter"  # only grows, from 0 at the start of the process
    GAUGE = "gauge"
    INFO = "info"  # what matters is in its labels; its value is 1
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Distribution:
    """One histogram: `counts` of what fell into each bucket alone, the last one without a bound."""

    counts: Sequence[int]
    sum: float


@dataclass(frozen=True, slots=True)
class Family:
    """Samples of one name, which is written without `_total` or `_info`.

    Each sample has a value for each of `labels`, in that order. `bounds`: of the buckets of
    histograms, ascending, without the infinite one.
    """

    name: str
    kind: Kind
    help: str
    labels: Labels = ()
    samples: Sequence[tuple[Labels, int | float]] = ()
    distributions: Sequence[tuple[Labels, Distribution]] = ()
    bounds: Sequence[float] = field(default=())

    @property
    def unit(self) -> str:
        """The unit that the name ends in; empty where it has none."""
        last = self.name.rpartition("_")[2]
        return last if last in _UNITS else ""


def render(families: Iterable[Family], *, openmetrics: bool) -> bytes:
    """The whole text. A family without a sample is left out."""
    lines: list[str] = []
    for family in families:
        if family.samples or family.distributions:
            lines += _header(family, openmetrics=openmetrics)
            lines += _samples(family)
    if openmetrics:
        lines.append("# EOF")
    lines.append("")
    return "\n".join(lines).encode()


def _header(family: Family, *, openmetrics: bool) -> Iterator[str]:
    name, kind = family.name, family.kind
    if not openmetrics:
        name += _SUFFIXES[kind]
        kind = Kind.GAUGE if kind is Kind.INFO else kind
    yield f"# HELP {name} {family.help.translate(_ESCAPES) if openmetrics else family.help}"
    yield f"# TYPE {name} {kind.value}"
    if openmetrics and family.unit:
        yield f"# UNIT {name} {family.unit}"


_SUFFIXES = {Kind.COUNTER: "_total", Kind.GAUGE: "", Kind.INFO: "_info", Kind.HISTOGRAM: ""}


def _samples(family: Family) -> Iterator[str]:
    if family.kind is Kind.HISTOGRAM:
        for labels, one in family.distributions:
            yield from _buckets(family, labels, one)
        return
    name = family.name + _SUFFIXES[family.kind]
    for labels, value in family.samples:
        yield f"{name}{{{_pairs(family.labels, labels)}}} {value}" if labels else f"{name} {value}"


def _buckets(family: Family, labels: Labels, one: Distribution) -> Iterator[str]:
    pairs = _pairs(family.labels, labels)
    start = f'{family.name}_bucket{{{pairs}{"," if pairs else ""}le="'
    total = 0
    for bound, count in zip(family.bounds, one.counts, strict=False):
        total += count
        yield f'{start}{float(bound)}"}} {total}'
    total += one.counts[-1]
    yield f'{start}+Inf"}} {total}'
    inner = f"{{{pairs}}}" if pairs else ""
    yield f"{family.name}_sum{inner} {one.sum}"
    yield f"{family.name}_count{inner} {total}"


@lru_cache(maxsize=16_384)
def _pairs(names: Labels, values: Labels) -> str:
    """The inside of the braces. There may be thousands, the same ones in each scrape."""
    return ",".join(
        f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True)
    )


def wants_openmetrics(accept: str) -> bool:
    """Whether an `Accept` header prefers OpenMetrics to plain text (RFC 9110, 12.5.1).

    It has to be named: `*/*` means plain text, which everybody reads.
    """
    best, plain = 0.0, 0.0
    for item in accept.lower().split(","):
        media, *parameters = (part.strip() for part in item.split(";"))
        quality = next((_quality(one[2:]) for one in parameters if one[:2] == "q="), 1.0)
        versions = [one[8:].strip('"') for one in parameters if one[:8] == "version="]
        if media == "application/openmetrics-text" and versions in ([], ["1.0.0"], ["0.0.1"]):
            best = max(best, quality)
        elif media == "text/plain":
            plain = max(plain, quality)
    return best > 0 and best >= plain


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0
