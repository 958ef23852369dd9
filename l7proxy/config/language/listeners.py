"""The keys of a listener."""

from __future__ import annotations

from l7proxy.config import addresses, values
from l7proxy.config.language.common import (
    BLOCKS,
    DURATION,
    HOSTNAME,
    POSITIVE_DURATION,
    refuse,
)
from l7proxy.config.language.drafts import ListenerDraft
from l7proxy.config.language.interception import TRANSPARENT
from l7proxy.config.readers import Choice, Text, Whole
from l7proxy.config.schema import Fields, Key, ListOf, Record, Table, arguments
from l7proxy.config.walker import At, Walker
from l7proxy.model import (
    FieldPolicy,
    ForwardedFields,
    Limits,
    Listener,
    Protocol,
    ProxyHeader,
    Timeouts,
)

MAX_CONNECTIONS = 10_000_000  # more than a machine has room for

LISTEN = Text(
    addresses.listen_address,
    refuse(addresses.no_address),
    kind="an address to listen on",
    pattern=r"^([0-9.]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|\*:[0-9]{1,5}|unix:[/@].+)$",
    examples=("127.0.0.1:8080", "[::1]:8080", "*:80", "unix:/run/web.sock", "unix:@web"),
)
MODE = Text(
    values.mode,
    refuse(values.no_mode),
    kind="a file mode",
    pattern=r"^0?[0-7]{3}$",
    examples=("0660",),
)

LIMITS = Record(
    Table(
        "`limits`",
        {
            "headBytes": Key(
                Whole(256, 1024 * 1024, "bytes"),
                "Bytes of a request line and its headers together; on a TLS listener, of the"
                " ClientHello. A request with more is answered with 431, or 414 where its target is"
                " that long; a ClientHello with an alert.",
                default="32768",
            ),
            "headers": Key(
                Whole(1, 10_000),
                "Header fields of a request. A request with more is answered with 431.",
                default="100",
            ),
            "connections": Key(
                Whole(1, MAX_CONNECTIONS),
                "Connections at once, over all workers. One more is accepted and reset.",
                default="10000",
            ),
            "clientConnections": Key(
                Whole(1, MAX_CONNECTIONS),
                "Connections at once from one client address, over all workers. One more is reset."
                " An IPv6 client is its /64, within which it can change its address as it likes."
                " Behind a trusted proxy the client that it names is counted: once for a"
                " connection, as the first request on it says.",
                default="no limit but `connections`",
            ),
        },
    ),
    Limits,
)

TIMEOUTS = Record(
    Table(
        "`timeouts`",
        {
            "head": Key(
                POSITIVE_DURATION,
                "From the connection to its first complete head (request line and headers, or"
                " ClientHello). Beyond it a request is answered with 408, anything else is reset:"
                " the guard against clients that send slowly on purpose.",
                default="10s",
            ),
            "dial": Key(
                POSITIVE_DURATION,
                "One attempt to reach an endpoint. Then the next endpoint is tried; when none is"
                " left, the request is answered with 504.",
                default="5s",
            ),
            "idle": Key(
                DURATION,
                "Without a byte in either direction. Beyond it both sides are reset; `0s` turns"
                " it off.",
                default="1h",
            ),
            "overflow": Key(
                DURATION,
                "How long one side may take nothing while bytes wait for it. Beyond it both sides"
                " are reset; `0s` turns it off.",
                default="5m",
            ),
            "keepAlive": Key(
                POSITIVE_DURATION,
                "From a response to the next request on its connection, where requests are routed"
                " one by one (`splice`). Beyond it the connection is closed.",
                default="1m",
            ),
        },
        foreign={"request": "it is a timeout of routes: set it there"},
    ),
    Timeouts,
)

FIELD_POLICY = Choice(
    FieldPolicy,
    docs={
        "append": "what a trusted proxy said, and this hop",
        "set": "this hop only",
        "pass": "what a trusted proxy said, and nothing of this hop",
        "remove": "nothing",
    },
)


def _forwarded_key(header: str, what: str, default: str) -> Key:
    doc = f"The header `{header}`, {what}."
    return Key(FIELD_POLICY, doc, default=default)


