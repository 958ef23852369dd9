"""One active health check: connect, perhaps ask, and look at the answer. No state is kept here.

Whatever the other side sends, a check ends within its timeout and holds no more than `BODY_MOST`
bytes of it. A backend that is spoken to with the PROXY protocol is so here too, with the header
that says "this is the proxy's own connection" (PROXY protocol specification, section 2.1, UNKNOWN,
and 2.2, LOCAL): one that requires a header would call every check an attack.
"""

from __future__ import annotations

import asyncio

import h11

from l7proxy import __version__
from l7proxy.model import Address, HealthCheck, ProbeType, ProxyVersion, SocketAddress
from l7proxy.telemetry.findings import Finding, Trouble

BODY_MOST = 64 * 1024  # bytes of a body that are looked at; a limit on memory
HEAD_MOST = 16 * 1024

_PREFACE = {
    None: b"",
    ProxyVersion.V1: b"PROXY UNKNOWN\r\n",
    ProxyVersion.V2: b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
}


async def check(
    address: SocketAddress, rules: HealthCheck, host: str, proxy: ProxyVersion | None = None
) -> Finding:
    """Look at an endpoint once. `host` is for the Host header, unless the rules have one."""
    writer = None
    try:
        async with asyncio.timeout(rules.timeout):
            reader, writer = await _connect(address)
            writer.write(_PREFACE[proxy])
            if rules.type is ProbeType.TCP:
                return Finding()
            return await _ask(reader, writer, rules, rules.host or host)
    except TimeoutError:
        return Finding(Trouble.TIMEOUT)
    except OSError as error:
        return Finding(Trouble.ERROR, error.errno or 0)
    finally:
        if writer is not None:
            writer.close()


async def _connect(address: SocketAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, Address):
        return await asyncio.open_connection(address.host, address.port, limit=BODY_MOST)
    path = address.path
    return await asyncio.open_unix_connection(
        "\0" + path[1:] if path.startswith("@") else path, limit=BODY_MOST
    )


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rules: HealthCheck, host: str
) -> Finding:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MOST)
    request = h11.Request(
        method="GET",
        target=rules.path,
        headers=[
            ("Host", host),
            ("User-Agent", f"l7proxy/{__version__} (health check)"),
            ("Accept", "*/*"),
            ("Connection", "close"),
        ],
    )
    writer.write(http.send(request) + http.send(h11.EndOfMessage()))
    wanted, body, ended = rules.body.encode(), bytearray(), False
    while True:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError:
            silent = ended and not http.trailing_data[0]
            return Finding(Trouble.CLOSED if silent else Trouble.NOT_HTTP)
        if event is h11.NEED_DATA:
            data = await reader.read(HEAD_MOST)
            ended = not data
            http.receive_data(data)
        elif isinstance(event, h11.Response):
            if not any(low <= event.status_code <= high for low, high in rules.statuses):
                return Finding(Trouble.STATUS, event.status_code)
            if not wanted:
                return Finding()
        elif isinstance(event, h11.Data):
            body += event.data
            if wanted in body[:BODY_MOST]:
                return Finding()
            if len(body) >= BODY_MOST:
                return Finding(Trouble.BODY)
        elif not isinstance(event, h11.InformationalResponse):  # the message is over
            return Finding(Trouble.BODY)
