"""The keys of a listener that gets connections which were going elsewhere."""

from __future__ import annotations

from l7proxy.config import values
from l7proxy.config.language.common import BLOCKS
from l7proxy.config.readers import Choice, Flag, Text, Whole
from l7proxy.config.schema import Fields, Key, ListOf, Record, Table
from l7proxy.config.walker import Walker
from l7proxy.model import Interception, Transparent, Unmatched, Way

MAX_PORTS = 1_000
MAX_USERS = 100

PORTS = ListOf(Whole(1, 65535), "a port", "write [80, 443]", most=MAX_PORTS)
USER = Text(
    values.user,
    kind="a user's name or number",
    pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$",
    most=values.MAX_USER,
    examples=("postgres", "1000"),
    numbers=True,
)


def _check(walker: Walker, fields: Fields) -> None:
    keys, mode = fields.keys, fields.get("mode")
    if fields.get("keepClientAddress") and mode is Interception.REDIRECT:
        walker.error(
            keys["keepClientAddress"],
            "`keepClientAddress` needs `mode: tproxy`: only its rules bring the answers back",
            "write `mode: tproxy`, or remove it",
        )
    if "exceptUsers" in keys and fields.get("direction") is Way.INBOUND:
        walker.error(
            keys["exceptUsers"],
            "`exceptUsers` is about processes of this machine, and inbound connections are not"
            " theirs",
            "remove it, or write `exceptBlocks` for clients",
        )


TRANSPARENT = Record(
    Table(
        "`transparent`",
        {
            "mode": Key(
                Choice(
                    Interception,
                    docs={
                        "redirect": "by NAT: needs nothing but the rules, and connections that"
                        " were redirected end with them",
                        "tproxy": "untouched: needs a routing rule as well, and l7proxy starts"
                        " with CAP_NET_ADMIN",
                    },
                ),
                "How connections come here.",
                required=True,
                hint="write transparent: redirect",
            ),
            "direction": Key(
                Choice(
                    Way,
                    docs={
                        "inbound": "those that come from elsewhere to an address of this network"
                        " namespace",
                        "outbound": "those that processes in it make to elsewhere",
                        "both": "all of these",
                    },
                ),
                "Which connections `l7proxy sidecar` has brought here. What goes over loopback,"
                " such as an application's connections to itself, is left alone, and so is all"
                " that is not TCP.",
                default="both",
            ),
            "ports": Key(
                PORTS,
                "Only connections that were going to one of these ports. Other listeners may take"
                " the rest; one that names a port goes before one that takes all.",
                default="every port but 53, for DNS",
            ),
            "exceptPorts": Key(PORTS, "Ports that are left alone.", default="none"),
            "exceptBlocks": Key(
                BLOCKS,
                "CIDR blocks that are left alone: where outbound connections go, and where inbound"
                " ones come from.",
                default="none",
            ),
            "exceptUsers": Key(
                ListOf(USER, "a user", "write [postgres]", most=MAX_USERS),
                "Users whose outbound connections are left alone. The one that l7proxy's workers"
                " run as is so in any case.",
                default="none",
            ),
            "unmatched": Key(
                Choice(
                    Unmatched,
                    docs={
                        "passthrough": "it goes on to where it was going, unchanged",
                        "refuse": "404, an alert or a reset, as on other listeners",
                    },
                ),
                "What becomes of a connection, or of a request, that no route matches.",
                default="passthrough",
            ),
            "keepClientAddress": Key(
                Flag(),
                "Whether backends are dialled with the client's own address, so that they see it"
                " as if nobody were in between. For backends in this network namespace, or whose"
                " way back leads through it.",
                default="false",
            ),
        },
        foreign={
            "excludePorts": "write `exceptPorts`",
            "excludeOutboundPorts": "write `exceptPorts`",
            "excludeInboundPorts": "write `exceptPorts`",
            "excludeOutboundIPRanges": "write `exceptBlocks`",
        },
        short="mode",
    ),
    Transparent,
    check=_check,
)
