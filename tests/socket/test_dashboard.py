"""The Grafana dashboard asks for what a real scrape has: names, labels, and what each can be used
for.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from peers import Backend, Peer, connect
from proxy import Proxy, until
from scrapes import Scrape

pytestmark = [pytest.mark.net, pytest.mark.kernel]

DASHBOARD = Path(__file__).resolve().parents[2] / "docker/grafana/l7proxy.json"
ATTACHED = {"instance", "job"}  # labels that Prometheus gives to all that it scrapes

POLICY = """\
listeners:
  web: {{address: "127.0.0.1:0", limits: {{connections: 1}}}}
  each: {{address: "127.0.0.1:0"}}
routes:
  - {{name: all, listeners: [web], backendRefs: [{{name: app}}]}}
  - {{name: each, listeners: [each], splice: request, backendRefs: [{{name: app}}]}}
backends:
  app: {{endpoints: ["127.0.0.1:{port}"]}}
"""


@pytest.fixture(scope="module")
def board() -> Any:
    return json.loads(DASHBOARD.read_text())


@pytest.fixture(scope="module")
def scrape() -> Scrape:
    """Of a proxy that has spliced a connection, refused another one, and exchanged a request."""
    backend = Backend()

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").rest()

    backend.play(script)
    with Proxy(POLICY.format(port=backend.port), "sockmap") as proxy:
        with connect(proxy.address("web")) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").head()
            until(lambda: Scrape(proxy)["l7proxy_pairs", "way", "kernel"], "it is spliced")
            with suppress(ConnectionResetError), connect(proxy.address("web")) as other:
                other.ending()
            until(lambda: Scrape(proxy)["l7proxy_connections_refused_total"], "one is refused")
            client.half_close().rest()
        with connect(proxy.address("each")) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").head()
        proxy.settled()
        found = Scrape(proxy)
        proxy.stop()
    backend.finish()
    backend.close()
    return found


def expressions(board: Any) -> list[str]:
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    found += [one["expr"] for one in board["annotations"]["list"]]
    found += [one["query"]["query"] for one in board["templating"]["list"][1:]]
    return found


METRIC = re.compile(r"\b((?:l7proxy|process)_[a-z0-9_]+)(?:\{([^}]*)\})?")


def test_every_metric_that_it_asks_for_is_in_a_real_scrape(board: Any, scrape: Scrape) -> None:
    there = {one.name for one in scrape.samples}
    asked = {name for text in expressions(board) for name, _ in METRIC.findall(text)}
    assert asked - there == set()
    assert len(asked) > 40


def test_every_label_that_it_chooses_by_is_there(board: Any, scrape: Scrape) -> None:
    labels = {one.name: set(one.labels) | ATTACHED for one in scrape.samples}
    for text in expressions(board):
        names = METRIC.findall(text)
        for name, chosen in names:
            assert set(re.findall(r'(\w+)=?[=!~]+"', chosen)) <= labels[name], text
        by = {
            one.strip() for found in re.findall(r"by \(([^)]*)\)", text) for one in found.split(",")
        }
        for name, _ in names:
            assert by <= labels[name], text


def test_rates_are_of_counters_and_nothing_else_is(board: Any, scrape: Scrape) -> None:
    growing = {name for (name, _), _ in scrape.growing()}
    for text in expressions(board):
        rated = set(re.findall(r"(?:rate|increase)\((\w+)\{[^}]*\}\[\$__rate_interval\]\)", text))
        asked = {name for name, _ in METRIC.findall(text)}
        assert rated == asked & growing, text
        quantiles = re.findall(r"histogram_quantile\([\d.]+, sum by \(le\) \(rate\((\w+)\{", text)
        assert all(name.endswith("_bucket") for name in quantiles)


def test_values_of_labels_are_those_that_there_are(board: Any, scrape: Scrape) -> None:
    there: dict[str, set[str]] = {}
    for one in scrape.samples:
        for label, value in one.labels.items():
            there.setdefault(label, set()).add(value)
    asked = re.findall(r'\b(way|state|reason)=?[=!~]+"([^"]*)"', " ".join(expressions(board)))
    assert asked
    for label, values in asked:
        assert set(values.split("|")) <= there[label], label


def test_it_fits_together(board: Any, scrape: Scrape) -> None:
    labels = {one.name: set(one.labels) | ATTACHED for one in scrape.samples}
    panels = board["panels"]
    assert len({one["id"] for one in panels}) == len(panels)
    places = [one["gridPos"] for one in panels]
    assert all(one["x"] >= 0 and one["x"] + one["w"] <= 24 for one in places)
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
            assert len({one["refId"] for one in panel["targets"]}) == len(panel["targets"])
            for target in panel["targets"]:
                named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                by = set(
                    re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"])))
                )
                asked = METRIC.findall(target["expr"])
                shown = by or set().union(*(labels[name] for name, _ in asked))
                assert named <= shown, target


def test_every_metric_is_documented(scrape: Scrape) -> None:
    text = (DASHBOARD.parent / "README.md").read_text()
    told = {
        name: set(re.findall(r"\w+", labels))
        for name, labels in re.findall(r"^\| `(\w+)` \| ([^|]*)\|", text, re.M)
    }
    there: dict[str, set[str]] = {}
    for family in scrape.families:
        for one in family.samples:
            name = family.name if family.type == "histogram" else one.name
            there.setdefault(name, set()).update(one.labels.keys() - {"le"})
    assert told == there
