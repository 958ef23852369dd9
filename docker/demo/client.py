"""The client of ../compose.yaml: requests through the sidecar, and who moved their bytes.

Exit code 0 when every answer was right; 1 when one was not, or when the kernel had to splice
(DEMO_MUST_SPLICE=1) and did not.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import sys
import time
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from l7proxy.commands.client import connection as admin_connection
from l7proxy.demo.backends import pattern_sha256

SIDECAR = os.environ.get("DEMO_SIDECAR", "app")
ADMIN = "/run/l7proxy/admin.sock"  # in a volume that the two containers share
MESSAGES, MESSAGE = 2000, 8192
DOWNLOAD = 64 << 20  # bytes
RATE = 125_000_000  # bytes a second


class Wrong(Exception):
    """An answer that is not the right one."""


def main() -> int:
    """Everything, in order."""
    try:
        routing()
        return splicing()
    except (Wrong, OSError, http.client.HTTPException) as error:
        print(f"\ndemo: FAILED: {error}", flush=True)
        return 1


# ---- where requests go


def routing() -> None:
    """One request for each route, one for none, one that nobody may see."""
    print("Routing: one listener, decided by the first request of each connection\n")
    told("GET /api/hello", get("/api/hello"), "200 by app")
    told("GET /api/hello  x-beta: 1", get("/api/hello", {"x-beta": "1"}), "200 by next")
    told("GET /old/page", get("/old/page"), "301 to /new/page")
    told("GET /elsewhere", get("/elsewhere"), "404 by l7proxy")
    told("POST /api, two lengths", smuggled(), "400 by l7proxy")


def get(path: str, headers: dict[str, str] | None = None) -> str:
    """What came back, in a few words."""
    connection = http.client.HTTPConnection(SIDECAR, 8080, timeout=20)
    try:
        connection.request("GET", path, headers={"Host": "shop.example", **(headers or {})})
        response = connection.getresponse()
        text = response.read().decode()
        if response.status == 301:
            return f"301 to {urlsplit(response.headers['Location']).path}"
        by = text.splitlines()[0].removeprefix("backend: ") if response.status == 200 else "l7proxy"
        return f"{response.status} by {by}"
    finally:
        connection.close()


def smuggled() -> str:
    """A request that two readers could take for different ones."""
    with socket.create_connection((SIDECAR, 8080), timeout=20) as sock:
        sock.sendall(
            b"POST /api HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        with sock.makefile("rb") as answer:
            return f"{answer.readline().split()[1].decode()} by l7proxy"


def told(what: str, found: str, expected: str) -> None:
    """A line of the report."""
    print(f"  {what:<28} {found}", flush=True)
    if found != expected:
        raise Wrong(f"{what}: {expected} was expected, {found} came")


# ---- who moves the bytes


def splicing() -> int:
    """Two long connections, what the sidecar says of their bytes, and the exit code."""
    print("\nSplicing: two connections, checked byte by byte\n")
    counts = [settled()]
    for connection in (stream, download):
        connection()
        counts.append(settled())
    print("\nWho moved these bytes, from /stats of the sidecar\n")
    conversation = moved("the conversation", counts[0], counts[1])
    moved("the download", counts[1], counts[2])
    last = counts[-1]
    print(f"\n  datapath {last['datapath']}: {last['datapath_reason']}")
    if os.environ.get("DEMO_MUST_SPLICE") == "1" and conversation < 90:
        raise Wrong(f"the kernel moved {conversation:.1f} % of the conversation only")
    print("\ndemo: ok", flush=True)
    return 0


def moved(what: str, before: dict[str, Any], after: dict[str, Any]) -> float:
    """A line of the report; the kernel's share, in percent."""
    kernel, user = (
        sum(after["bytes"][way].values()) - sum(before["bytes"][way].values())
        for way in ("redirected", "relayed")
    )
    share = 100 * kernel / (kernel + user)
    sizes = f"kernel {kernel / 2**20:6.1f} MiB, user space {user / 2**20:6.1f} MiB"
    print(f"  {what:<18} {sizes}, {share:5.1f} % by the kernel")
    return share


def stream() -> None:
    """A conversation: messages there and back, one after the other."""
    message = os.urandom(MESSAGE)
    with socket.create_connection((SIDECAR, 8081), timeout=20) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = sock.makefile("rb")
        if answer.readline() != b"backend: echo\n":
            raise Wrong("the stream's greeting is not echo's")
        began = time.monotonic()
        for _ in range(MESSAGES):
            sock.sendall(message)
            if answer.read(MESSAGE) != message:
                raise Wrong("an echo is not what was sent")
        each = (time.monotonic() - began) / MESSAGES * 1e6
    print(f"  a conversation: {MESSAGES} messages of {MESSAGE} bytes echoed, {each:.0f} us each")


def download() -> None:
    """A long answer, at the rate of a network of 1 Gbit/s: one that its receiver keeps up with."""
    connection = http.client.HTTPConnection(SIDECAR, 8080, timeout=20)
    began = time.monotonic()
    target = f"/api/download?bytes={DOWNLOAD}&rate={RATE}"
    connection.request("GET", target, headers={"Host": "shop.example"})
    digest = hashlib.sha256(connection.getresponse().read())
    seconds = time.monotonic() - began
    connection.close()
    if digest.hexdigest() != pattern_sha256(DOWNLOAD):
        raise Wrong("the download is not what the application sent")
    size = f"{DOWNLOAD >> 20} MiB at {RATE * 8 / 1e9:g} Gbit/s"
    print(f"  a download of {size}, SHA-256 ok, {seconds:.2f} s", flush=True)


def stats() -> dict[str, Any]:
    """`GET /stats` of the sidecar."""
    with closing(admin_connection(ADMIN, 10)) as asked:
        asked.request("GET", "/stats")
        found: dict[str, Any] = json.loads(asked.getresponse().read())
        return found


def settled() -> dict[str, Any]:
    """The same, once no connection is left."""
    end = time.monotonic() + 10
    while (found := stats())["connections"]["active"]:
        if time.monotonic() > end:
            raise Wrong("connections are left after the last one was closed")
        time.sleep(0.05)
    return found


if __name__ == "__main__":
    sys.exit(main())
