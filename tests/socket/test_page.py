"""The status page in a real browser: what it shows, and what it does not let itself in for.

The page is served by the real admin server; what it asks for is made up here, or comes from a proxy
that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browser import Browser, running
from peers import refusing_port
from proxy import Proxy, until

from l7proxy.admin import (
    Admin,
    Answer,
    Guard,
    Problem,
    Request,
    Router,
    Token,
    add_page,
    json_answer,
)
from l7proxy.net.adminsocket import open_admin
from l7proxy.telemetry.condition import condition

pytestmark = pytest.mark.net

HOSTILE = '<img src=x onerror="window.pwned=1">"\'><script>window.pwned=1</script>'


class Site:
    """The page, and a made-up l7proxy behind it: `told` is called for each path."""

    def __init__(self, token: str | None = None) -> None:
        self._token = token
        self.told: dict[str, Callable[[], Any]] = {}
        self.asked: list[str] = []
        self.query: dict[str, str] = {}  # of the latest request for connections
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def __enter__(self) -> Site:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(60)
        self._loop.close()

    async def _run(self) -> None:
        self._end = asyncio.Event()
        router = Router()
        add_page(router)
        for path in ("/stats", "/policy", "/connections"):
            router.add("GET", path, self._answer)
        opened = open_admin("127.0.0.1:0")
        server = Admin(router)
        token = Token(self._token) if self._token else None
        await server.start(opened.sock, Guard(token=token))
        self.port = opened.sock.getsockname()[1]
        self._ready.set()
        await self._end.wait()
        await server.close()
        opened.remove()
        await asyncio.sleep(0)

    async def _answer(self, request: Request) -> Answer:
        self.asked.append(request.path)
        if request.path not in self.told:
            raise Problem(503, "out of order")
        if request.path == "/connections":
            self.query = dict(request.query)
        return json_answer(self.told[request.path]())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def get(self, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response, response.read()


class Told:
    """A made-up l7proxy whose totals grow by the same at each reading."""

    def __init__(self, name: str = "api") -> None:
        self.name = name
        self.readings = 0
        self.states = ["up", "up"]
        self.ballast = 0  # characters that each answer has beside

    def stats(self) -> dict[str, Any]:
        self.readings += 1
        many = self.readings
        endpoints = [
            {
                "address": f"10.0.0.{number}:80",
                "state": state,
                "weight": 1,
                "connections": 3,
                "accepted": many * 2,
                "failures": 0,
                **({"why": f"refused {self.name}"} if state == "down" else {}),
            }
            for number, state in enumerate(self.states, 1)
        ]
        group = {"panic": False, "unresolved": [], "endpoints": endpoints}
        found = {
            "version": "1.2.3",
            "datapath": "sockmap",
            "datapath_reason": "the kernel passed the self-test",
            "workers": {"configured": 2, "running": 2, "restarts": 0},
            "uptime_seconds": 100.0 + many,
            "draining": False,
            "policy": {"generation": 1, "source": f"{self.name}.yaml", "last_error": None},
            "listeners": {self.name: {"address": "127.0.0.1:1", "protocol": "HTTP", "active": 6}},
            "connections": {"accepted": many * 4, "active": 6, "refused": 0},
            "pairs": {"active": 5, "spliced": 4, "relayed": 1},
            "bytes": {
                "redirected": {"from_client": 0, "from_backend": many * 3_000_000},
                "relayed": {"from_client": many * 500_000, "from_backend": many * 500_000},
            },
            "errors": {"bad_request": many, "stalled": 0},
            "ballast": f"{many} " * self.ballast,
            "backends": {self.name: group},
        }
        return found | {"condition": condition(found)}

    def connections(self) -> dict[str, Any]:
        listed = [
            {
                "id": f"0-{self.readings * 10 + number}",
                "worker": 0,
                "listener": self.name,
                "route": self.name,
                "backend": self.name,
                "endpoint": "10.0.0.1:80",
                "client": f"192.0.2.{number}:4000",
                "state": "spliced",
                "way": "kernel",
                "age_seconds": 100.0 - number,
                "idle_seconds": 0.5,
                "bytes": {"to_backend": 10, "to_client": 1000 * number + 990, "kernel": 500},
            }
            for number in range(6)
        ]
        ballast = f"{self.readings} " * self.ballast
        return {"connections": listed, "total": 6, "shown": 6, "ballast": ballast}

    def policy(self) -> dict[str, Any]:
        route = {"name": self.name, "file": f"{self.name}.yaml", "line": 7, "listeners": ["web"]}
        return {"generation": 1, "routes": [{**route, "splice": "request", "why": "as asked"}]}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with running() as browser:
        yield browser


@pytest.fixture(scope="module")
def house() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def site(house: Site, told: Told) -> Site:
    house.told = {"/stats": told.stats, "/connections": told.connections, "/policy": told.policy}
    house.asked.clear()
    return house


@pytest.fixture
def page(chromium: Browser, site: Site) -> Iterator[Browser]:
    """The page on an ordinary screen, with two readings, so that it knows rates."""
    chromium.size(1100, 900)
    chromium.prefers(color_scheme="light")
    chromium.visit(site.url)
    chromium.until("document.querySelector('#figures dd')?.textContent.endsWith('/s')")
    yield chromium
    chromium.visit("about:blank")


def text(page: Browser, selector: str) -> str:
    found: str = page.run(f"document.querySelector({json.dumps(selector)}).innerText")
    return found


def rows(page: Browser, table: str) -> list[list[str]]:
    found: list[list[str]] = page.run(
        f"[...document.querySelectorAll('#{table} tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return found


def shown(page: Browser, selector: str, wanted: str) -> None:
    found = f"document.querySelector({json.dumps(selector)})?.innerText"
    page.until(f"{found}?.includes({json.dumps(wanted)})")


# ---- how it is served


def test_it_is_served_with_a_strict_policy(site: Site) -> None:
    response, body = site.get("/")
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    rules = dict(
        rule.strip().split(" ", 1)
        for rule in response.headers["Content-Security-Policy"].split(";")
    )
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert b"<style" not in body
    assert b"onclick" not in body


def test_it_is_small_and_zipped_for_who_takes_that(site: Site) -> None:
    names = ["", "page/page.css", "page/icon.svg"]
    names += [
        f"page/{name}.js" for name in ("page", "chart", "format", "history", "readings", "table")
    ]
    size = zipped = 0
    for name in names:
        plain, body = site.get(f"/{name}")
        assert "Content-Encoding" not in plain.headers
        other, packed = site.get(f"/{name}", **{"Accept-Encoding": "gzip, deflate, br"})
        assert other.headers["Content-Encoding"] == "gzip"
        assert other.headers["Vary"] == "Accept-Encoding"
        assert gzip.decompress(packed) == body
        size, zipped = size + len(body), zipped + len(packed)
    assert size < 60_000
    assert zipped < 20_000
    refusing, _ = site.get("/", **{"Accept-Encoding": "gzip;q=0"})
    assert "Content-Encoding" not in refusing.headers


@pytest.mark.parametrize("path", ["/page/__init__.py", "/page/..%2fserver.py", "/page/nothing.js"])
def test_nothing_else_is_served(site: Site, path: str) -> None:
    assert site.get(path)[0].status == 404


# ---- what it shows


def test_it_shows_what_an_operator_asks_first(page: Browser, told: Told) -> None:
    assert text(page, "#condition h2") == "Healthy"
    assert page.run("document.title") == "l7proxy: healthy"
    figures = text(page, "#figures")
    assert "75.0 %" in figures  # 3 of 4 MB at each reading, whatever the second was
    assert "1 relayed" in figures
    about = text(page, "#about")
    assert "1.2.3" in about
    assert "2 of 2 workers" in about
    assert "api.yaml" in about
    assert rows(page, "listeners") == [["api", "HTTP", "127.0.0.1:1", "6"]]
    shown(page, "#routes", "api.yaml:7")
    assert rows(page, "routes") == [["api", "web", "request", "as asked", "api.yaml:7"]]
    assert [row[:3] for row in rows(page, "backends")] == [
        ["api", "10.0.0.1:80", "up"],
        ["api", "10.0.0.2:80", "up"],
    ]
    assert [row[0] for row in rows(page, "errors")] == ["bad_request"]
    told.states = ["up", "down"]
    shown(page, "#condition h2", "Works, but not all of it")
    assert "backend api: 1 of 2 endpoints are out" in text(page, "#condition")
    first = rows(page, "backends")[0]
    assert (first[1], first[2], first[-1]) == ("10.0.0.2:80", "down", "refused api")
    told.states = ["down", "down"]
    shown(page, "#condition h2", "Failing")
    assert page.run("document.title") == "! l7proxy: failing"


def test_the_charts_move(page: Browser) -> None:
    drawn = "[...document.querySelectorAll('.chart path')].map(path => path.getAttribute('d'))"
    before = page.run(drawn)
    assert len(before) == 8
    page.until(
        f"JSON.stringify({drawn}) !== {json.dumps(json.dumps(before, separators=(',', ':')))}"
    )
    page.until("document.querySelector('.area.kernel').getAttribute('d').length > 40")
    assert "kernel" in page.run("document.querySelector('.chart svg').getAttribute('aria-label')")
    assert [text(page, f"#windows button:nth-child({n})") for n in (1, 2, 3)] == [
        "5 min",
        "1 h",
        "24 h",
    ]
    page.run("document.querySelector('#windows button:nth-child(3)').click()")
    assert text(page, ".time").startswith("24 h ago")


def test_connections_are_sorted_and_filtered(page: Browser, site: Site) -> None:
    page.until("document.querySelectorAll('#connections tbody tr').length === 6")
    clients = lambda: [row[0].split(":")[0][-1] for row in rows(page, "connections")]  # noqa: E731
    press = "document.querySelectorAll('#connections th button')[{}].click()"
    page.run(press.format(1))  # bytes
    assert clients() == ["5", "4", "3", "2", "1", "0"]
    page.run(press.format(1))
    assert clients() == ["0", "1", "2", "3", "4", "5"]
    page.run(press.format(2))  # age
    assert clients() == ["0", "1", "2", "3", "4", "5"]
    ordered = "[...document.querySelectorAll('#connections th')].map(th => th.ariaSort)"
    assert page.run(ordered).count("descending") == 1
    page.run(
        "const it = document.getElementById('connections-filter');"
        "it.value = '192.0.2.3 SPLICED'; it.dispatchEvent(new Event('input'))"
    )
    assert clients() == ["3"]
    page.run("it.value = 'nobody'; it.dispatchEvent(new Event('input'))")
    shown(page, "#connections-more", "nothing is like that")
    until(lambda: site.query == {"limit": "100", "sort": "age"}, "what the order needs is asked")
    page.run("it.value = 'way:relay route:api'; it.dispatchEvent(new Event('input'))")
    assert len(clients()) == 6
    until(lambda: site.query.get("way") == "relay", "the proxy chooses")
    assert site.query == {"limit": "100", "sort": "age", "way": "relay", "route": "api"}


def test_a_proxy_that_does_not_answer_is_told_and_comes_back(page: Browser, site: Site) -> None:
    answers, site.told = site.told, {}
    shown(page, "#condition h2", "No answer")
    assert "503" in text(page, "#condition")
    assert page.run("document.title") == "! l7proxy: no answer"
    site.told = answers
    shown(page, "#condition h2", "Healthy")


def test_without_the_list_of_connections_the_rest_goes_on(page: Browser, site: Site) -> None:
    del site.told["/connections"]
    shown(page, "#connections-more", "503")
    assert text(page, "#condition h2") == "Healthy"


def test_pause_asks_for_nothing(page: Browser, site: Site) -> None:
    page.run("document.getElementById('pause').click()")
    assert page.run("document.getElementById('pause').ariaPressed") == "true"
    for _ in range(5):  # what is on its way may take a while
        site.asked.clear()
        page.run("new Promise(done => setTimeout(done, 1500))")
        if not site.asked:
            return
    raise AssertionError(f"it asks on: {site.asked}")


# ---- what it does not let itself in for


def test_nothing_is_asked_of_anybody_else(page: Browser, site: Site) -> None:
    shown(page, "#routes", "api.yaml:7")
    page.until("document.querySelectorAll('#connections tbody tr').length === 6")
    asked = page.requested()
    assert asked
    assert [url for url in asked if not url.startswith(site.url)] == []
    assert page.complaints() == []


def test_hostile_names_are_only_text(page: Browser, told: Told) -> None:
    told.name = HOSTILE
    told.states = ["down", "up"]
    shown(page, "#condition", HOSTILE)
    shown(page, "#about", HOSTILE)
    shown(page, "#connections td", "<img")
    assert rows(page, "listeners")[0][0] == HOSTILE
    assert rows(page, "backends")[0][0] == HOSTILE
    assert page.run("document.querySelectorAll('img, iframe, script:not([src])').length") == 0
    assert page.run("window.pwned === undefined")
    assert page.complaints() == []


def test_the_browser_would_not_run_what_slipped_in(page: Browser) -> None:
    page.run(
        "const script = document.createElement('script');"
        "script.textContent = 'window.slipped = 1'; document.body.append(script);"
        "const div = document.createElement('div');"
        "div.innerHTML = '<img src=x onerror=\"window.slipped = 1\">'; document.body.append(div)"
    )
    page.run("new Promise(done => setTimeout(done, 200))")
    assert page.run("window.slipped === undefined")
    assert any("Content Security Policy" in one for one in page.complaints())


HASTE = """
    const [timer, clock, begun] = [window.setTimeout, Date.now, Date.now()];
    window.setTimeout = (what, ms, ...rest) => timer(what, ms / 100, ...rest);
    Date.now = () => begun + (clock() - begun) * 100;
    performance.now = () => Date.now() - begun;
    performance.setResourceTimingBufferSize(0);
    AbortSignal.timeout = () => new AbortController().signal;
