"""The decision about a request or a stream, and what follows from it.

Forward: write what the backend gets first, and choose the endpoints. Else: answer. Where a route
wins but its `allow` or `deny` refuses the client, there is no second choice: another route would
be what its owner did not mean.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from l7proxy import clienthello, proxyproto
from l7proxy.errors import Reason
from l7proxy.filters import redirect_location, rewrite
from l7proxy.forwarded import Hop, came_to, client_address
from l7proxy.head import Head, serialise
from l7proxy.model import (
    Address,
    Decision,
    Deny,
    Forward,
    Hello,
    Protocol,
    Redirect,
    Respond,
    Route,
    SocketAddress,
    Splice,
)
from l7proxy.responses import local_response, redirect_response, static_response
from l7proxy.session import Event, State
from l7proxy.worker import limiting
from l7proxy.worker.front import admit, peer_of, served, socket_address, timeouts_of
from l7proxy.worker.sending import Sending

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

ONE_REQUEST = (Splice.REQUEST, Splice.UPGRADE)
"""Ways to splice in which a connection serves one request, so that each one is routed."""

_ALERTS = {
    Reason.DENIED: clienthello.ACCESS_DENIED,
    Reason.NO_ROUTE: clienthello.UNRECOGNIZED_NAME,
    Reason.NO_ENDPOINT: clienthello.INTERNAL_ERROR,
}


def _named(head: Head, names: frozenset[str]) -> dict[str, str]:
    """These headers, as latin-1; of one that stands several times all values."""
    found: dict[str, str] = {}
    for raw, value in head.headers:
        name = raw.decode("latin-1")
        if name in names:
            text = value.decode("latin-1")
            found[name] = f"{found[name]}, {text}" if name in found else text
    return found


class Deciding:
    """What is known of a connection's beginning when it is decided about."""

    __slots__ = (
        "_admitted",
        "_connection",
        "_destination",
        "_full_read",
        "_header",
        "_trusted",
    )

    def __init__(
        self,
        connection: Connection,
        header: proxyproto.Header | None,
        destination: Address | None,
        *,
        admitted: bool,
        full_read: bool,
    ) -> None:
        """`header`: of the PROXY protocol. `admitted`: the rules on clients were applied.

        `destination`: where the connection was going when it was intercepted. `full_read`: the
        client may have sent more than was read.
        """
        self._connection = connection
        self._header = header
        self._destination = destination
        self._admitted = admitted
        self._full_read = full_read
        self._trusted = False  # whether the request is believed in what it says of hops

    def route(self, head: Head, surplus: bytes) -> None:
        """Decide about a request."""
        connection, record = self._connection, self._connection.record
        front = connection.listener.front
        connection.note_head()
        record.method, record.host, record.path = head.method, head.host, head.path
        record.query, record.version = head.query, head.version
        if connection.worker.log_headers:
            record.headers = _named(head, connection.worker.log_headers)
        peer = connection.client_host  # as a PROXY header said, if there was one
        trusted = self._trusted = not front.knows(peer)
        if not trusted:
            head = head.without_claims()
        else:
            client = client_address(peer, head.headers, front.trust)
            if client != peer:
                served(connection, client, client)
        if not self._admitted and not admit(connection):
            return
        decision = connection.listener.router.decide(head, self._destination)
        if not isinstance(decision, Forward):
            self._answer(decision, head)
            return
        route = decision.route
        if not connection.listener.admits(route, connection.client_host):
            self._deny(route, "access", head)
            return
        if self._is_over_rate(route, head):
            return
        hop = Hop(peer, connection.client_host, trusted, self._scheme, self._port)
        fields = front.forwarded.fields(
            hop, head.headers, authority=head.authority, version=head.version
        )
        one_request = decision.splice in ONE_REQUEST
        outgoing = self._proxy_out(decision, head.host, "") + serialise(
            head,
            fields,
            trusted=trusted,
            one_request=one_request,
            rewriting=rewrite(head, route, decision.match),
        )
        body_left = None
        tunnel = head.upgrade or head.method == "CONNECT"
        if one_request and not head.chunked and not tunnel:
            # What follows a body of known length is another request, which is not for this route.
            body_left = head.content_length or 0
            surplus = surplus[:body_left]
            body_left -= len(surplus)
        connection.spliceable &= decision.splice is not Splice.NEVER
        host = connection.client_host
        connection.dialing.choose(decision, head, host, None, self._destination)
        self._keep_client()
        connection.brief = one_request or not head.keep_alive
        connection.upgrades = head.upgrade is not None
        upgrades = decision.splice is Splice.UPGRADE
        self._go(route, outgoing + surplus, body_left=body_left, upgrades=upgrades)
        connection.on(Event.ROUTED)

    def route_stream(self, hello: Hello | None, outgoing: bytes) -> None:
        """Decide about a stream; `outgoing` is what was read of it."""
        connection, record = self._connection, self._connection.record
        if hello is not None:
            connection.note_head()
            record.sni, record.alpn = hello.sni, hello.alpn
        if not self._admitted and not admit(connection):
            return
        decision = connection.listener.router.decide_stream(hello, self._destination)
        if not isinstance(decision, Forward):
            if isinstance(decision, Deny):
                record.route, record.rule = decision.route.name, "deny"
                self._refuse_stream(Reason.DENIED)
            else:
                missing = isinstance(decision, Respond) and decision.status >= 500
                self._refuse_stream(Reason.NO_ENDPOINT if missing else Reason.NO_ROUTE)
            return
        route = decision.route
        if not connection.listener.admits(route, connection.client_host, hello):
            record.route, record.rule = route.name, "access"
            self._refuse_stream(Reason.DENIED)
            return
        alpn = hello.alpn[0] if hello is not None and hello.alpn else ""
        sni = "" if hello is None else hello.sni
        outgoing = self._proxy_out(decision, sni, alpn) + outgoing
        connection.spliceable &= decision.splice is not Splice.NEVER
        host = connection.client_host
        connection.dialing.choose(decision, None, host, hello, self._destination)
        self._keep_client()
        self._go(route, outgoing)
        unread = connection.session.state is State.NEW
        connection.on(Event.ACCEPTED_UNREAD if unread else Event.ROUTED)

    def _keep_client(self) -> None:
        """Have backends dialled with the address that the connection is from, where that is asked.

        Not with what a trusted proxy says: nobody would bring the answers back.
        """
        intercepted = self._connection.listener.front.intercepted
        if intercepted is not None and intercepted.keeps_client:
            try:
                self._connection.dialing.source = peer_of(self._connection.client.getpeername())[0]
            except OSError:
                pass  # the client is gone already, which is found out soon

    def _go(
        self,
        route: Route,
        outgoing: bytes,
        *,
        body_left: int | None = None,
        upgrades: bool = False,
    ) -> None:
        connection = self._connection
        connection.timeouts = timeouts_of(connection.listener.timeouts, route.timeouts)
        connection.sending = Sending(
            connection,
            outgoing,
            full_read=self._full_read,
            body_left=body_left,
            upgrades=upgrades,
        )
        connection.opening = None

    def _proxy_out(self, decision: Forward, authority: str, alpn: str) -> bytes:
        """The PROXY header for the backend, if it wants one."""
        version = decision.backend.proxy_protocol
        if version is None:
            return b""
        client, header = self._connection.client, self._header
        source: SocketAddress | None
        destination: SocketAddress | None
        if header is not None and header.source is not None:
            source, destination = header.source, header.destination
        else:
            try:
                source = socket_address(client.getpeername())
            except OSError:  # the client is gone already, which is found out soon
                source = None
            destination = self._destination or socket_address(client.getsockname())
        return proxyproto.encode(version, source, destination, authority=authority, alpn=alpn)

    # ---- answers of our own

    def _answer(self, decision: Decision, head: Head) -> None:
        """Answer a request instead of forwarding it."""
        connection = self._connection
        route = None if isinstance(decision, Forward) else decision.route
        if route is not None and not connection.listener.admits(route, connection.client_host):
            self._deny(route, "access", head)
            return
        if isinstance(decision, Deny):
            self._deny(decision.route, "deny", head)
            return
        if route is not None:
            connection.record.route = route.name
            if self._is_over_rate(route, head):
                return
        data: bytes
        if isinstance(decision, Redirect):
            status, data = self._redirect(decision, head)
        else:
            assert isinstance(decision, Respond)
            status, respond = decision.status, None if route is None else route.respond
            if respond is not None:
                data = static_response(respond, method=head.method)
            else:
                data = local_response(status, decision.detail, method=head.method)
        refused = status == HTTPStatus.BAD_REQUEST and route is None
        connection.end_with(Reason.BAD_REQUEST if refused else Reason.LOCAL_REPLY)
        if refused:
            connection.record.rule = "ambiguous-path"
        connection.answer_with(status, data)
        connection.on(Event.ANSWERED)

    def _redirect(self, decision: Redirect, head: Head) -> tuple[int, bytes]:
        redirect = decision.route.redirect
        assert redirect is not None
        scheme, port = self._scheme, self._port
        if self._trusted:
            scheme, port = came_to(scheme, port, head.headers)
        location = redirect_location(redirect, decision.match, head, scheme, port)
        if location is None:
            detail = "the request names no host that it could be redirected to"
            return 400, local_response(400, detail, method=head.method)
        return redirect.status, redirect_response(redirect.status, location, method=head.method)

    @property
    def _scheme(self) -> str:
        """What the client speaks; a trusted proxy may say that it came to it over TLS."""
        return "https" if self._header is not None and self._header.over_tls else "http"

    @property
    def _port(self) -> int | None:
        """What the client came to, here or at the proxy that sent a PROXY header."""
        header = self._header
        if header is not None and isinstance(header.destination, Address):
            return header.destination.port
        if self._destination is not None:
            return self._destination.port
        return self._connection.listener.front.port

    def _deny(self, route: Route, rule: str, head: Head) -> None:
        connection = self._connection
        connection.record.route, connection.record.rule = route.name, rule
        connection.end_with(Reason.DENIED)
        connection.answer_with(403, local_response(403, method=head.method))
        connection.on(Event.ANSWERED)

    def _is_over_rate(self, route: Route, head: Head) -> bool:
        """Whether the route has let through all that it may by now; the request is answered then.

        Asked once for each request: it counts.
        """
        connection = self._connection
        wait = limiting.over(connection.worker, route, connection.client_host)
        if wait:
            connection.record.route, connection.record.rule = route.name, "rateLimit"
            connection.end_with(Reason.RATE_LIMITED)
            connection.answer_with(limiting.TOO_MANY, limiting.refusal(wait, head.method))
            connection.on(Event.ANSWERED)
        return wait > 0

    def _refuse_stream(self, reason: Reason) -> None:
        """A TLS client is told by an alert; a bare stream can only be reset."""
        connection = self._connection
        if connection.listener.protocol is not Protocol.TLS:
            connection.abort(reason)
            return
        connection.end_with(reason)
        connection.answer_with(None, clienthello.alert(_ALERTS[reason]))
        connection.on(Event.ANSWERED)
