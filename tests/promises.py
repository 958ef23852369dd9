"""What the comments of the sample policies promise: who asks what, and which route answers.

    #   curl -X POST -H 'Host: a.test' http://127.0.0.1:8080/x?y=1 -> route NAME    [STATUS] words
    #   tls 127.0.0.1:8443 a.test alpn=h2                          -> route NAME    words
    #   tls 127.0.0.1:8443 -                                       -> denied by route NAME
    #   nc ::1 9000                                                -> route NAME
    #   127.0.0.1:6379                                             -> route NAME    a bare stream
    #   any host, any path                                         -> 404        of the listener

A line in another form is an error, so that no promise goes untried.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from l7proxy.model import Hello, Request

FOLDER = Path(__file__).resolve().parents[1] / "policies"
SAMPLES = sorted(path.name for path in FOLDER.glob("*.yaml"))
TRANSPARENT = {"sidecar-interception.yaml"}  # nobody can connect to it: tests/sidecar

_LINE = re.compile(r"^#   (?P<what>\S.*?) +-> (?P<says>.*)$", re.MULTILINE)
_SAYS = re.compile(
    r"(?:(?P<denied>denied by )?route (?P<route>[\w-]+)|(?P<none>404))"
    r"(?: {2,}(?:(?P<status>[1-5][0-9]{2})(?= |$))?.*)?"
)
_STREAM = re.compile(r"(?P<at>(?:\[[0-9a-f:]+\]|[0-9.]+):\d+)(?P<any>, any host and path)?")


@dataclass(frozen=True, slots=True)
class Promise:
    """One line. `at` is the listener's address as the policy writes it, "" for the only one."""

    sample: str
    what: str
    at: str
    asks: tuple[Request | Hello | None, ...]  # None: a stream that nothing is read from
    route: str  # "" when no route answers
    status: int | None = None  # of an answer of l7proxy's own
    denied: bool = False


def read(sample: str) -> list[Promise]:
    """The promises of one sample."""
    found = []
    for line in _LINE.finditer((FOLDER / sample).read_text()):
        says = _SAYS.fullmatch(line["says"])
        assert says, f"{sample}: a promise that is not understood: {line['says']}"
        at, asks = _asks(line["what"])
        status = 404 if says["none"] else int(says["status"]) if says["status"] else None
        route = says["route"] or ""
        found.append(Promise(sample, line["what"], at, asks, route, status, bool(says["denied"])))
    return found


def _asks(what: str) -> tuple[str, tuple[Request | Hello | None, ...]]:
    words = shlex.split(what)
    if words[0] == "curl":
        return _curl(words[1:])
    if words[0] == "tls":
        at, name, *more = words[1:]
        protocols = tuple(more[0].removeprefix("alpn=").split(",")) if more else ()
        return at, (Hello("" if name == "-" else name, protocols),)
    if words[0] == "nc":
        host, port = words[1:]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", (None,)
    if what == "any host, any path":
        return "", _ANYTHING
    stream = _STREAM.fullmatch(what)
    assert stream, f"a promise that is not understood: {what}"
    return stream["at"], _ANYTHING if stream["any"] else (None,)


_ANYTHING = tuple(
    Request(host=host, path=path) for host in ("a.test", "b.a.test") for path in ("/", "/a/b")
)


def _curl(words: list[str]) -> tuple[str, tuple[Request, ...]]:
    method, headers, url = "GET", [], ""
    rest = iter(words)
    for word in rest:
        if word == "-X":
            method = next(rest)
        elif word == "-H":
            name, _, value = next(rest).partition(": ")
            headers.append((name.lower().encode(), value.encode()))
        else:
            url = word
    parts = urlsplit(url)
    at = parts.netloc
    named = dict(headers).get(b"host", b"").decode()
    if not named:
        headers.insert(0, (b"host", at.encode()))
    host = named or (parts.hostname or "")
    query = parts.query if "?" in url else None
    return at, (Request(method, host, parts.path or "/", query, tuple(headers)),)
