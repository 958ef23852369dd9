"""The decision about a request or a stream, and what follows from it.

Forward: write what the backend gets first, and choose the endpoints. Else: answer. Where a route
wins but its `allow` or `deny` refuses the client, there is no second choice: another route would
be what its owner did not mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l7proxy import clienthello, proxyproto
from l7proxy.errors import Reason
from l7proxy.filters import redirect_location, rewrite
from l7proxy.forwarded import Hop, came_to, client_address
from l7proxy.head import Head, serialise
from l7proxy.model import (
    PER_REQUEST,
    Address,
    Backend,
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
from l7proxy.routing.router import AMBIGUOUS
from l7proxy.session import Event, State
from l7proxy.worker import limiting
from l7proxy.worker.copying import kept_of
from l7proxy.worker.exchange import Exchange
from l7proxy.worker.front import admit, peer_of, served, socket_address, timeouts_of
from l7proxy.worker.sending import Sending

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection
    from l7proxy.worker.opening import Opening

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
            self._answer(decision, head, surplus)
            return
        route = decision.route
        if not connection.listener.admits(route, connection.client_host):
            self._deny(route, "access", head, surplus)
            return
        if self._is_over_rate(route, head, surplus):
            return
        hop = Hop(peer, connection.client_host, trusted, self._scheme, self._port)
        fields = front.forwarded.fields(
            hop, head.headers, authority=head.authority, version=head.version
        )
        by_request = decision.splice in PER_REQUEST or connection.requests is not None
        written = serialise(
            head,
            fields,
            trusted=trusted,
            kept=by_request,
            rewriting=rewrite(head, route, decision.match),
        )
        if by_request:
            self._exchange(decision, head, written, surplus)
            return
        outgoing = self._proxy_out(decision.backend, head.host, "") + written
        connection.spliceable &= decision.splice is not Splice.NEVER
        host = connection.client_host
        connection.dialing.choose(decision, head, host, None, self._destination)
        self._keep_client()
        connection.brief = not head.keep_alive
        connection.upgrades = head.upgrade is not None
        self._go(route, outgoing + surplus)
        connection.on(Event.ROUTED)

    def _exchange(self, decision: Forward, head: Head, written: bytes, surplus: bytes) -> None:
        """Send this request on by itself. Raises BadRequest, where what follows it is no body."""
        connection, mirror = self._connection, decision.route.filters.mirror
        outgoing = self._proxy_out(decision.backend, head.host, "") + written
        mirrored = connection.worker.mirrors.wants(mirror, head)
        requests = self._opening.requests()
        exchange = requests.exchange = Exchange(
            connection,
            requests,
            head,
            decision,
            outgoing,
            surplus,
            keep=kept_of(decision.route, head, mirrored=mirrored),
        )
        if mirror is not None and mirrored:
            backend = connection.listener.groups[mirror.backend].backend
            exchange.mirrored = self._proxy_out(backend, head.host, "") + written

        connection.timeouts = timeouts_of(connection.listener.timeouts, decision.route.timeouts)
        host = connection.client_host
        connection.dialing.choose(decision, head, host, None, self._destination)
        self._keep_client()
        # what the backend was told of the client is of this client alone
        exchange.pools = decision.backend.proxy_protocol is None and not connection.dialing.source
        connection.on(Event.ROUTED)

    @property
    def _opening(self) -> Opening:
        opening = self._connection.opening
        assert opening is not None
        return opening

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
        outgoing = self._proxy_out(decision.backend, sni, alpn) + outgoing
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

    def _go(self, route: Route, outgoing: bytes) -> None:
        connection = self._connection
        connection.timeouts = timeouts_of(connection.listener.timeouts, route.timeouts)
        connection.sending = Sending(connection, outgoing, full_read=self._full_read)
        connection.opening = None

    def _proxy_out(self, backend: Backend, authority: str, alpn: str) -> bytes:
        """The PROXY header for the backend, if it wants one."""
        version = backend.proxy_protocol
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

    def _keeps(self, head: Head, surplus: bytes) -> bool:
        """Whether the client may go on after an answer of ours; then with the surplus."""
        if head.body_length != 0 or not self._connection.may_keep(head):
            return False
        self._opening.requests().pending = surplus
        return True

    def _answer(self, decision: Decision, head: Head, surplus: bytes) -> None:
        """Answer a request instead of forwarding it."""
        connection = self._connection
        route = None if isinstance(decision, Forward) else decision.route
        if route is not None and not connection.listener.admits(route, connection.client_host):
            self._deny(route, "access", head, surplus)
            return
        if isinstance(decision, Deny):
            self._deny(decision.route, "deny", head, surplus)
            return
        if route is not None:
            connection.record.route = route.name
            if self._is_over_rate(route, head, surplus):
                return
        data: bytes
        refused = decision is AMBIGUOUS
        keep = not refused and self._keeps(head, surplus)
        if isinstance(decision, Redirect):
            status, data = self._redirect(decision, head, keep=keep)
        else:
            assert isinstance(decision, Respond)
            status, respond = decision.status, None if route is None else route.respond
            if respond is not None:
                data = static_response(respond, method=head.method, keep=keep)
            else:
                data = local_response(status, decision.detail, method=head.method, keep=keep)
        connection.end_with(Reason.BAD_REQUEST if refused else Reason.LOCAL_REPLY)
        if refused:
            connection.record.rule = "ambiguous-path"
        connection.answer_with(status, data, keep=keep)
        connection.on(Event.ANSWERED)

    def _redirect(self, decision: Redirect, head: Head, *, keep: bool) -> tuple[int, bytes]:
        redirect = decision.route.redirect
        assert redirect is not None
        scheme, port = self._scheme, self._port
        if self._trusted:
            scheme, port = came_to(scheme, port, head.headers)
        location = redirect_location(redirect, decision.match, head, scheme, port)
        if location is None:
            detail = "the request names no host that it could be redirected to"
            return 400, local_response(400, detail, method=head.method, keep=keep)
        answer = redirect_response(redirect.status, location, method=head.method, keep=keep)
        return redirect.status, answer

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

    def _deny(self, route: Route, rule: str, head: Head, surplus: bytes) -> None:
        connection = self._connection
        connection.record.route, connection.record.rule = route.name, rule
        connection.end_with(Reason.DENIED)
        keep = self._keeps(head, surplus)
        connection.answer_with(403, local_response(403, method=head.method, keep=keep), keep=keep)
        connection.on(Event.ANSWERED)

    def _is_over_rate(self, route: Route, head: Head, surplus: bytes) -> bool:
        """Whether the route has let through all that it may by now; the request is answered then.

        Asked once for each request: it counts.
        """
        connection = self._connection
        wait = limiting.over(connection.worker, route, connection.client_host)
        if wait:
            connection.record.route, connection.record.rule = route.name, "rateLimit"
            connection.end_with(Reason.RATE_LIMITED)
            keep = self._keeps(head, surplus)
            answer = limiting.refusal(wait, head.method, keep=keep)
            connection.answer_with(limiting.TOO_MANY, answer, keep=keep)
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
