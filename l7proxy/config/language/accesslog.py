"""`accessLog`: which connections get a record, and what is in it. Where it goes to is no policy."""

from __future__ import annotations

import re

from l7proxy import logformat
from l7proxy.config import values
from l7proxy.config.bad import Bad
from l7proxy.config.language.common import duration
from l7proxy.config.nodes import Node
from l7proxy.config.problems import quoted
from l7proxy.config.readers import Text
from l7proxy.config.schema import Key, Made, Record, Table
from l7proxy.config.walker import Walker, did_you_mean
from l7proxy.logformat import BadFormat
from l7proxy.model import AccessLogRules

_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?)%")


def _no_share(text: str) -> Bad:
    return Bad(f"{quoted(text)} is no percentage", "write 10%, or 0.5%")


def _share(text: str) -> float:
    """A share, from 0 to 1, of a percentage. Raises Bad."""
    match = _PERCENT.fullmatch(text)
    if match is None:
        raise _no_share(text)
    share = float(match[1]) / 100
    if not 0 < share <= 1:
        hint = "errors are always logged; `run --access-log off` logs nothing"
        raise Bad(f"{quoted(text)} is not more than 0%, and 100% at most", hint)
    return share


def _format(walker: Walker, text: str, node: Node) -> str | None:
    """The text again, once it has been read for its mistakes."""
    if text == "json":
        return text
    try:
        logformat.parse(text)
    except BadFormat as bad:
        meant = walker.guess(bad.word, bad.known) if bad.word else None
        hint = did_you_mean(meant) if meant else bad.hint
        if not hint:
            hint = "the manual (policies/README.md) has a table of all that there are"
        walker.error(node, bad.message, hint, part=bad.part)
        return None
    return text


_TEXT = Text(
    str,
    kind="`json`, `common`, `combined` or a format string",
    pattern="^.",
    most=logformat.MAX_FORMAT,
    examples=("%ci:%cp [%tr] %ft %[endpoint] %Tt %B %[reason]",),
)

ACCESS_LOG = Record(
    Table(
        "an access log",
        {
            "format": Key(
                Made(_TEXT, _format),
                "What a record looks like: one JSON object with everything, Apache's common or"
                " combined log format, or a string with variables (see below).",
                default="json",
            ),
            "sample": Key(
                Text(
                    _share,
                    lambda node: None if node.tag == "null" else _no_share(node.text),
                    kind="a percentage",
                    pattern=r"^[0-9]{1,3}(\.[0-9]{1,4})?%$",
                    examples=("10%", "0.5%"),
                ),
                "The share of connections that get a record when they have ended without an error"
                " (`reason` is `done` or `local_reply`). All others always get one. `rate` in the"
                " record tells the share.",
                default="100%",
            ),
            "liveEvery": Key(
                duration(values.duration_of("1s", "24h"), "1m", "1h"),
                "How often a connection that goes on gets a record with its bytes so far; `state`"
                " is `live` in it. The first one comes after once to twice that time.",
                default="not at all",
            ),
        },
        foreign={
            "path": "where the log goes to is told with `l7proxy run --access-log`",
            "file": "where the log goes to is told with `l7proxy run --access-log`",
            "to": "where the log goes to is told with `l7proxy run --access-log`",
        },
        empty="leave it out: without it every connection gets a JSON object",
    ),
    AccessLogRules,
)
