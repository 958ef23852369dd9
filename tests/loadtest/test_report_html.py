"""The page, read back as a browser would."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import made
import pytest

from loadtest import report
from loadtest.report.goals import GOALS
from loadtest.report.numbers import TIMES
from loadtest.report.statistics import Statistics, Where

VOID = {"meta", "input", "br"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    children: list[Node] = field(default_factory=list)
    words: str = ""

    def all(self, tag: str) -> list[Node]:
        found = [self] if self.tag == tag else []
        return found + [node for child in self.children for node in child.all(tag)]

    def text(self) -> str:
        return self.words + " ".join(child.text() for child in self.children)

    def kind(self) -> set[str]:
        return set(self.attributes.get("class", "").split())


class Reader(HTMLParser):
    """Fails on anything that is not closed in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].words += data


def read(text: str) -> Node:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


@pytest.fixture(scope="module")
def results():
    return made.made()


@pytest.fixture(scope="module")
def text(results):
    return report.html(results)


@pytest.fixture(scope="module")
def page(text):
    return read(text)


def section(page: Node, key: str) -> Node:
    [found] = [node for node in page.all("section") if node.attributes["id"] == key]
    return found


def tables(node: Node) -> list[Node]:
    """Those of a section that are not the numbers of a figure."""
    return [table for table in node.all("table") if "small" not in table.kind()]


def rows(table: Node) -> list[list[Node]]:
    [body] = table.all("tbody")
    return [row.all("th") + row.all("td") for row in body.all("tr")]


def titles(table: Node) -> list[str]:
    [head] = table.all("thead")
    return [title.text() for title in head.all("th")]


def number(cell: Node) -> float | None:
    data = cell.all("data")
    return float(data[0].attributes["value"]) if data else None


def test_it_loads_nothing_and_runs_nothing(page, text):
    def walk(node: Node) -> None:
        assert node.tag not in ("script", "link", "img", "iframe", "object", "embed", "image")
        for name, value in node.attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "srcset", "xlink:href", "action", "style")
            if name == "href":
                assert value.startswith("#")
        for child in node.children:
            walk(child)

    walk(page)
    [sheet] = page.all("style")
    assert "@import" not in sheet.words
    assert "url(" not in sheet.words
    assert "://" not in sheet.words


def test_links_lead_somewhere_and_no_id_is_there_twice(page):
    def ids(node: Node) -> list[str]:
        own = [node.attributes["id"]] if "id" in node.attributes else []
        return own + [one for child in node.children for one in ids(child)]

    found = ids(page)
    assert len(found) == len(set(found))
    for link in page.all("a"):
        assert link.attributes["href"].removeprefix("#") in found


def test_every_chart_is_told_to_those_who_do_not_see_it(page):
    figures = page.all("figure")
    assert len(figures) > 60
    for figure in figures:
        [svg] = figure.all("svg")
        title, description = svg.children[:2]
        assert (title.tag, description.tag) == ("title", "desc")
        assert title.text().strip()
        assert len(description.text()) > 40
        assert svg.attributes["role"] == "img"
        ids = [title.attributes["id"], description.attributes["id"]]
        assert svg.attributes["aria-labelledby"].split() == ids
        [table] = figure.all("table")
        assert rows(table)


def test_no_mark_is_outside_its_chart(page):
    for svg in [svg for figure in page.all("figure") for svg in figure.all("svg")]:
        _, _, width, height = map(float, svg.attributes["viewbox"].split())
        for path in svg.all("path"):
            for x, y in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", path.attributes["d"]):
                assert -1 <= float(x) <= width + 1
                assert -1 <= float(y) <= height + 1


def test_bars_begin_at_zero_and_are_as_long_as_their_numbers(page, results):
    statistics = Statistics(results)
    figures = section(page, "speed").all("figure")
    for figure, workload in zip(
        figures, (w for w in results.workloads if w.kind in ("rate", "stream")), strict=True
    ):
        where = Where(workload.name, "saturation")
        names = statistics.contenders(where)
        parts = [rect for rect in figure.all("rect") if "part" in rect.kind()]
        # An invalid sample of each round leaves a contender without a bar.
        found = [statistics.ratio(where, name, "rate", "direct") for name in names]
        medians = [one.median for one in found if one is not None]
        assert len(parts) == len(medians)
        assert len({rect.attributes["x"] for rect in parts}) == 1
        widths = [float(rect.attributes["width"]) for rect in parts]
        for width, median in zip(widths, medians, strict=True):
            assert width / widths[0] == pytest.approx(median / medians[0], rel=1e-4)