"""


def test_a_page_left_open_does_not_grow(page: Browser, site: Site, told: Told) -> None:
    """Readings follow each other at once, with other connections in each."""

    def after(readings: int) -> tuple[int, float]:
        site.asked.clear()
        until(lambda: site.asked.count("/connections") >= readings, f"{readings} readings", 180)
        page.events.clear()
        heaps = []
        for _ in range(3):  # what is on its way counts too, so the least is nearest to what is kept
            page.call("HeapProfiler.collectGarbage")
            told = page.call("Performance.getMetrics")["metrics"]
            heaps += [one["value"] for one in told if one["name"] == "JSHeapUsedSize"]
        return page.run("document.querySelectorAll('*').length"), min(heaps)

    told.ballast = 2000
    page.call("Network.disable")  # the browser keeps what it would tell
    hasty = page.call("Page.addScriptToEvaluateOnNewDocument", source=HASTE)["identifier"]
    try:
        page.visit(site.url)
        nodes, heap = after(70)  # what is remembered of the last minute is whole then
        later_nodes, later_heap = after(70)
    finally:
        page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=hasty)
        page.call("Network.enable")
    assert later_nodes == nodes
    # 70 answers that were kept would be more than twice as much
    assert later_heap - heap < 300_000, f"{later_heap - heap:,.0f} bytes more"


# ---- for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_into_400_pixels(page: Browser, told: Told, scheme: str) -> None:
    told.name = "a-name-that-is-longer-than-any-that-somebody-would-choose-" * 3
    told.states = ["down", "up"]
    page.size(400, 800)
    page.prefers(color_scheme=scheme)
    shown(page, "#condition", told.name)
    assert page.run("document.documentElement.scrollWidth") <= 400
    wide = page.run(
        "[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll'))"
        ".filter(one => one.getBoundingClientRect().right > 401).map(one => one.outerHTML)"
    )
    assert wide == []


def luminance(colour: str) -> float:
    """WCAG 2.2: relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(page: Browser, told: Told, scheme: str) -> None:
    told.states = ["down", "starting", "up"]
    page.prefers(color_scheme=scheme, reduced_motion="reduce")  # so that no colour fades in
    shown(page, "#condition h2", "Works")
    shown(page, "#backends", "starting")
    found = page.run(
        """[...document.querySelectorAll('main *, header *')].filter(one =>
            [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
        ).map(one => {
            let behind = one;
            while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') {
                behind = behind.parentElement;
            }
            return [one.textContent, getComputedStyle(one).color,
                    getComputedStyle(behind).backgroundColor];
        })"""
    )
    assert len(found) > 50
    dark = luminance(page.run("getComputedStyle(document.body).backgroundColor")) < 0.1
    assert dark == (scheme == "dark")
    for words, ink, paper in found:
        one, other = sorted((luminance(ink), luminance(paper)))
        assert (other + 0.05) / (one + 0.05) >= 4.5, (words, ink, paper)


