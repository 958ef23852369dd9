"""The head of a backend's response, where it has to be read before the pair opens. Pure.

Two things need it: a cookie that is to be added to the response, and a connection that may only be
spliced once the backend has agreed to an upgrade. Everything else is passed on byte by byte as it
came; the client is the one who parses it.

RFC 9110 section 15.2: "A client MUST be able to parse one or more 1xx responses received prior to
a final response", so those are passed on and the head after them is looked at. 101 is final here:
what follows it is no HTTP any more.

And one case needs to know where a response ends: see `is_whole`.
"""

from __future__ import annotations

import re

import h11

MAX_ANSWER_HEAD = 64 * 1024  # bytes; beyond it a head is passed on as it is

SWITCHING_PROTOCOLS = 101

# RFC 9112 section 4: "status-line = HTTP-version SP status-code SP [ reason-phrase ]". The space
# before an absent reason is often missing as well.
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_START = b"HTTP/1."


class AnswerReader:
    """Looks for the final head of a response, in any cut of the input.

    `insert` is a field line without its end that is added to that head, or None. When `done`,
    `status` is that of the final head, and `odd` whether there was none: a head that is none of
    HTTP/1, or larger than MAX_ANSWER_HEAD, or has lines that end with LF alone, is passed on
    unchanged.
    """

    __slots__ = ("_buffer", "_insert", "_scanned", "added", "done", "odd", "status")

    def __init__(self, insert: bytes | None = None) -> None:
        self._insert = insert
        self._buffer = b""
        self._scanned = 0  # bytes of the buffer in which there is no end and no bare LF
        self.added = 0  # bytes
        self.done = False
        self.odd = False
        self.status: int | None = None

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return what is for the client now. Not to be called when `done`."""
        assert not self.done
        self._buffer += data
        out = b""
        while not self.done:
            end = self._head_end()
            if end is None:
                break
            head, self._buffer = self._buffer[:end], self._buffer[end:]
            self._scanned = 0
            out += self._take(head)
        return out

    def end(self) -> bytes:
        """The backend has ended; return what was held back, as it came."""
        return b"" if self.done else self._give_up()

    def _head_end(self) -> int | None:
        """Where the next head ends, None while it is not complete; gives up on what is no head."""
        buffer = self._buffer
        start = max(0, self._scanned - 3)
        found = buffer.find(b"\r\n\r\n", start, MAX_ANSWER_HEAD)
        if found >= 0:
            return found + 4
        hopeless = len(buffer) >= MAX_ANSWER_HEAD or _BARE_LF.search(buffer, start)
        self._scanned = len(buffer)
        if hopeless or not (buffer.startswith(_START) or _START.startswith(buffer)):
            return len(buffer)  # see `_take`
        return None

    def _take(self, head: bytes) -> bytes:
        line = _STATUS_LINE.match(head)
        if line is None or not head.endswith(b"\r\n\r\n") or _BARE_LF.search(head):
            return head + self._give_up()
        status = int(line[1])
        if 100 <= status < 200 and status != SWITCHING_PROTOCOLS:
            return head
        self.done = True
        self.status = status
        rest, self._buffer = self._buffer, b""
        if self._insert is not None:
            head = head[:-2] + self._insert + b"\r\n\r\n"
            self.added = len(self._insert) + 2
        return head + rest

    def _give_up(self) -> bytes:
        self.done = self.odd = True
        rest, self._buffer = self._buffer, b""
        return rest


def is_whole(data: bytes, method: str) -> bool:
    """Whether `data` is all of the response to a request of this method, by its own framing.

    Interim responses may precede it, nothing may follow it. Where only the end of the connection
    would tell (RFC 9112 section 6.3, the last rule), it is not.
    """
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "")]))
    connection.receive_data(data)
    try:
        while isinstance(event := connection.next_event(), h11.Event):
            if isinstance(event, h11.EndOfMessage):
                return not connection.trailing_data[0]
    except h11.RemoteProtocolError:
        pass
    return False
