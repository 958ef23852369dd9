"""Whether a contender answers as the origins do: asked before anything of it is measured."""

from __future__ import annotations

import socket

from .hosts import Addresses, LoadTestError
from .procs import split

PATIENCE = 5.0  # seconds for each answer
ECHO = bytes(range(256)) * 16


def check(contender: Addresses, origins: Addresses) -> None:
    """Raises LoadTestError that tells which answer was another one.

    Each question is asked once more than there are origins, so that each of them answers one.
    """
    for ports, paths in (("web", ("/", "/bytes/3")), ("bulk", ("/bytes/200000",))):
        for path in paths:
            wanted = _get(getattr(origins, ports)[0], path)
            for turn in range(len(origins.web) + 1):
                addresses = getattr(contender, ports)
                _same(f"GET {path}", _get(addresses[turn % len(addresses)], path), wanted)
    for address in contender.bulk:
        _same("PUT", _exchange(address, _put(ECHO)), b"ok\n")
    for address in contender.echo:
        _same("echo", _echo(address), ECHO)


def _same(question: str, answer: bytes, wanted: bytes) -> None:
    if answer != wanted:
        raise LoadTestError(
            f"{question}: {len(answer)} bytes {answer[:40]!r}, the origin says"
            f" {len(wanted)} bytes {wanted[:40]!r}"
        )


def _get(address: str, path: str) -> bytes:
    return _exchange(address, f"GET {path} HTTP/1.1\r\nHost: load\r\n\r\n".encode())


def _put(body: bytes) -> bytes:
    return b"PUT / HTTP/1.1\r\nHost: load\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _exchange(address: str, request: bytes) -> bytes:
    """The body of the answer, as long as its Content-Length says."""
    try:
        with socket.create_connection(split(address), PATIENCE) as connection:
            connection.sendall(request)
            said = b""
            while b"\r\n\r\n" not in said:
                more = connection.recv(65536)
                if not more:
                    raise LoadTestError(f"{address} ended within the head: {said[:80]!r}")
                said += more
            head, _, body = said.partition(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").split("\r\n")
            if status.split()[1:2] != ["200"]:
                raise LoadTestError(f"{address} answered {status!r}")
            fields = {name.lower(): value for name, _, value in (x.partition(":") for x in lines)}
            length = int(fields["content-length"])
            while len(body) < length and (more := connection.recv(65536)):
                body += more
    except (OSError, KeyError, ValueError) as error:
        raise LoadTestError(f"{address}: {request.partition(b'  ')[0][:20]!r}: {error!r}") from None
    return body


def _echo(address: str) -> bytes:
    try:
        with socket.create_connection(split(address), PATIENCE) as connection:
            connection.sendall(ECHO)
            said = b""
            while len(said) < len(ECHO) and (more := connection.recv(65536)):
                said += more
    except OSError as error:
        raise LoadTestError(f"{address}: echo: {error!r}") from None
    return said