def test_nothing_moves_for_who_wants_it_still(page: Browser) -> None:
    moving = (
        "[...document.querySelectorAll('*')].filter(one =>"
        " getComputedStyle(one).transitionDuration !== '0s'"
        " || getComputedStyle(one).animationName !== 'none').length"
    )
    page.prefers(reduced_motion="no-preference")
    assert page.run(moving) > 0
    page.prefers(reduced_motion="reduce")
    assert page.run(moving) == 0


def test_keys_reach_everything_and_everything_has_a_name(page: Browser) -> None:
    page.until("document.querySelectorAll('#connections tbody tr').length === 6")
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node["role"]["value"]
        for node in tree
        if node.get("role", {}).get("value") in ("button", "searchbox", "image", "region", "table")
        and node["role"]["value"] != "table"
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    heads = page.run("[...document.querySelectorAll('th')].every(th => th.scope)")
    assert heads
    stops = []
    for _ in range(40):
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="Tab", windowsVirtualKeyCode=9)
        stops.append(page.run("document.activeElement.id || document.activeElement.tagName"))
        if stops[-1] == "BODY":
            break  # once around

    assert "pause" in stops
    assert "backends-filter" in stops
    assert stops.count("svg") == 4  # the charts
    page.run("document.querySelector('.chart svg').focus()")
    for _ in range(2):
        page.call(
            "Input.dispatchKeyEvent",
            type="keyDown",
            key="ArrowLeft",
            code="ArrowLeft",
            windowsVirtualKeyCode=37,
        )
    assert page.run("!document.querySelector('.cursor').hasAttribute('hidden')")
    assert text(page, ".time span:last-child") != "now"


