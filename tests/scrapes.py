"""What `GET /metrics` says, as Prometheus's own parser reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from proxy import Proxy

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Scrape:
    """One look. `scrape["name", "label", "value", ...]` is the sum of what has these labels."""

    def __init__(self, proxy: Proxy) -> None:
        status, headers, body = proxy.get("/metrics", Accept=OPENMETRICS)
        assert status == 200, body
        assert headers["Content-Type"].startswith(OPENMETRICS)
        self.size = len(body)
        self.families = list(text_string_to_metric_families(body.decode()))
        self.samples: list[Sample] = [one for family in self.families for one in family.samples]

    def __getitem__(self, wanted: tuple[str, ...] | str) -> float:
        return sum(one.value for one in self.find(wanted))

    def find(self, wanted: tuple[str, ...] | str) -> list[Sample]:
        """The samples of this name that have these labels, others or not."""
        name, *labels = (wanted,) if isinstance(wanted, str) else wanted
        pairs = set(zip(labels[::2], labels[1::2], strict=True))
        return [one for one in self.samples if one.name == name and pairs <= one.labels.items()]

    def growing(self) -> Iterator[tuple[Any, float]]:
        """All that must never become less: counters, and the counts of histograms."""
        for family in self.families:
            if family.type in ("counter", "histogram"):
                for one in family.samples:
                    yield (one.name, frozenset(one.labels.items())), one.value


def no_way_back(before: Scrape, after: Scrape) -> None:
    """Everything that was there is there, and no smaller."""
    later = dict(after.growing())
    less = {key: (value, later.get(key)) for key, value in before.growing() if key not in later}
    less |= {key: (value, later[key]) for key, value in before.growing() if later[key] < value}
    assert less == {}
