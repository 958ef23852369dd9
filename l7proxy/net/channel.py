"""Messages between the supervisor and its children, with descriptors and large payloads.

The facts, and what follows:

- A SOCK_SEQPACKET pair keeps message boundaries and order, and reports EOF when the other process
  has gone, however it went. So a message is one packet, there is nothing to frame, and EOF on it
  means to a child that the supervisor is gone.
- Children read strangers' bytes. The supervisor believes nothing that they say: a message is JSON,
  of a type that this end accepts, with exactly that type's fields. Nothing is unpickled here, in
  neither direction. A payload is bytes that this module does not look into; what makes Python
  objects of them has to know whom they came from.
- An end that expects no descriptors gives recvmsg(2) no room for them: the kernel then closes what
  was sent (unix(7), "MSG_CTRUNC"), so a child cannot fill the supervisor's table.
- What no one here looks into comes as bytes behind the JSON (which has no line feed): to quote it
  and to read it again would take longer than all the rest.
- A packet has to fit in the socket's send buffer (net.core.wmem_default, 208 KiB usually), and what
  waits in it is charged to the sender. So messages are small, and what is large travels in a memfd
  that is sealed: it can be mapped and read by many children and changed by nobody. One that is sent
  to ten workers exists once.
- Both ends are non-blocking. What the kernel does not take waits in a queue with a bound. A child
  that does not read for that long is ill, and `send` says so: whoever owns it replaces it.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from l7proxy.errors import L7ProxyError

MAX_MESSAGE = 64 * 1024  # bytes of one message as JSON
MAX_QUEUE = 1_024  # messages that wait for a receiver
MAX_FDS = 250  # descriptors with one message; the kernel takes 253 (SCM_MAX_FD)
BATCH = 64  # messages taken in one turn

_WORD = array.array("i").itemsize
_INT = 1 << 63
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class ChannelClosed(L7ProxyError):
    """The process at the other end has gone, or has hung up."""


class ChannelBroken(L7ProxyError):
    """The other end sends what it must not, or does not read."""


@dataclass(slots=True)
class Received:
    """A message, and the descriptors that came with it; whoever takes it owns them.

    `is_whole`: none of them is missing (see `Channel`). `payload`: of types that have one.
    """

    message: Any
    fds: list[int]
    is_whole: bool = True
    payload: bytes = b""


class Channel:
    """One end. `accepts` are the types (frozen dataclasses) of messages that it takes.

    Their fields may be `int`, `float`, `bool`, `str`, `X | None`, `tuple[X, ...]`, `dict[str, X]`
    and dataclasses of these; a type with `has_payload` may come with bytes as well. `fds`: how many
    descriptors may come with a message. `may_lose`: one that finds no room in this process's table
    is missing from what is received; else that is an end of it all.
    """

    def __init__(
        self,
        sock: socket.socket,
        accepts: Sequence[type],
        *,
        fds: int = 0,
        may_lose: bool = False,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._readers = {kind.__name__: _reader(kind) for kind in accepts}
        self._laden = {kind.__name__ for kind in accepts if getattr(kind, "has_payload", False)}
        self._room = socket.CMSG_SPACE(fds * _WORD) if fds else 0
        self._may_lose = may_lose
        self._queue: deque[tuple[bytes, list[int]]] = deque()

    def fileno(self) -> int:
        """The descriptor; -1 once it is closed."""
        return self._sock.fileno()

    @property
    def waiting(self) -> bool:
        """Whether messages wait until the other end reads: call `flush` when it is writable."""
        return bool(self._queue)

    # ---- sending

    def send(self, message: Any, fds: Sequence[int] = (), payload: bytes = b"") -> None:
        """Send a message, or queue it. Of each descriptor the other end gets a duplicate.

        Raises ChannelClosed when nobody is there, and ChannelBroken when it has not read for so
        long that the queue is full.
        """
        packet = json.dumps([type(message).__name__, _plain(message)], separators=(",", ":"))
        data = packet.encode()
        if payload:
            data += b"\n" + payload
        if len(data) > MAX_MESSAGE or len(fds) > MAX_FDS:
            raise ValueError(f"a {type(message).__name__} of {len(data)} bytes, {len(fds)} fds")
        if not self._queue and self._write(data, fds):
            return
        if len(self._queue) >= MAX_QUEUE:
            raise ChannelBroken(f"{MAX_QUEUE} messages wait, and nobody reads them")
        kept: list[int] = []
        try:
            for fd in fds:  # the caller may close its own before they can be sent
                kept.append(os.dup(fd))
        except OSError as error:
            _close_all(kept)
            raise ChannelBroken(f"no descriptor is left: {error.strerror}") from error
        self._queue.append((data, kept))

    def flush(self) -> None:
        """Send what waits, as far as the other end takes it. Raises ChannelClosed."""
        while self._queue:
            data, fds = self._queue[0]
            if not self._write(data, fds):
                return
            self._queue.popleft()
            _close_all(fds)

    def _write(self, data: bytes, fds: Sequence[int]) -> bool:
        """False when the other end has no room for it now."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            # ENOBUFS, ENOMEM, ETOOMANYREFS (too many descriptors on their way): it may pass
            if not isinstance(error, ConnectionError) and self._sock.fileno() >= 0:
                return False
            raise ChannelClosed("the other end has gone") from error
        return True

    # ---- receiving

    def receive(self) -> Iterator[Received]:
        """What has arrived, at most `BATCH` messages.

        Raises ChannelClosed at the end, ChannelBroken when the other end has sent what this one
        does not take; nothing may be believed of it then.
        """
        for _ in range(BATCH):
            try:
                data, control, flags, _ = self._sock.recvmsg(
                    MAX_MESSAGE, self._room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # gone, with messages that it had not read; what it said is still here
            except OSError as error:
                raise ChannelClosed("the other end has gone") from error
            fds = _descriptors(control)
            if not data:
                _close_all(fds)
                raise ChannelClosed("the other end has gone")
            try:
                lost = bool(flags & socket.MSG_CTRUNC)
                if flags & socket.MSG_TRUNC or (lost and not self._may_lose):
                    raise ChannelBroken("a message that is larger than any there is")
                head, _, payload = data.partition(b"\n")
                message = self._read(head, payload)
            except ChannelBroken:
                _close_all(fds)
                raise
            yield Received(message, fds, not lost, payload)

    def _read(self, data: bytes, payload: bytes) -> Any:
        try:
            name, values = json.loads(data, parse_constant=_no_constant)
            if payload and name not in self._laden:
                raise ValueError("a payload")
            return self._readers[name](values)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ChannelBroken(f"not a message: {data[:80]!r}") from error

    def close(self) -> None:
        """Hang up, and forget what waits."""
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        self._sock.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, for the supervisor and for a child, before the fork."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


# ---- large payloads


def seal(name: str, data: bytes) -> int:
    """A memfd that holds `data` and cannot be changed any more. Raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def unseal(fd: int) -> bytes:
    """What a sealed memfd holds. Raises ChannelBroken as `check_sealed`."""
    check_sealed(fd)
    return os.pread(fd, os.fstat(fd).st_size, 0)


def check_sealed(fd: int) -> None:
    """Raise ChannelBroken when somebody can still change it: then it is none of `seal`."""
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:  # EINVAL: another kind of file
        raise ChannelBroken("a payload that is no memfd") from error
    if sealed & _SEALS != _SEALS:
        raise ChannelBroken("a payload that is not sealed")


# ---- values


def _plain(value: Any) -> Any:
    """A message as JSON knows it: fields by their position."""
    if type(value) in _SCALARS:
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return [_plain(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


_SCALARS = (str, int, float, bool)

Reader = Callable[[Any], Any]


def _reader(kind: Any) -> Reader:
    """What turns JSON into a value of `kind`, and raises TypeError or ValueError for anything else.

    Raises TypeError for a type that messages cannot have.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in (int, str, bool, float):
        return _scalar(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return _record(kind, [_reader(hints[field.name]) for field in fields(kind)])
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _sequence(_reader(arguments[0]))
    if origin is dict and arguments[0] is str:
        return _mapping(_reader(arguments[1]))
    if len(arguments) == 2 and type(None) in arguments:
        (other,) = (one for one in arguments if one is not type(None))
        inner = _reader(other)
        return lambda value: None if value is None else inner(value)
    raise TypeError(f"a message cannot hold {kind}")


def _scalar(kind: type) -> Reader:
    def read(value: Any) -> Any:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise TypeError
        if isinstance(value, int) and not -_INT <= value < _INT:
            raise ValueError
        return value

    return read


def _record(kind: type, readers: list[Reader]) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, list) or len(value) != len(readers):
            raise TypeError
        return kind(*(reader(item) for reader, item in zip(readers, value, strict=True)))

    return read


def _sequence(inner: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise TypeError
        return tuple(inner(item) for item in value)

    return read


def _mapping(inner: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise TypeError
        return {key: inner(item) for key, item in value.items()}

    return read


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _descriptors(control: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = array.array("i")
            whole.frombytes(data[: len(data) - len(data) % _WORD])
            found.extend(whole)
    return found


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
