"""The access log as messages to a syslog daemon, never waited for.

- Over UDP: RFC 5424 messages, one in a datagram (RFC 5426). Nobody says whether one arrived; where
  nobody listens, an ICMP message comes back and the *next* send fails with ECONNREFUSED: one lost,
  and the next one is sent again.
- To the daemon of this machine, a unix datagram socket (/dev/log): what the C library's syslog(3)
  sends, the form of RFC 3164 without a host's name, for that is what journald and rsyslog parse
  there. Its queue is short (net.unix.max_dgram_qlen, 10 to 512): while it is full, lines are kept.
  A daemon that starts anew makes a new socket, and the old one answers ECONNREFUSED: it is
  connected to again, once a second at most.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from l7proxy.errors import StartupError

FACILITIES = {
    "user": 1,
    "daemon": 3,
    "auth": 4,
    **{f"local{number}": 16 + number for number in range(8)},
}
_INFO, _WARNING = 6, 4  # RFC 5424, 6.2.1: severities
_AGAIN = 1.0  # seconds between two attempts to connect
_USAGE = (
    "write syslog, syslog:/dev/log, syslog:192.0.2.1:514 or syslog:[2001:db8::1]:514, with"
    " ?facility=local0 behind it if you like"
)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where messages go: a path, or an IP address and a port."""

    address: str | tuple[str, int]
    facility: int

    @property
    def is_local(self) -> bool:
        """Whether it is a unix socket."""
        return isinstance(self.address, str)


def parse(text: str) -> Destination:
    """`syslog[:WHERE][?facility=NAME]`. Raises StartupError."""
    where, _, option = text.partition("?")
    key, _, name = option.partition("=")
    if option and (key != "facility" or name not in FACILITIES):
        known = ", ".join(FACILITIES)
        raise StartupError(f"--access-log {text}: there is only ?facility=, one of {known}")
    facility = FACILITIES[name or "local0"]
    where = where.removeprefix("syslog").removeprefix(":") or "/dev/log"
    if where.startswith("/"):
        return Destination(where, facility)
    host, _, port = where.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError
    except ValueError:
        raise StartupError(f"--access-log {text}: {_USAGE}") from None
    return Destination((str(ip), int(port)), facility)


class Syslog:
    """A `sink.Out` of datagrams. Each worker has its own socket, made with its first line."""

    datagrams = True

    def __init__(self, to: Destination, clock: Callable[[], float] = time.monotonic) -> None:
        self._to = to
        self._clock = clock
        self._socket: socket.socket | None = None
        self._retry_at = 0.0
        self._second = 0
        self._stamp = ""
        self._tail = ""
        self.lost = 0
        """Messages that nobody took."""

    @classmethod
    def open(cls, text: str) -> Syslog:
        """Check that there is somebody to send to, as far as that can be told."""
        to = parse(text)
        out = cls(to)
        try:
            out._connect().close()
        except OSError as error:
            said = (error.strerror or str(error)).lower()
            where = to.address if isinstance(to.address, str) else f"{to.address[0]}"
            remedy = "start a syslog daemon first" if to.is_local else "is there a route to it?"
            raise StartupError(f"cannot log to {where}: {said}; {remedy}") from error
        out._socket = None
        return out

    def frame(self, line: bytes, *, is_error: bool) -> bytes:
        """The message of a line that ends with a newline, which stays there until it is sent."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            form = "%b %e %H:%M:%S" if self._to.is_local else "%Y-%m-%dT%H:%M:%S"
            of = time.localtime if self._to.is_local else time.gmtime
            self._stamp = time.strftime(form, of(second))
        priority = self._to.facility * 8 + (_WARNING if is_error else _INFO)
        if not self._tail:  # in the worker by now
            pid, host = os.getpid(), _hostname()
            local = f" l7proxy[{pid}]: "
            self._tail = local if self._to.is_local else f" {host} l7proxy {pid} access - "
        if self._to.is_local:
            head = f"<{priority}>{self._stamp}{self._tail}"
        else:
            millis = int((now - second) * 1000)
            head = f"<{priority}>1 {self._stamp}.{millis:03d}Z{self._tail}"
        return head.encode("ascii", "replace") + line

    def put(self, chunk: bytes) -> bool:
        """Send one message; False: not now, keep it. Raises OSError when it is lost."""
        if self._socket is None:
            now = self._clock()
            if now < self._retry_at:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            self._retry_at = now + _AGAIN
            self._socket = self._connect()
        message = chunk[:-1]
        try:
            self._socket.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            if self._to.is_local:
                if error.errno != errno.EMSGSIZE:
                    self._hang_up()
                    self._retry_at = min(self._retry_at, self._clock())
                    return self._again(message)
                raise
            if error.errno != errno.ECONNREFUSED:
                raise
            self.lost += 1  # one before it, says an ICMP message
            self._socket.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return True

    def _again(self, message: bytes) -> bool:
        """The daemon may have started anew."""
        self._retry_at = self._clock() + _AGAIN
        self._socket = self._connect()
        try:
            self._socket.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            self._hang_up()
            raise
        return True

    def finish(self) -> bool:
        """A datagram goes whole or not at all."""
        return True

    def close(self) -> None:
        """Close the socket of this process."""
        self._hang_up()

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        address = self._to.address
        if isinstance(address, str):
            family = socket.AF_UNIX
        else:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM)
        try:
            made.connect(address)
        except OSError:
            made.close()
            raise
        return made


def _hostname() -> str:
    name = "".join(char for char in socket.gethostname() if "!" <= char <= "~")
    return name[:255] or "-"
