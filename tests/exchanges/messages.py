"""HTTP/1.x messages as the two ends of an exchange read them: strict, and nobody else's parser.

What a proxy has written must leave no doubt, so nothing is forgiven here: a bare CR or LF, a space
where none belongs, two lengths, a length beside chunks, a chunk's extension. `Malformed` says what.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from peers import stretch

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
FIELD = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*"
    rb"((?:[\x21-\x7e\x80-\xff](?:[\x20-\x7e\t\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/1\.([01])")
RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2}) [\x20-\x7e\t\x80-\xff]*")
CHUNK = re.compile(rb"[0-9A-Fa-f]{1,16}")
MOST_HEAD = 1 << 16
Into = Callable[[bytes], Awaitable[object]]
"""What takes a body's bytes, as they come."""


class Malformed(AssertionError):
    """This is no message, or one that two readers could read differently."""


class Wrong(AssertionError):
    """A message, but not the one that was to come."""


class Cut(Exception):
    """The end came in the middle of a message."""


@dataclass(frozen=True, slots=True)
class Head:
    """`start` is what the start line says, in three. Names of fields are in lower case."""

    start: tuple[bytes, bytes, int]
    fields: tuple[tuple[bytes, bytes], ...]

    def all(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.fields if found == name]

    def one(self, name: bytes) -> bytes | None:
        """The value of a field that may come once."""
        values = self.all(name)
        if len(values) > 1:
            raise Malformed(f"{name!r} comes {len(values)} times: {values}")
        return values[0] if values else None

    def options(self) -> set[bytes]:
        """The options of Connection."""
        named = b",".join(self.all(b"connection")).lower().split(b",")
        return {option.strip() for option in named} - {b""}

    @property
    def length(self) -> int | None:
        """Content-Length."""
        value = self.one(b"content-length")
        if value is None:
            return None
        if not re.fullmatch(rb"[0-9]{1,18}", value):
            raise Malformed(f"Content-Length: {value!r}")
        return int(value)

    @property
    def chunked(self) -> bool:
        """Whether chunks come. Any other coding, or a length beside it, is malformed."""
        value = self.one(b"transfer-encoding")
        if value is None:
            return False
        if value.lower() != b"chunked" or self.one(b"content-length") is not None:
            raise Malformed(f"Transfer-Encoding: {value!r}, {self.fields}")
        return True


def parse(block: bytes, start: re.Pattern[bytes]) -> Head:
    """Everything before the empty line, without it."""
    first, *lines = block.split(b"\r\n")
    if b"\r" in block.replace(b"\r\n", b"") or b"\n" in block.replace(b"\r\n", b""):
        raise Malformed(f"a bare CR or LF: {block!r}")
    found = start.fullmatch(first)
    if found is None:
        raise Malformed(f"the first line is {first!r}")
    fields = []
    for line in lines:
        field = FIELD.fullmatch(line)
        if field is None:
            raise Malformed(f"a field that is none: {line!r}")
        fields.append((field[1].lower(), field[2]))
    if start is REQUEST:
        return Head((found[1], found[2], int(found[3])), tuple(fields))
    return Head((found[2], b"", int(found[1])), tuple(fields))


class Inbox:
    """What comes, asked for as what it is. `more` gives the next bytes, b"" at the end."""

    def __init__(self, more: Callable[[], Awaitable[bytes]]) -> None:
        self._more = more
        self.kept = b""
        self.taken = 0  # bytes that were asked for so far

    async def until(self, mark: bytes, most: int) -> bytes | None:
        """What comes before the mark, which is taken, too; None if the end comes at once."""
        got = self.kept
        at = 0
        while (end := got.find(mark, at)) < 0:
            if len(got) > most:
                raise Malformed(f"no {mark!r} in {len(got)} bytes: {got[:200]!r}")
            at = max(0, len(got) - len(mark) + 1)
            self.kept = got  # for whoever looks at what an error left
            data = await self._more()
            if not data:
                if got:
                    raise Cut(f"the end after {got[-200:]!r}")
                return None
            got += data
        self.kept = got[end + len(mark) :]
        self.taken += end + len(mark)
        return got[:end]

    async def some(self, most: int) -> bytes:
        """At least one of the next `most` bytes; b"" at the end."""
        data = self.kept or await self._more()
        self.kept = data[most:]
        self.taken += len(data[:most])
        return data[:most] if self.kept else data

    async def head(self, start: re.Pattern[bytes]) -> Head | None:
        """The next head; None if the end comes instead."""
        block = await self.until(b"\r\n\r\n", MOST_HEAD)
        return None if block is None else parse(block, start)

    async def line(self) -> bytes:
        """Up to the next CRLF."""
        line = await self.until(b"\r\n", 4096)
        if line is None:
            raise Cut("the end instead of a line")
        if b"\n" in line or b"\r" in line:
            raise Malformed(f"a bare CR or LF: {line!r}")
        return line


class Expected:
    """The first `size` bytes of the stream `seed`; whatever differs is noticed where it stands."""

    def __init__(self, seed: int, size: int) -> None:
        self._seed = seed
        self.size = size
        self.at = 0

    async def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self.at >= self.size:
                raise Wrong(f"more than {self.size} bytes: {bytes(view[:80])!r}")
            wanted = stretch(self._seed, self.at, min(len(view), self.size - self.at))
            found = view[: len(wanted)]
            if found != wanted:
                first = next(i for i in range(len(wanted)) if found[i] != wanted[i])
                raise Wrong(
                    f"byte {self.at + first} of {self.size} differs: "
                    f"{bytes(found[first : first + 60])!r}"
                )
            self.at += len(wanted)
            view = view[len(wanted) :]

    def end(self) -> None:
        if self.at != self.size:
            raise Wrong(f"complete after {self.at} bytes of {self.size}")


async def read_length(inbox: Inbox, size: int, into: Into) -> None:
    """A body of so many bytes."""
    left = size
    while left:
        data = await inbox.some(left)
        if not data:
            raise Cut(f"{left} of {size} bytes are missing")
        left -= len(data)
        await into(data)


async def read_chunked(
    inbox: Inbox, into: Into, *, extensions: bool = False
) -> list[tuple[bytes, bytes]]:
    """A body in chunks; its trailers. Extensions are for whoever is asked, and not to be sent."""
    while True:
        line = await inbox.line()
        if extensions:
            line = line.partition(b";")[0]
        if not CHUNK.fullmatch(line):
            raise Malformed(f"the size of a chunk is {line!r}")
        size = int(line, 16)
        if not size:
            break
        await read_length(inbox, size, into)
        if await inbox.line():
            raise Malformed("a chunk is longer than it says")
    trailers = []
    while line := await inbox.line():
        field = FIELD.fullmatch(line)
        if field is None:
            raise Malformed(f"a trailer that is none: {line!r}")
        trailers.append((field[1].lower(), field[2]))
    return trailers


async def read_rest(inbox: Inbox, into: Into) -> None:
    """A body that ends with the connection. Raises ConnectionResetError."""
    while data := await inbox.some(1 << 20):
        await into(data)