def test_numbers_of_a_table_are_the_statistics(page, results):
    statistics = Statistics(results)
    for workload in results.workloads:
        found = tables(section(page, f"w-{workload.name}"))
        loads = statistics.loads(workload.name)
        table = found[0]
        where = Where(workload.name, loads[0])
        columns = titles(table)
        unit = workload.unit if workload.unit == "GB" else f"{workload.unit}s"
        scale = 1.0
        if workload.kind == "memory":
            unit, scale = "MB", 1e3
        rate, valid = columns.index(f"{unit}/s"), columns.index("valid")
        names = statistics.contenders(where)
        assert [row[0].text().strip() for row in rows(table)] == names
        for name, row in zip(names, rows(table), strict=True):
            spread = statistics.spread(where, name, "rate")
            assert number(row[rate]) == (spread and spread.median * scale)
            taken = [s for s in results.samples if s.contender == name]
            taken = [s for s in taken if (s.workload, s.load) == (workload.name, loads[0])]
            good = sum(not s.problems for s in taken)
            assert row[valid].text().strip() == f"{good}/{len(taken)}"
            if loads[0] == "saturation" and name != "direct":
                assert columns[rate + 1 : rate + 3] == [f"{TIMES} direct", f"{TIMES} best peer"]
                ratio = statistics.ratio(where, name, "rate", "direct")
                assert number(row[rate + 1]) == (ratio and ratio.median)
                best = statistics.ratio_to_best(where, name, "rate", "higher")
                assert number(row[rate + 2]) == (best and best.median)
        if len(loads) == 1:
            continue
        p99 = titles(found[1]).index("p99, µs")
        latencies = {}
        for row in rows(found[1]):
            load = row[1].text().strip().removesuffix(" %")
            latencies[load, row[0].text().strip()] = number(row[p99])
        for load in loads[1:]:
            where = Where(workload.name, load)
            for name in statistics.contenders(where):
                spread = statistics.spread(where, name, "p99_us")
                finite = spread is not None and math.isfinite(spread.median)
                assert latencies[load, name] == (spread.median if finite else None)


def test_a_saturated_open_loop_has_no_latency_but_a_rate(page):
    [figures, loops] = tables(section(page, "w-requests-50"))
    rate, p99 = titles(loops).index("requests/s"), titles(loops).index("p99, µs")
    [often, seldom] = [
        row
        for name in ("envoy-http", "nginx-http")
        for row in rows(loops)
        if [cell.text().strip() for cell in row[:2]] == [name, "80 %"]
    ]
    assert often[p99].text().split()[0] == "saturated"
    assert number(often[rate]) is not None
    assert often[-1].text() == seldom[-1].text() == "5/5"
    assert number(seldom[p99]) is not None
    assert seldom[p99].text().strip().endswith("saturated")  # the greatest of the spread
    drawn = [figure.text() for figure in page.all("figure") if "at 80 % of" in figure.text()]
    [drawn] = [text for text in drawn if "Small requests on 50" in text]
    assert "envoy-http" not in drawn
    assert "nginx-http" in drawn
    assert "envoy-http" in figures.text()


def test_no_latency_is_told_of_saturation(page, results):
    for workload in results.workloads:
        for table in tables(section(page, f"w-{workload.name}")):
            if table.all("caption")[0].text() == "At saturation":
                assert not [title for title in titles(table) if re.match(r"p\d", title)]


def test_invalid_samples_are_listed_with_their_reasons_and_in_no_median(page, results):
    invalid = [s for s in results.samples if s.problems]
    assert len(invalid) > 10
    listed = [[c.text().strip() for c in row] for row in rows(tables(section(page, "invalid"))[0])]
    assert listed == [
        [
            s.workload,
            s.contender,
            str(s.round),
            f"{s.load} %" if s.load and s.load.isdigit() else s.load or "fixed",
            "; ".join(s.problems),
        ]
        for s in invalid
    ]
    # All of these are invalid: there is no number of them anywhere.
    [row] = [
        row
        for row in rows(tables(section(page, "w-upload-100m"))[0])
        if row[0].text().strip() == "envoy-http"
    ]
    assert {cell.text().strip() for cell in row[1:-1]} == {"-"}
    assert row[-1].text().strip() == "0/5"


def test_the_head_tells_what_the_figures_depend_on(page, results):
    [facts] = page.all("dl")
    said = facts.text()
    head = results.head
    for value in (head.date, head.command, head.kernel, head.processors, head.settings):
        assert value in said
    for contender in results.contenders:
        assert contender.version in said


def test_configurations_are_text_whatever_they_say(page, results):
    found = {node.text() for node in page.all("pre")}
    assert found == {contender.config for contender in results.contenders}


def test_a_contender_can_be_left_out_of_lines_and_tables(page):
    [sheet] = page.all("style")
    boxes = {node.attributes["id"] for node in page.all("input")}
    rules = set(re.findall(r"body:has\(#([\w-]+):not\(:checked\)\)", sheet.words))
    assert boxes == rules
    assert len(boxes) == 11


def test_goals_are_those_of_the_markdown(page, results):
    told = report.goals(results)
    assert len(told) == len(GOALS)
    cells = rows(tables(section(page, "goals"))[0])
    assert [number(row[2]) for row in cells] == [outcome.got.median for outcome in told]
    assert [row[3].text() for row in cells] == ["met" if o.met else "not met" for o in told]


def test_a_run_without_anything_has_a_report(results):
    empty = type(results)(results.head, [], [], [])
    assert "None." in section(read(report.html(empty)), "invalid").text()
    assert report.markdown(empty).startswith("# Load test\n")
