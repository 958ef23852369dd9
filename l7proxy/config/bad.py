"""What a text is called that is no value of its kind."""

from __future__ import annotations


class Bad(Exception):
    """A text that is no value of its kind; `part` is the slice of it that is to blame."""

    def __init__(self, message: str, hint: str = "", part: slice | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.part = part
