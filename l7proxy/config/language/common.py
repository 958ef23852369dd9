"""What several parts of the language hold: names, durations, blocks of addresses."""

from __future__ import annotations

from collections.abc import Callable

from l7proxy.config import addresses, values
from l7proxy.config.bad import Bad
from l7proxy.config.nodes import Scalar
from l7proxy.config.readers import Text
from l7proxy.config.schema import ListOf

MAX_BLOCKS = 10_000  # security limit: CIDR blocks of one list
MAX_WEIGHT = 1_000_000  # Gateway API v1, BackendRef: maximum


def refuse(bad: Callable[[str], Bad]) -> Callable[[Scalar], Bad | None]:
    """Quotes would not mend what YAML takes for a number here: say what is wrong with the text."""
    return lambda node: None if node.tag == "null" else bad(node.text)


NAME = Text(
    values.name,
    kind="a name",
    pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
    most=values.MAX_NAME,
    examples=("web", "api-v2"),
)
HOSTNAME = Text(
    values.hostname,
    kind="a hostname",
    pattern=r"^(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$",
    most=values.MAX_HOSTNAME + 2,
    examples=("api.example.com", "*.example.com"),
)
SNI = Text(
    values.sni,
    kind="a hostname",
    pattern=HOSTNAME.pattern,
    most=HOSTNAME.most,
    examples=HOSTNAME.examples,
)
PRECISE_HOSTNAME = Text(
    values.precise_hostname,
    kind="a hostname without a wildcard",
    pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$",
    most=values.MAX_HOSTNAME,
    examples=("www.example.com",),
)
_DURATION_PATTERN = r"^([0-9]{1,9}(ms|s|m|h))+$"


def duration(parse: Callable[[str], float], *examples: str) -> Text[float]:
    """A duration that `parse` reads, in seconds."""
    return Text(
        parse,
        refuse(values.no_duration),
        kind="a duration",
        pattern=_DURATION_PATTERN,
        examples=examples or ("500ms", "10s", "1h30m"),
    )


DURATION = duration(values.duration)
POSITIVE_DURATION = duration(values.positive_duration)

BLOCK = Text(
    addresses.cidr,
    refuse(addresses.no_block),
    kind="a CIDR block",
    pattern=r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$",
    examples=("10.0.0.0/8", "192.0.2.7", "fd00::/8"),
)
BLOCKS = ListOf(BLOCK, "a CIDR block", "write [10.0.0.0/8]", most=MAX_BLOCKS)
