"""The two ends of a proxied connection, as unfriendly as the network has them.

`Peer` is one end, client or backend: a socket and the things that ends do to each other. `Backend`
listens and plays a script, a function of a `Peer`, for each connection; what goes wrong in a script
fails the test. `BackendProcess` is a backend with a process of its own, which can be killed:

    python peers.py (echo | source | sink)
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import queue
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATIENCE = 30.0  # seconds that anything may take: machines stand still now and then

_POOL = random.Random(20261122).randbytes((1 << 21) + 9)  # an odd length: no power of two repeats


def stretch(seed: int, at: int, size: int) -> memoryview:
    """Bytes `at` and on of the endless stream `seed`: `size` of them, or somewhat fewer."""
    begin = (seed + at) % len(_POOL)
    return memoryview(_POOL)[begin : begin + size]


def stream(seed: int, size: int) -> Iterator[memoryview]:
    """The first `size` bytes of the endless stream `seed`, in pieces."""
    at = 0
    while at < size:
        piece = stretch(seed, at, min(size - at, 1 << 20))
        at += len(piece)
        yield piece


def digest(seed: int, size: int) -> str:
    """SHA-256 of the first `size` bytes of the stream `seed`."""
    return hashed(stream(seed, size))


def hashed(pieces: Iterator[memoryview] | Iterator[bytes]) -> str:
    """SHA-256 over pieces."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


class Ended(AssertionError):
    """The stream ended before what was waited for had come."""


class Peer:
    """One end of a TCP connection. Every wait ends after `PATIENCE` seconds."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._kept = b""  # received, and not yet asked for
        sock.settimeout(PATIENCE)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    @property
    def port(self) -> int:
        """The port of this end."""
        port: int = self.sock.getsockname()[1]
        return port

    # ---- sending

    def send(self, data: bytes | memoryview) -> Peer:
        """All of it, as one piece where the kernel takes it so."""
        self.sock.sendall(data)
        return self

    def drip(self, data: bytes, pause: float = 0.0) -> Peer:
        """Each byte in a segment of its own."""
        for at in range(len(data)):
            self.sock.send(data[at : at + 1])
            if pause:
                time.sleep(pause)
        return self

    def flood(self, seed: int = 0, piece: int = 1 << 18, seconds: float = 5.0) -> int:
        """Send the stream `seed` until nobody has taken a byte for half a second; how many went."""
        sent = 0
        deadline = time.monotonic() + seconds
        self.sock.setblocking(False)
        while time.monotonic() < deadline:
            if not select.select([], [self.sock], [], 0.5)[1]:
                break
            with contextlib.suppress(BlockingIOError):
                while time.monotonic() < deadline:
                    sent += self.sock.send(stretch(seed, sent, piece))
        self.sock.settimeout(PATIENCE)
        return sent

    def urgent(self, data: bytes = b"!") -> Peer:
        """Out-of-band data."""
        self.sock.send(data, socket.MSG_OOB)
        return self

    def half_close(self) -> Peer:
        """FIN; this end goes on to read."""
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        """RST, whatever is queued."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close; a RST follows if there is something that was not read."""
        self.sock.close()

    # ---- receiving

    def _more(self) -> bytes:
        kept, self._kept = self._kept, b""
        return kept or self.sock.recv(1 << 18)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        got = b""
        while len(got) < size:
            more = self._more()
            if not more:
                raise Ended(f"the end came after {got!r}")
            got += more
        self._kept = got[size:]
        return got[:size]

    def head(self) -> bytes:
        """Everything up to and with the first empty line."""
        got = b""
        while b"\r\n\r\n" not in got:
            more = self._more()
            if not more:
                raise Ended(f"the end came after {got!r}")
            got += more
        head, mark, self._kept = got.partition(b"\r\n\r\n")
        return head + mark

    def rest(self) -> bytes:
        """All that comes, up to the end of the stream. Raises ConnectionResetError."""
        return b"".join(iter(self._more, b""))

    def rest_digest(self, begun: hashlib._Hash | None = None) -> tuple[int, str]:
        """(how many bytes come up to the end, SHA-256 of what `begun` has seen and of them)."""
        found, count = begun or hashlib.sha256(), 0
        while data := self._more():
            found.update(data)
            count += len(data)
        return count, found.hexdigest()

    def digest_of(self, size: int) -> str:
        """SHA-256 of the next `size` bytes."""
        found = hashlib.sha256()
        while size:
            data = self._more()
            if not data:
                raise Ended(f"the end came {size} bytes too early")
            self._kept = data[size:]
            found.update(data[:size])
            size -= len(data[:size])
        return found.hexdigest()

    def ending(self) -> str:
        """How it ends, whatever comes before that: "end" (a FIN) or "reset"."""
        try:
            while self._more():
                pass
        except (ConnectionResetError, BrokenPipeError):
            return "reset"
        return "end"

    def ending_while_sending(self, seed: int = 0) -> str:
        """As `ending`, sending without end meanwhile. Only one of the two calls gets the error."""
        seen: list[str] = []

        def send() -> None:
            with contextlib.suppress(TimeoutError):
                try:
                    for piece in stream(seed, 1 << 50):
                        self.sock.sendall(piece)
                except (ConnectionResetError, BrokenPipeError):
                    seen.append("reset")

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        ending = self.ending()
        thread.join(1 if ending == "reset" else PATIENCE)
        return "reset" if seen else ending

    def silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for a while: neither byte nor end nor error."""
        return not self._kept and not select.select([self.sock], [], [], seconds)[0]


def connect(address: tuple[str, int], *, receive_buffer: int = 0) -> Peer:
    """A client."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family)
    if receive_buffer:  # before connecting: the window is agreed on in the handshake
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return Peer(sock)


