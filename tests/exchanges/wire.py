"""One end of a connection, with the habits of a `Way`: how it cuts what it sends, how it sips."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from .messages import Inbox
from .plan import Way

TURNS = 32  # calls in a row before others have their turn
PAUSES = 60  # of a message at most: on a busy machine each takes far longer than it should


class Wire:
    """A connected socket. What is sent is cut by the way's habits, never where messages end."""

    def __init__(self, sock: socket.socket, way: Way) -> None:
        self.sock = sock
        self.way = way
        self.inbox = Inbox(self._receive)
        self._unsent: list[bytes | memoryview] = []
        self._pending = 0
        self._drips = way.drip
        self._turns = self._pauses = 0
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def adopt(self, way: Way, *, small: bool) -> None:
        """Other habits from now on; `small`: the buffer, too."""
        self.way = way
        self._drips = way.drip
        self._pauses = 0
        if way.buffer and small:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, way.buffer)

    async def _rest(self) -> None:
        if self.way.pause and self._pauses < PAUSES:
            self._pauses += 1
            await asyncio.sleep(self.way.pause)
        self._turns += 1
        if self._turns % TURNS == 0:
            await asyncio.sleep(0)

    async def _receive(self) -> bytes:
        data = await asyncio.get_running_loop().sock_recv(self.sock, self.way.sip)
        await self._rest()
        return data

    async def write(self, data: bytes | memoryview) -> None:
        """Take it; what makes a piece is sent, what is left goes with what follows."""
        self._unsent.append(data)
        self._pending += len(data)
        if self._drips or self._pending >= self.way.piece:
            await self._send(whole=False)

    async def flush(self) -> None:
        """Send all that is left."""
        await self._send(whole=True)

    async def _send(self, *, whole: bool) -> None:
        loop = asyncio.get_running_loop()
        view = memoryview(self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent))
        self._unsent, self._pending = [], 0
        at = 0
        while at < len(view):
            most = 1 if self._drips else self.way.piece
            if len(view) - at < most and not whole:
                break
            piece = view[at : at + most]
            await loop.sock_sendall(self.sock, piece)
            at += len(piece)
            self._drips = max(0, self._drips - 1)
            await self._rest()
        if at < len(view):
            self._unsent, self._pending = [view[at:]], len(view) - at

    def half_close(self) -> None:
        """FIN; this end goes on to read."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST once it is closed, whatever is queued. (It is closed when nobody waits for it: the
        loop must not find another socket by the same number.)"""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def linger(self, seconds: float) -> None:
        """FIN, and what still comes is read and forgotten: a RST would take what was sent."""
        with contextlib.suppress(OSError, TimeoutError):
            self.half_close()
            async with asyncio.timeout(seconds):
                while await asyncio.get_running_loop().sock_recv(self.sock, 1 << 18):
                    pass
