"""Makes docker/status-page.png: the status page of a proxy that runs, with traffic through it.

    PYTHONPATH=.:tests python tests/screenshot.py docker/status-page.png 300

takes that many seconds, root, a kernel that splices, and Chromium. Nothing in the picture is made
up: downloads through the kernel, one reader that is slow for a while, one endpoint that is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import running
from peers import refusing_port
from proxy import START, until

ADMIN = "127.0.0.1:8898"
CHUNK = bytes(256 * 1024)
POLICY = """\
listeners:
  web: {{address: 127.0.0.1:8080}}
  media: {{address: 127.0.0.1:8081}}
  db: {{address: 127.0.0.1:5433, protocol: TCP}}
routes:
  - {{name: api, listeners: [web], matches: [{{path: /v1}}], backendRefs: [{{name: api}}]}}
  - {{name: site, listeners: [web], backendRefs: [{{name: site}}]}}
  - {{name: media, listeners: [media], backendRefs: [{{name: media}}]}}
  - {{name: database, listeners: [db], backendRefs: [{{name: database}}]}}
backends:
  api:
    endpoints: ["127.0.0.1:{origin}", "127.0.0.1:{down}"]
    healthCheck: {{type: TCP}}
  site: {{endpoints: ["127.0.0.1:{origin}"]}}
  media: {{endpoints: ["127.0.0.1:{origin}"]}}
  database: {{endpoints: ["127.0.0.1:{origin}"]}}
"""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """`GET /N` is N bytes a second for as long as the client stays; all else is a short answer."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + CHUNK[:2000])
        rate = head.split()[1].rpartition(b"/")[2]
        while rate.isdigit():
            swell = 1.2 + math.sin(time.monotonic() / 23 + int(rate) % 7)
            writer.write(CHUNK)
            await writer.drain()
            await asyncio.sleep(len(CHUNK) / (int(rate) * swell))
    writer.close()


async def download(port: int, rate: int, *, lazy: bool = False) -> None:
    """A long download; a lazy client reads in fits and starts."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(f"GET /v/{rate} HTTP/1.1\r\nHost: media\r\n\r\n".encode())
    while await reader.read(1 << 20):
        if lazy and time.monotonic() % 90 < 25:
            await asyncio.sleep(0.3)


async def requests(port: int, path: str, often: float) -> None:
    """Short connections, one after the other."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n".encode())
        await reader.read()
        writer.close()
        await asyncio.sleep(often * (1.3 + math.sin(time.monotonic() / 40)))


async def traffic() -> None:
    """Until cancelled."""
    async with asyncio.TaskGroup() as group:
        for number in range(14):
            group.create_task(download(8081, 200_000 * 2 ** (number % 7), lazy=number == 5))
            group.create_task(download(5433, 90_000 + 11_000 * number))
        for path, often in (("/v1/users", 0.08), ("/", 0.05), ("/about", 0.2)):
            group.create_task(requests(8080, path, often))


async def take(target: Path, seconds: float) -> None:
    """Run it all, and take the picture at the end."""
    origin = await asyncio.start_server(serve, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder, "policy.yaml")
        port = origin.sockets[0].getsockname()[1]
        policy.write_text(POLICY.format(origin=port, down=refusing_port()))
        proxy = subprocess.Popen(
            [
                *(sys.executable, "-m", "l7proxy", "run", "policy.yaml", "--workers=2"),
                *(f"--admin={ADMIN}", "--access-log=off", "--drain-seconds=0"),
            ],
            cwd=folder,
        )
        try:
            await asyncio.to_thread(until, answers, "the proxy answers", START)
            busy = asyncio.create_task(traffic())
            picture = await asyncio.to_thread(photograph, seconds)
            assert not busy.done(), busy.exception()
            busy.cancel()
            target.write_bytes(picture)
        finally:
            proxy.terminate()
            proxy.wait(30)


def answers() -> bool:
    """Whether the proxy takes connections."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", 5433)) == 0


def photograph(seconds: float) -> bytes:
    """The page after this time."""
    with running() as browser:
        browser.size(1080, 1080)
        browser.prefers(color_scheme="light")
        browser.visit(f"http://{ADMIN}/")
        time.sleep(seconds)
        return browser.screenshot()


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1]).resolve(), float(sys.argv[2])))