def connect_unix(path: str) -> Peer:
    """A client of a unix socket; an abstract name begins with `@`."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
    except BaseException:
        sock.close()
        raise
    return Peer(sock)


Script = Callable[[Peer], None]


class Backend:
    """Listens on a port of its own, or on a unix socket, and plays the current script for each
    connection."""

    def __init__(
        self, *, send_buffer: int = 0, receive_buffer: int = 0, segment: int = 0, path: str = ""
    ) -> None:
        self.port = 0
        if path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen(256)
        else:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
            self.port = self._listener.getsockname()[1]
        if send_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if segment:  # the kernel makes room for so many segments, of 64 KiB each on loopback
            self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        self._script: Script | None = None
        self._heard: queue.Queue[Any] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._peers: list[Peer] = []
        self._failures: list[BaseException] = []
        self.accepted = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def play(self, script: Script) -> None:
        """From now on, this is what happens to each connection."""
        self._script = script

    def tell(self, what: object) -> None:
        """For scripts: hand something to the test."""
        self._heard.put(what)

    def heard(self, seconds: float = PATIENCE) -> Any:
        """What a script told next. Whatever went wrong in a script is raised here."""
        deadline = time.monotonic() + seconds
        while True:
            self._raise()
            try:
                return self._heard.get(timeout=0.05)
            except queue.Empty:
                assert time.monotonic() < deadline, "the backend heard nothing"

    def _raise(self) -> None:
        if self._failures:
            raise AssertionError("a backend's script failed") from self._failures[0]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.accepted += 1
                thread = threading.Thread(target=self._play, args=[Peer(sock)], daemon=True)
                self._threads.append(thread)
                thread.start()

    def _play(self, peer: Peer) -> None:
        self._peers.append(peer)
        script = self._script
        try:
            assert script is not None, "a connection that the test did not expect"
            script(peer)
        except BaseException as failure:
            self._failures.append(failure)
        finally:
            peer.close()

    def hang_up(self) -> None:
        """End all connections: scripts that wait for another request see that."""
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        """All scripts must come to their end; raises what went wrong in one."""
        for thread in self._threads:
            thread.join(PATIENCE)
        stuck = sum(thread.is_alive() for thread in self._threads)
        self.hang_up()
        failures, self._failures = self._failures, []
        self._threads, self._peers, self._script, self.accepted = [], [], None, 0
        while not self._heard.empty():
            self._heard.get()
        if failures:
            raise AssertionError("a backend's script failed") from failures[0]
        assert not stuck, f"{stuck} scripts of the backend do not end"

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(PATIENCE)


_refusing: list[socket.socket] = []  # while this process lives


@atexit.register
def _give_back() -> None:
    for sock in _refusing:
        sock.close()


def refusing_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, nor can: it is bound already."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    _refusing.append(sock)
    port: int = sock.getsockname()[1]
    return port


def free_port() -> int:
    """A port that somebody can listen on in a moment, on any address.

    The kernel gives it to nobody: it is below those for clients and for who asks for any port.
    """
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(min(20_000, low - 1_000), low)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return port


class Blackhole:
    """A listener whose queue is full: the kernel drops every further SYN, so dials time out."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=0)
        self._address = self._listener.getsockname()
        self.port: int = self._address[1]
        self._waiting: list[socket.socket] = []
        deadline = time.monotonic() + PATIENCE
        while not self._is_full():
            assert time.monotonic() < deadline, "the queue does not fill up"

    def _is_full(self) -> bool:
        """As sk_acceptq_is_full() has it; tcp_info tells these two numbers of a listener."""
        info = self._listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        queued, most = struct.unpack_from("II", info, 24)  # tcpi_unacked, tcpi_sacked
        if queued > most:
            return True
        waiting = socket.socket(self._listener.family)
        waiting.settimeout(PATIENCE)
        self._waiting.append(waiting)
        waiting.connect(self._address)
        return False

    def __enter__(self) -> Blackhole:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Back to normal."""
        for waiting in self._waiting:
            waiting.close()
        self._listener.close()


# ---- a backend that can be killed


def _echo(peer: Peer) -> None:
    while data := peer.sock.recv(1 << 16):
        peer.send(data)


def _source(peer: Peer) -> None:
    for piece in stream(0, 1 << 50):
        peer.send(piece)


def _sink(peer: Peer) -> None:
    """Takes one MiB and nothing more: the rest stays unread in its socket."""
    taken = 0
    while taken < 1 << 20:
        taken += len(peer.sock.recv(1 << 16))
    peer.send(b"enough")
    time.sleep(60)


_ROLES: dict[str, Script] = {"echo": _echo, "source": _source, "sink": _sink}


class BackendProcess:
    """A backend in a process of its own, while the `with` block is open."""

    def __init__(self, role: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, role], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 30)[0], "the backend does not start"
        self.port = int(self.process.stdout.readline())

    def __enter__(self) -> BackendProcess:
        return self

    def kill(self) -> None:
        """SIGKILL: its sockets are the kernel's to close."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def __exit__(self, *_: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def _main(role: str) -> None:
    backend = Backend()
    backend.play(_ROLES[role])
    print(backend.port, flush=True)
    sys.stdin.read()  # until whoever started this is gone


if __name__ == "__main__":
    _main(sys.argv[1])
