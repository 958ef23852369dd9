"""Regular expressions of policies: RE2, so that no pattern and no client can hang a worker. Pure.

A pattern is compared with the whole text, as Envoy does for the Gateway API: `/v[0-9]+` is
`/v1` and not `/v1/x`. RE2 takes time linear in the text, whatever the pattern is: at worst
`MAX_PROGRAM` steps for each byte. It works on bytes here, and `.` is any byte, a line break too:
a text that cannot be decoded, or has `%0A` in it, cannot slip past a pattern.

The engine is loaded when the first pattern is compiled.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

from l7proxy.errors import L7ProxyError

# Security limits: what a text of 32 KiB can cost at worst is their product, about 0.1 seconds.
MAX_LENGTH = 1024  # characters; Gateway API v1, HTTPPathMatch: maxLength
MAX_PROGRAM = 1000  # instructions that RE2 compiles a pattern to
MAX_MEMORY = 1 << 20  # bytes of one pattern, its caches included


class PatternError(L7ProxyError, ValueError):
    """A pattern that cannot be used: why, and which part of it (`start` to `end`) is to blame."""

    def __init__(self, reason: str, start: int, end: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.start = start
        self.end = end


class _Compiled(Protocol):
    programsize: int

    def fullmatch(self, text: bytes) -> object | None: ...


class Pattern:
    """A compiled pattern."""

    __slots__ = ("_fullmatch", "text")

    def __init__(self, text: str, compiled: _Compiled) -> None:
        self.text = text
        self._fullmatch = compiled.fullmatch

    def matches(self, value: bytes) -> bool:
        """Whether all of `value` is what the pattern describes."""
        return self._fullmatch(value) is not None


@lru_cache(maxsize=1024)  # patterns of many routes are alike
def compile_pattern(text: str) -> Pattern:
    """Compile `text`; raises PatternError."""
    if len(text) > MAX_LENGTH:
        raise PatternError(f"it has more than {MAX_LENGTH} characters", MAX_LENGTH, len(text))
    for at, char in enumerate(text):
        if not " " <= char <= "~":
            raise PatternError("it holds a character outside of printable ASCII", at, at + 1)
    import re2  # type: ignore[import-untyped]

    options: Any = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.dot_nl = True
    options.never_capture = True
    options.log_errors = False
    options.max_mem = MAX_MEMORY
    try:
        compiled: _Compiled = re2.compile(text.encode("ascii"), options)
    except re2.error as error:
        said = error.args[0].decode("ascii", "replace")
        raise _blame(text, said) from None
    if compiled.programsize > MAX_PROGRAM:
        reason = (
            f"it is too large: {compiled.programsize:,} instructions, at most {MAX_PROGRAM:,} are"
            " allowed"
        )
        raise PatternError(reason, 0, len(text))
    return Pattern(text, compiled)


def _blame(text: str, said: str) -> PatternError:
    """What RE2 says is "reason: part", where the part may be missing or the whole."""
    reason, _, part = said.partition(": ")
    at = text.rfind(part) if part else -1
    return PatternError(reason, max(at, 0), len(text) if at < 0 else at + len(part))
