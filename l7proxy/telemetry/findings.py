"""What an active health check found, as one word of shared memory and as words for people."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum

_SHIFT = 32


class Trouble(IntEnum):
    """How a check went."""

    NONE = 0
    ERROR = 1  # value: errno of the connection
    TIMEOUT = 2
    STATUS = 3  # value: a status that is not expected
    BODY = 4  # the expected text does not stand in it
    CLOSED = 5  # the connection ended without an answer
    NOT_HTTP = 6


_TEXT = {
    Trouble.NONE: "",
    Trouble.TIMEOUT: "timeout",
    Trouble.BODY: "the expected text is not in the body",
    Trouble.CLOSED: "closed without an answer",
    Trouble.NOT_HTTP: "the answer is no HTTP",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    trouble: Trouble = Trouble.NONE
    value: int = 0

    @property
    def good(self) -> bool:
        """Whether the endpoint is as it should be."""
        return self.trouble is Trouble.NONE

    @property
    def word(self) -> int:
        """All of it as a number."""
        return self.trouble << _SHIFT | self.value

    @classmethod
    def of(cls, word: int) -> Finding:
        """The finding that a word holds."""
        return cls(Trouble(word >> _SHIFT), word & ((1 << _SHIFT) - 1))

    def __str__(self) -> str:
        if self.trouble is Trouble.ERROR:
            return os.strerror(self.value).lower() if self.value else "connection failed"
        if self.trouble is Trouble.STATUS:
            return f"status {self.value}"
        return _TEXT[self.trouble]
