"""A stream that comes at the rate of a network overflows once, and is the kernel's again soon.

It comes in pieces of some tens of kilobytes (TSO), so every turn of user space finds one of them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from proxy import PATIENCE, Proxy, until

pytestmark = [pytest.mark.kernel, pytest.mark.net, pytest.mark.slow]

SO_MAX_PACING_RATE = 47  # asm-generic/socket.h
RATE = 60_000_000  # bytes a second
STOP = 0.3  # seconds without a read: more than all buffers hold at that rate
CATCH_UP = 0.6
LOOK = 0.5
TRIES = 5  # a machine that stands still makes the stream overflow again
POLICY = """\
listeners: {{raw: {{address: "127.0.0.1:0", protocol: TCP}}}}
routes: [{{name: all, listeners: [raw], backendRefs: [{{name: app}}]}}]
backends: {{app: {{endpoints: ["127.0.0.1:{port}"]}}}}
"""


def send(listener: socket.socket, enough: threading.Event) -> None:
    """Speak first, so that the pair is spliced; then send as TCP paces it."""
    sock, _ = listener.accept()
    with sock, contextlib.suppress(OSError):
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, RATE)
        sock.sendall(b"+")
        sock.recv(1)
        piece = bytes(1 << 18)
        while not enough.is_set():
            sock.sendall(piece)


def read(client: socket.socket, seconds: float) -> None:
    end, buffer = time.monotonic() + seconds, bytearray(1 << 20)
    while time.monotonic() < end:
        assert client.recv_into(buffer)


def moved(proxy: Proxy) -> tuple[int, int]:
    """Bytes of backends that the kernel has moved, and user space."""
    found = proxy.stats()["bytes"]
    return found["redirected"]["from_backend"], found["relayed"]["from_backend"]


def test_a_paced_stream_that_overflowed_is_the_kernels_again() -> None:
    enough = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=send, args=[listener, enough], daemon=True)
        sender.start()
        policy = POLICY.format(port=listener.getsockname()[1])
        with Proxy(policy, "sockmap") as proxy:
            with socket.create_connection(proxy.address("raw"), PATIENCE) as client:
                assert client.recv(1) == b"+"
                until(lambda: proxy.stats()["pairs"]["spliced"] == 1, "it is spliced")
                client.send(b"!")
                shares = []
                for _ in range(TRIES):
                    if not shares:
                        until(lambda: proxy.stats()["overflows"], "it overflows")
                    time.sleep(STOP)
                    read(client, CATCH_UP)
                    before = moved(proxy)
                    read(client, LOOK)
                    kernel, user = (a - b for a, b in zip(moved(proxy), before, strict=True))
                    shares.append(kernel / max(1, kernel + user))
                    if shares[-1] > 0.5:
                        break
                enough.set()
                client.settimeout(PATIENCE)
                with contextlib.suppress(ConnectionResetError):
                    while client.recv(1 << 20):
                        pass
            sender.join(PATIENCE)
            proxy.settled()
            proxy.stop()
    assert shares[-1] > 0.5, shares
