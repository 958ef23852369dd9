"""What the tests of backend groups are made of: a policy, a client, and who answered it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from proxy import PATIENCE, Proxy, until
from servers import Server


def policy(endpoints: list[str], more: str = "", listener: str = "", route: str = "") -> str:
    return f"""\
listeners:
  web: {{address: "127.0.0.1:0"{listener}}}
routes:
  - name: all
    backendRefs: [{{name: app}}]
{route}
backends:
  app:
    endpoints: {json.dumps(endpoints)}
{more}
"""


STREAM = ", protocol: TCP"


@contextlib.contextmanager
def running(policy: str, *, datapath: str = "splice2", **more: Any) -> Iterator[Proxy]:
    """A proxy with this policy, which has to stop well in the end."""
    with Proxy(policy, datapath, **more) as proxy:
        yield proxy
        proxy.stop()


class Answer:
    """What a client got."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.cookie = response.getheader("set-cookie")
        self.text = response.read().decode()


def get(proxy: Proxy, path: str = "/", **headers: str) -> Answer:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(*proxy.address("web"), timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        return Answer(connection.getresponse())


def names(proxy: Proxy, count: int, **headers: str) -> Counter[str]:
    """Who answered this many requests; all of them have to be answered well."""
    found: Counter[str] = Counter()
    for _ in range(count):
        answer = get(proxy, **headers)
        assert answer.status == 200, answer.text
        found[answer.text] += 1
    return found


def evenly(found: Counter[str]) -> bool:
    """In turns: each of two workers may be one off."""
    return set(found) == {"one", "two"} and abs(found["one"] - found["two"]) <= 2


class Stream:
    """A connection through a TCP listener; `name` is who answered, "" when it was reset."""

    def __init__(self, proxy: Proxy, source: str = "127.0.0.1") -> None:
        self.sock = socket.socket()
        self.sock.settimeout(PATIENCE)
        self.sock.bind((source, 0))
        try:
            self.sock.connect(proxy.address("web"))
            self.name = self.sock.recv(100).decode()
        except ConnectionError:
            self.name = ""

    def close(self) -> None:
        self.sock.close()


def finish(proxy: Proxy, streams: list[Stream]) -> None:
    """A clean end: every count of connections has to come back to nothing."""
    for one in streams:
        one.close()
    proxy.settled()
    group = shown(proxy)
    assert (group["connections"], group["pending"]) == (0, 0)
    assert [one["connections"] for one in group["endpoints"]] == [0] * len(group["endpoints"])


def shown(proxy: Proxy, address: str | None = None) -> Any:
    """The group in the statistics, or one endpoint of it."""
    group = proxy.stats()["backends"]["app"]
    if address is None:
        return group
    return next(one for one in group["endpoints"] if one["address"] == address)


def lines(proxy: Proxy, begin: str) -> list[str]:
    """Lines of the log that begin so, without time and level."""
    texts = [line[33:] for line in proxy.log().splitlines()]
    return [text for text in texts if text.startswith(begin)]


def told(proxy: Proxy, begin: str, *wanted: str) -> None:
    """The log has these lines that begin so, and no others, once whoever writes them has."""
    with contextlib.suppress(AssertionError):
        until(lambda: lines(proxy, begin) == list(wanted), "the log has them")
    assert lines(proxy, begin) == list(wanted)


def asking(proxy: Proxy, true: Callable[[], object]) -> Callable[[], object]:
    """For `until`: connections go on meanwhile."""

    def ask() -> object:
        get(proxy)
        return true()

    return ask


class Zone:
    """What names resolve to, for a proxy that is started with `entry`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "names.json"
        self.entry = ("-m", "tests.resolving", str(self._file))
        self.set({})

    def set(self, names: dict[str, list[str]]) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(names))
        new.chmod(0o644)
        new.rename(self._file)


NAMED = "    resolve: {interval: 1s}"

CHECK = "    healthCheck: {type: HTTP, path: /health, interval: 100ms, timeout: 5s}"


def state(proxy: Proxy, server: Server) -> str:
    """Of an endpoint, as the statistics have it."""
    found: str = shown(proxy, server.address)["state"]
    return found