FORWARDED = Record(
    Table(
        "`forwarded`",
        {
            "xForwardedFor": _forwarded_key(
                "X-Forwarded-For", "the addresses that the request came through", "append"
            ),
            "xForwardedProto": _forwarded_key(
                "X-Forwarded-Proto", "the scheme that the client used", "append"
            ),
            "xForwardedHost": _forwarded_key(
                "X-Forwarded-Host", "the host that the client asked for", "append"
            ),
            "xForwardedPort": _forwarded_key(
                "X-Forwarded-Port", "the port that the client came to", "pass"
            ),
            "xRealIp": _forwarded_key("X-Real-IP", "the client's address alone", "pass"),
            "forwarded": _forwarded_key(
                "Forwarded", "all of these in one field as RFC 7239 has it", "pass"
            ),
            "via": _forwarded_key("Via", "the proxies in between (RFC 9110, 7.6.3)", "append"),
        },
        empty="leave `forwarded` out for what is usual",
    ),
    ForwardedFields,
)

LISTENER = Table(
    "a listener",
    {
        "address": Key(
            LISTEN,
            "Where it listens: an IP address and a port, `*:80` for every address of both families"
            " on one socket, `unix:/path` for a socket in the file system, or `unix:@name` for an"
            " abstract one. Port 0 lets the kernel choose a free one.",
            required=True,
            hint='where it listens: 127.0.0.1:8080, or "[::1]:8080"',
        ),
        "mode": Key(
            MODE,
            "The mode of a unix socket's file in octal, and in quotes: who may connect needs the"
            " right to write.",
            default="as the umask says",
        ),
        "protocol": Key(
            Choice(
                Protocol,
                docs={
                    "HTTP": "the first request's head is read, and routes look at it",
                    "TLS": "the ClientHello is read, routes look at its SNI and ALPN, and the"
                    " stream passes through as it is",
                    "TCP": "nothing is read, and the first route takes the stream",
                },
            ),
            "What is read of a connection before it is routed.",
            default="HTTP",
        ),
        "hostnames": Key(
            ListOf(HOSTNAME, "a hostname", "leave it out for every host"),
            "Only these hosts (on a TLS listener: names in SNI) are served, whatever the routes"
            " say; exact, or `*.example.com` for any number of labels in front. A request for"
            " another one is answered with 404.",
            default="every host",
        ),
        "proxyProtocol": Key(
            Choice(
                ProxyHeader,
                docs={
                    "accept": "a connection of a trusted proxy may begin with one",
                    "require": "a connection without one, or of anybody else, is reset",
                },
            ),
            "Whether connections begin with a header of the PROXY protocol (v1 or v2), which tells"
            " who the client really is. It is believed from `trustedProxies` only.",
            default="no such header is expected",
        ),
        "trustedProxies": Key(
            BLOCKS,
            "CIDR blocks of the proxies in front of this listener. Only they are believed in what"
            " they say about the client, by the PROXY protocol or in `X-Forwarded-*` and"
            " `Forwarded`; of everybody else those headers are dropped before a route is looked"
            " for. On a unix socket in the"
            " file system whoever may connect is believed; on an abstract one nobody is.",
            default="nobody is trusted",
        ),
        "forwarded": Key(
            FORWARDED,
            "What the backend is told about the client and the way it came, header by header.",
        ),
        "allow": Key(
            BLOCKS,
            "CIDR blocks of the clients that may connect. Everybody else is reset. Where a trusted"
            " proxy says who the client is, it is about that client, not about the proxy.",
            default="everybody",
        ),
        "deny": Key(
            BLOCKS,
            "CIDR blocks of clients that are reset. It beats `allow`.",
            default="nobody",
        ),
        "transparent": Key(
            TRANSPARENT,
            "It gets connections that were going elsewhere, which `l7proxy sidecar enable` has"
            " brought here: routes can match `destinations`, and what none matches goes on to where"
            " it was going. Who connects to the listener itself is reset. A word alone is the"
            " `mode`.",
            default="it gets those that are made to it",
        ),
        "limits": Key(
            LIMITS,
            "Security limits. What goes beyond one is refused, never cut short.",
        ),
        "timeouts": Key(TIMEOUTS, "How long it waits for what."),
    },
    foreign={
        "port": "the port stands in `address`, such as 127.0.0.1:8080",
        "bind": "write `address`",
        "hostname": "write a list, `hostnames`",
        "tls": "l7proxy passes TLS through and ends none: write `protocol: TLS`",
    },
    plain="address",
)


def listener(walker: Walker, name: At[str], fields: Fields | None) -> ListenerDraft:
    """The listener of that name, None where it is no map at all."""
    if fields is None:
        return ListenerDraft(name, None, None, Fields({}, {}, name.node), None)
    address = fields.at("address")
    return ListenerDraft(
        name=name,
        address=address,
        protocol=None if fields.wrong("protocol") else fields.get("protocol", Protocol.HTTP),
        fields=fields,
        listener=None
        if address is None
        else Listener(
            name=name.value, location=walker.location(name.node), **arguments(fields, {})
        ),
    )
