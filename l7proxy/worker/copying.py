"""Requests of which a copy is kept: to send them once more, or to somebody else as well.

A copy is of what went on: bodies in chunks are in chunks of our own. It is bounded: of a body that
is known to be larger none is begun, and one that turns out to be is let go. A body of which a copy
is kept is relayed in user space: what the kernel moves nobody sees.
"""

from __future__ import annotations

from l7proxy.head import Head
from l7proxy.model import Route
from l7proxy.worker.transfer import Body

REPLAY = 64 * 1024
"""Bytes that are kept of a body: as much as user space may hold of it anyway."""

# RFC 9110 section 9.2.2: "PUT, DELETE, and safe request methods are idempotent". "A proxy MUST NOT
# automatically retry non-idempotent requests."
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))


class Copied:
    """A body that goes on as it is, and of which a copy is kept while it has `most` bytes."""

    __slots__ = ("_body", "_most", "copy")

    def __init__(self, body: Body, most: int) -> None:
        self._body = body
        self._most = most
        self.copy: bytearray | None = bytearray()

    @property
    def done(self) -> bool:
        """See `Body.done`."""
        return self._body.done

    @property
    def surplus(self) -> bytes:
        """See `Body.surplus`."""
        return self._body.surplus

    def take(self, data: memoryview) -> bytes | memoryview:
        """See `Body.take`."""
        out = self._body.take(data)
        if self.copy is not None:
            if len(self.copy) + len(out) > self._most:
                self.copy = None
            else:
                self.copy += out
        return out

    def end(self) -> bytes:
        """See `Body.end`."""
        return self._body.end()


def kept_of(route: Route, head: Head, *, mirrored: bool) -> int:
    """How many bytes of this request's body are kept, at the most."""
    is_retried = route.retry is not None and head.method in IDEMPOTENT
    return REPLAY if mirrored or is_retried else 0


def copying(body: Body, head: Head, most: int) -> Body:
    """The body, with a copy if it may have one of `most` bytes."""
    length = head.body_length
    return Copied(body, most) if most and (length is None or length <= most) else body


def copy_of(body: Body | None) -> bytes | None:
    """The copy of a body that was read, b"" if there was no body; None if there is no copy."""
    if body is None:
        return b""
    if not isinstance(body, Copied) or body.copy is None or not body.done:
        return None
    return bytes(body.copy)