def test_with_a_token_the_password_of_the_browser_is_enough(page: Browser, told: Told) -> None:
    token = "0123456789abcdef"
    with Site(token) as site:
        site.told = {"/stats": told.stats, "/policy": told.policy}
        assert site.get("/")[0].status == site.get("/page/page.js")[0].status == 401
        page.visit(site.url.replace("//", f"//operator:{token}@"))
        shown(page, "#condition h2", "Healthy")
        shown(page, "#routes", "api.yaml:7")
        page.visit("about:blank")


# ---- with the real thing

POLICY = """\
listeners:
  web: {address: 127.0.0.1:0}
routes:
  - {name: nobody, matches: [{path: /nobody}], backendRefs: [{name: nobody}]}
  - {name: home, respond: {status: 200, body: hello}}
backends:
  nobody: {endpoints: ["127.0.0.1:{port}"]}
"""


def test_a_proxy_that_runs(page: Browser, site: Site) -> None:
    with Proxy(POLICY.replace("{port}", str(refusing_port())), "copy") as proxy:
        site.told |= {"/stats": proxy.stats}
        site.told["/connections"] = lambda: proxy.ask("GET", "/connections?sort=bytes")[1]
        site.told["/policy"] = lambda: proxy.ask("GET", "/policy")[1]
        page.visit(site.url)
        host, port = proxy.address("web")
        shown(page, "#listeners", f"{host}:{port}")
        for path in ("/", "/", "/nobody"):
            connection = http.client.HTTPConnection(host, port, timeout=60)
            with contextlib.closing(connection):
                connection.request("GET", path)
                connection.getresponse().read()
        shown(page, "#errors", "dial_refused")
        with socket.create_connection((host, port)) as silent:
            shown(page, "#connections", f"127.0.0.1:{silent.getsockname()[1]}")
        page.until("document.querySelectorAll('#figures dd')[9].textContent === '4 in all'")
        assert text(page, "#condition h2") == "Healthy"
        assert [row[:1] for row in rows(page, "backends")] == [["nobody"]]
        page.until("document.querySelectorAll('#routes tbody tr').length === 2")
        assert [row[:2] for row in rows(page, "routes")] == [["nobody", "web"], ["home", "web"]]
        assert rows(page, "routes")[0][4].endswith("policy.yaml:4")
        assert page.complaints() == []
        proxy.stop()
