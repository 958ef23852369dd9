"""The operational log: one line an event on stderr, for people.

    2026-11-22T10:25:21.204Z info    listening name=web address=127.0.0.1:8080 protocol=HTTP

Any module logs with the standard `logging.getLogger(__name__)`; only what starts a process calls
`configure`. `event` makes the text: a few words, then `key=value` pairs. Control characters never
reach the terminal, and a stderr that nobody reads costs lines, never a stalled process.
"""

from __future__ import annotations

import logging
import re
import time

from l7proxy.telemetry import sink

LEVELS = ("debug", "info", "warning", "error")

_BARE = re.compile(r"[^\s\"'=\x00-\x1f\x7f-\x9f]+\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def event(text: str, **fields: object) -> str:
    """`text key=value ...`; a value with spaces, quotes or control characters is quoted."""
    return " ".join([text, *(f"{name}={_value(value)}" for name, value in fields.items())])


def configure(level: str, stream: int = 2) -> None:
    """Send everything that l7proxy and asyncio log to this descriptor. Call it once, early."""
    handler = _SinkHandler(sink.open_standard(stream))
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    set_level(level)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Tell what is as important as this, or more, from now on; it is one of `LEVELS`."""
    logging.getLogger().setLevel(level.upper())


def level() -> str:
    """Which of `LEVELS` it is now."""
    return logging.getLevelName(logging.getLogger().level).lower()


def _value(value: object) -> str:
    text = str(value)
    if _BARE.match(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _visible(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class _Formatter(logging.Formatter):
    """A line an event; a traceback, which only a bug of ours brings, follows indented."""

    def format(self, record: logging.LogRecord) -> str:
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        stamp = f"{second}.{int(record.msecs):03d}Z"
        message = record.getMessage().replace("\n", "\\n")
        lines = [f"{stamp} {record.levelname.lower():<7} {message}"]
        if record.exc_info:
            lines += self.formatException(record.exc_info).splitlines()
        return _visible("\n    ".join(lines))


class _SinkHandler(logging.Handler):
    def __init__(self, out: sink.Sink) -> None:
        super().__init__()
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        try:
            data = self.format(record).encode("utf-8", "backslashreplace")
            for start in range(0, len(data), sink.CHUNK - 1):
                self._out.put(data[start : start + sink.CHUNK - 1] + b"\n")
        except Exception:  # a line of the log is never worth a connection
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing: stderr is what failed."""

    def close(self) -> None:
        self._out.close()
        super().close()
