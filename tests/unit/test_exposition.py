"""Metrics as text: read back by Prometheus's own parsers, in both formats."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser

from l7proxy.telemetry.exposition import Distribution, Family, Kind, render, wants_openmetrics


def parsed(families: list[Family], *, openmetrics: bool) -> dict[str, Metric]:
    """What Prometheus makes of them, by name."""
    text = render(families, openmetrics=openmetrics).decode()
    read = openmetrics_parser if openmetrics else parser
    return {one.name: one for one in read.text_string_to_metric_families(text)}


FAMILIES = [
    Family("app_build", Kind.INFO, "What runs.", ("version",), [(("1",), 1)]),
    Family("app_bytes", Kind.COUNTER, "Bytes.", ("way", "to"), [(("kernel", "a"), 2**60)]),
    Family("app_live", Kind.GAUGE, "Alive.", samples=[((), 7)]),
    Family(
        "app_wait_seconds",
        Kind.HISTOGRAM,
        "Waits.",
        ("who",),
        distributions=[(("a",), Distribution((1, 0, 2, 4), 9.5))],
        bounds=(0.5, 1, 2.5),
    ),
    Family("app_none", Kind.GAUGE, "There is no sample of it."),
]


@pytest.mark.parametrize("openmetrics", [False, True])
def test_both_formats_say_the_same(openmetrics: bool) -> None:
    found = parsed(FAMILIES, openmetrics=openmetrics)
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for one in found.values()
        for sample in one.samples
    }
    who = ("who", "a")
    assert values == {
        ("app_build_info", ("version", "1")): 1,
        ("app_bytes_total", ("to", "a"), ("way", "kernel")): 2**60,
        ("app_live",): 7,
        ("app_wait_seconds_bucket", ("le", "0.5"), who): 1,
        ("app_wait_seconds_bucket", ("le", "1.0"), who): 1,
        ("app_wait_seconds_bucket", ("le", "2.5"), who): 3,
        ("app_wait_seconds_bucket", ("le", "+Inf"), who): 7,
        ("app_wait_seconds_count", who): 7,
        ("app_wait_seconds_sum", who): 9.5,
    }
    kinds = {name: one.type for name, one in found.items()}
    assert kinds == {
        **({"app_build": "info"} if openmetrics else {"app_build_info": "gauge"}),
        "app_bytes": "counter",
        "app_live": "gauge",
        "app_wait_seconds": "histogram",
    }
    assert {name: one.unit for name, one in found.items() if one.unit} == (
        {"app_bytes": "bytes", "app_wait_seconds": "seconds"} if openmetrics else {}
    )


def test_a_histogram_without_labels() -> None:
    family = Family(
        "wait_seconds",
        Kind.HISTOGRAM,
        "Waits.",
        distributions=[((), Distribution((0, 1), 3.0))],
        bounds=(1.0,),
    )
    for openmetrics in (False, True):
        (one,) = parsed([family], openmetrics=openmetrics).values()
        assert [sample.value for sample in one.samples] == [0, 1, 3.0, 1]
        assert not math.isnan(one.samples[2].value)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2))
def test_labels_come_back_as_they_were(labels: list[str]) -> None:
    family = Family("a", Kind.GAUGE, "A.", ("one", "two"), [((labels[0], labels[1]), 1)])
    for openmetrics in (False, True):
        (found,) = parsed([family], openmetrics=openmetrics).values()
        assert found.samples[0].labels == {"one": labels[0], "two": labels[1]}


PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (PROMETHEUS, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8", True),
        ('application/openmetrics-text; version="1.0.0"', True),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=nonsense", False),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.9", False),
        ("text/plain", False),
        ("*/*", False),
        ("", False),
        (";;,,=;q", False),
    ],
)
def test_who_gets_openmetrics(accept: str, wanted: bool) -> None:
    assert wants_openmetrics(accept) is wanted
