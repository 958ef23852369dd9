"""The report as one HTML page that asks for nothing from outside and runs no script."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from pathlib import Path
from xml.etree.ElementTree import Element

from loadtest.results import Results

from . import scaling
from .bars import Overview
from .charts import Bars, draw
from .courses import Courses
from .curves import OpenLoops
from .figures import Figure, Group
from .markdown import TITLE
from .markup import add, document, node
from .statistics import Statistics
from .style import Style, styles
from .tables import (
    READING,
    Cell,
    Row,
    Section,
    Table,
    contender_table,
    facts,
    goal_table,
    invalid_table,
    sections,
)

SHEET = Path(__file__).with_name("style.css")


def html(results: Results) -> str:
    """The whole page."""
    return document(_Page(results).page())


class _Page:
    def __init__(self, results: Results) -> None:
        self._results = results
        self._statistics = Statistics(results)
        self._styles = styles(self._statistics.names)
        self._loops = OpenLoops(self._statistics, self._styles)
        self._courses = Courses(self._statistics, self._styles)
        self._charts = 0

    def page(self) -> Element:
        head = node(
            "head",
            node("meta", charset="utf-8"),
            node("meta", name="viewport", content="width=device-width, initial-scale=1"),
            node("meta", name="color-scheme", content="light dark"),
            node("title", f"{TITLE}, {self._results.head.date}"),
            node("style", SHEET.read_text() + _toggles(self._styles.values())),
        )
        body = node(
            "body",
            node("header", node("h1", TITLE), self._facts()),
            self._legend(),
            node("main", *self._main()),
        )
        return node("html", head, body, lang="en")

    def _facts(self) -> Element:
        found = node("dl", class_="facts")
        for name, value in facts(self._results):
            add(found, node("div", node("dt", name), node("dd", value)))
        versions = "; ".join(f"{title} {version}" for title, version in _versions(self._results))
        add(found, node("div", node("dt", "versions"), node("dd", versions)))
        return found

    def _legend(self) -> Element:
        """What each line is; without its tick, a contender leaves the line charts and tables."""
        legend = node("nav", class_="legend", aria_label="Contenders to show")
        for style in self._styles.values():
            box = node("input", type="checkbox", id=f"show-{style.key}", checked="")
            add(legend, node("label", box, _swatch(style), style.name, class_=style.classes))
        return legend

    # ---- sections ----------------------------------------------------------------------------

    def _main(self) -> Iterator[Element]:
        found = list(sections(self._statistics))
        yield self._contents(found)
        if (goals := goal_table(self._results)) is not None:
            section = _section("goals", "Goals")
            add(section, node("div", self._table(goals, "goals"), class_="scroll"))
            yield section
        for group in self._overview():
            section = _section(group.key, group.title)
            add(section, self._figures(group))
            if group.title == scaling.TITLE:
                tables = scaling.scaling_tables(self._statistics)
                add(section, *(node("div", self._table(one), class_="scroll") for one in tables))
            yield section
        for one in found:
            yield self._workload(one)
        yield from self._rest()

    def _overview(self) -> Iterator[Group]:
        yield from Overview(self._statistics, self._styles).groups()
        yield from self._courses.scaling()

    def _contents(self, found: Sequence[Section]) -> Element:
        links = [(one.workload.name, one.workload.title) for one in found]
        items = [node("li", node("a", title, href=f"#w-{name}")) for name, title in links]
        return node("details", node("summary", "Workloads"), node("ol", *items), class_="contents")

    def _workload(self, one: Section) -> Element:
        workload = one.workload
        section = _section(f"w-{workload.name}", workload.title)
        add(section, node("p", node("code", workload.name), class_="name"))
        groups = (*self._loops.groups(workload), *self._courses.memory(workload))
        for group in groups:
            add(section, node("h3", group.title), self._figures(group))
        for table in one.tables:
            add(section, node("div", self._table(table), class_="scroll"))
        return section

    def _rest(self) -> Iterator[Element]:
        section = _section("invalid", "Invalid samples")
        if invalid := self._statistics.invalid():
            add(
                section,
                node("div", self._table(invalid_table(invalid), "invalid"), class_="scroll"),
            )
        else:
            add(section, node("p", "None."))
        yield section
        section = _section("contenders", "Contenders")
        add(section, node("div", self._table(contender_table(self._results)), class_="scroll"))
        for one in self._results.contenders:
            if one.config:
                summary = node("summary", f"Configuration of {one.name}")
                add(section, node("details", summary, node("pre", one.config)))
        yield section
        section = _section("reading", "How to read it")
        add(section, *(node("p", text) for text in READING))
        yield section

    # ---- parts -------------------------------------------------------------------------------

    def _figures(self, group: Group) -> Element:
        return node(
            "div",
            node("p", group.caption, class_="caption"),
            node("div", *(self._figure(figure) for figure in group.figures), class_="figures"),
        )

    def _figure(self, figure: Figure) -> Element:
        self._charts += 1
        caption = figure.caption or figure.chart.title
        numbers = node(
            "details",
            node("summary", "Numbers"),
            node("div", self._table(figure.table, "small"), class_="scroll"),
        )
        found = node("figure", node("figcaption", caption))
        add(found, draw(figure.chart, f"chart{self._charts}"), numbers)
        if isinstance(figure.chart, Bars):
            found.set("class", "bars")
        return found

    def _table(self, table: Table, kind: str = "") -> Element:
        head = node("tr")
        for index, title in enumerate(table.head):
            add(head, node("th", title, scope="col", class_="" if index < table.words else "n"))
        body = node("tbody", *(self._row(table, row) for row in table.rows))
        return node("table", node("caption", table.caption), node("thead", head), body, class_=kind)

    def _row(self, table: Table, row: Row) -> Element:
        style = self._styles.get(row.contender)
        line = node("tr", class_=f"{style.classes} toggled" if style else "")
        for index, cell in enumerate(row.cells):
            if index == 0:
                add(line, node("th", _cell(cell), scope="row"))
            else:
                add(line, node("td", _cell(cell), class_="" if index < table.words else "n"))
        return line


def _section(key: str, title: str) -> Element:
    return node("section", node("h2", title), id=key)


def _cell(cell: Cell) -> Element:
    text = node("span", cell.text)
    if cell.value is not None and isfinite(cell.value):
        text = node("data", cell.text, value=repr(cell.value))
    if cell.span:
        return node("span", text, " ", node("small", cell.span))
    if cell.text in ("met", "not met"):
        text.set("class", cell.text.replace(" ", "-"))
    return text


def _swatch(style: Style) -> Element:
    return node(
        "svg",
        node("path", class_="line", d="M1,7H33"),
        node("path", class_="mark", d=style.marker(17, 7)),
        viewBox="0 0 34 14",
        aria_hidden="true",
        class_="swatch",
    )


def _toggles(styles: Iterable[Style]) -> str:
    return "".join(
        f"body:has(#show-{style.key}:not(:checked)) .toggled.{style.key}{{display:none}}\n"
        for style in styles
    )


def _versions(results: Results) -> Iterator[tuple[str, str]]:
    """Each program once."""
    seen = set()
    for one in results.contenders:
        program = (one.title.split(",")[0], one.version)
        if program not in seen:
            seen.add(program)
            yield program
