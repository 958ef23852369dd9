"""The status page, `GET /`: one static page that asks `/stats` and shows it moving.

It is what stands in this folder: nothing is built, and nothing is put into it for anybody, for all
names and figures come by JSON and become text. So its policy can be strict: scripts and styles of
this server only, no inline ones, no other address, no frame.

    page.js       asks, and writes into index.html; the only one with state
    readings.js   what two readings say together          pure
    history.js    averages over steps of time             pure
    format.js     numbers for people                      pure
    chart.js, table.js                                    a chart, a table
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from l7proxy.admin.message import Answer, Problem, Request
from l7proxy.admin.router import Router

INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Vary", "Accept-Encoding"),
)


@dataclass(frozen=True, slots=True)
class _Asset:
    content_type: str
    body: bytes
    zipped: bytes


@cache
def _assets() -> dict[str, _Asset]:
    """All files by their names, read when the first one is asked for."""
    found = {}
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in _TYPES:
            body = path.read_bytes()
            found[path.name] = _Asset(_TYPES[path.suffix], body, gzip.compress(body, 9, mtime=0))
    return found


def add_page(router: Router) -> None:
    """Have the router answer `/`, and `/page/{name}` for what the page is made of."""
    router.add("GET", "/", _answer)
    router.add("GET", "/page/{name}", _answer)


async def _answer(request: Request) -> Answer:
    asset = _assets().get(request.arguments.get("name", INDEX))
    if asset is None:
        raise Problem(404, "the page has no such part")
    if _takes_gzip(request.header(b"accept-encoding") or ""):
        headers = (("Content-Encoding", "gzip"), *_HEADERS)
        return Answer(200, asset.zipped, asset.content_type, headers)
    return Answer(200, asset.body, asset.content_type, _HEADERS)


def _takes_gzip(accepted: str) -> bool:
    """RFC 9110, 12.5.3; a browser writes `gzip, deflate, br`, and `gzip;q=0` is a no."""
    for one in accepted.lower().split(","):
        coding, _, parameters = one.partition(";")
        if coding.strip() == "gzip":
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
