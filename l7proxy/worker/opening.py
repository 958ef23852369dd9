"""From accept to a decision: read what routes (a PROXY header, a head, a ClientHello) and decide.

Who the client is, is known in up to three steps: the socket's address; a PROXY header, from trusted
proxies; X-Forwarded-For or Forwarded, likewise. The rules of the listener on clients are applied
once, when it is known, so a list of clients need not name the proxies that they come through.

Dropped when the request goes on its way, so that an idle connection is small.
"""

from __future__ import annotations

import select
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING

from l7proxy import access, clienthello, proxyproto
from l7proxy.access import UNIX_CLIENT
from l7proxy.clienthello import HelloReader
from l7proxy.errors import BadHello, BadProxyHeader, BadRequest, Reason
from l7proxy.filters import redirect_location, rewrite
from l7proxy.forwarded import Hop, client_address
from l7proxy.head import Head, HeadReader, serialise
from l7proxy.model import (
    Address,
    Decision,
    Deny,
    Forward,
    Hello,
    Protocol,
    ProxyHeader,
    Redirect,
    Respond,
    Route,
    Side,
    SocketAddress,
    Splice,
)
from l7proxy.responses import local_response, redirect_response, static_response
from l7proxy.session import Event, State
from l7proxy.worker.front import socket_address, timeouts_of
from l7proxy.worker.sending import Sending

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

_DONTWAIT = socket.MSG_DONTWAIT

ONE_REQUEST = (Splice.REQUEST, Splice.UPGRADE)
"""Ways to splice in which a connection serves one request, so that each one is routed."""


class Opening:
    """The state HEAD of one connection."""

    __slots__ = ("_connection", "_full_read", "_header", "_proxy", "_reader")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._proxy: proxyproto.HeaderReader | None = None
        self._header: proxyproto.Header | None = None
        self._reader: HeadReader | HelloReader | None = None
        self._full_read = False  # the last read filled its buffer: there may be more

    # ---- reading

    def read_head(self) -> None:
        """Begin to read the connection's first bytes."""
        connection, front = self._connection, self._connection.listener.front
        protocol, limits = connection.listener.protocol, connection.listener.limits
        if front.proxy_header is not None:
            required = front.proxy_header is ProxyHeader.REQUIRE
            if connection.client_host in front.trust:
                self._proxy = proxyproto.HeaderReader(required=required)
            elif required:
                # Nobody else may say who the client is; and what is sent without a header is not
                # what the policy wants here.
                connection.record.rule = "untrusted-proxy"
                connection.abort(Reason.PROXY_HEADER)
                return
        if protocol is Protocol.HTTP:
            self._reader = HeadReader(limits)
        elif protocol is Protocol.TLS:
            self._reader = HelloReader(limits.head_bytes)
        elif self._proxy is None:  # a bare stream of somebody whose PROXY header would not count
            self._route_stream(None, b"")
            return
        connection.set_deadline(connection.listener.timeouts.head)
        self.ready(Side.CLIENT, 0)

    def ready(self, _side: Side, _mask: int) -> None:
        """Read until it is known what to do, or the client has no more for now."""
        connection = self._connection
        scratch = connection.worker.first_scratch
        while True:
            try:
                n = connection.client.recv_into(scratch, 0, _DONTWAIT)
            except BlockingIOError:
                connection.watch(connection.client, select.EPOLLIN)
                return
            except OSError:
                connection.client_failed()
                return
            if n == 0:
                connection.end_with(Reason.CLIENT_CLOSED)
                connection.on(Event.CLIENT_END)
                return
            connection.early_in += n
            self._full_read = n == len(scratch)
            if self._take(bytes(scratch[:n])):
                return

    def _take(self, data: bytes) -> bool:
        """Take bytes of the client; True when nothing more is to be read here."""
        connection = self._connection
        try:
            if self._proxy is not None:
                if not self._proxy.feed(data):
                    return False
                proxy, self._proxy = self._proxy, None
                self._header, data = proxy.header, proxy.surplus
                if not self._learn_client():
                    return True
            reader = self._reader
            if isinstance(reader, HeadReader):
                head = reader.feed(data)
                if head is not None:
                    self._route(head, reader.surplus)
                return head is not None
            if reader is None:
                self._route_stream(None, data)
                return True
            hello = reader.feed(data)
            if hello is not None:
                self._route_stream(hello, bytes(reader.taken))
            return hello is not None
        except BadRequest as error:
            connection.end_with(Reason.BAD_REQUEST)
            connection.record.rule = error.rule
            connection.reply_with(error.status, error.detail or error.rule)
            connection.on(Event.ANSWERED)
        except BadHello as error:
            connection.end_with(Reason.BAD_HELLO)
            connection.record.rule = error.rule
            connection.answer_with(None, clienthello.alert(error.alert))
            connection.on(Event.ANSWERED)
        except BadProxyHeader as error:
            connection.record.rule = error.rule
            connection.abort(Reason.PROXY_HEADER)
        return True

    def timed_out(self) -> None:
        """The first bytes did not all come in time.

        Where a PROXY header is optional on a bare stream, and not one byte of it has come, the
        client waits for the server to speak first: it goes on without.
        """
        connection = self._connection
        proxy = self._proxy
        if (
            proxy is not None
            and self._reader is None
            and not proxy.started
            and connection.listener.front.proxy_header is ProxyHeader.ACCEPT
        ):
            self._proxy = None
            self._route_stream(None, b"")
        elif proxy is not None or not isinstance(self._reader, HeadReader):
            connection.abort(Reason.HEAD_TIMEOUT)
        else:
            connection.end_with(Reason.HEAD_TIMEOUT)
            connection.reply_with(408, "the request's head did not arrive in time")
            connection.on(Event.TIMEOUT)

    # ---- who the client is

    def _learn_client(self) -> bool:
        """Take over what a PROXY header says; False when this client is refused."""
        connection, header = self._connection, self._header
        source = None if header is None else header.source
        if source is not None:
            connection.served(
                source.host if isinstance(source, Address) else UNIX_CLIENT, str(source)
            )
        if connection.listener.protocol is Protocol.HTTP:
            front = connection.listener.front
            if connection.client_host in front.trust:
                return True  # the request may say more
        return connection.admit()

    # ---- deciding

    def _route(self, head: Head, surplus: bytes) -> None:
        """Decide about a request."""
        connection, record = self._connection, self._connection.record
        front = connection.listener.front
        record.head_ms = connection.elapsed()
        record.method, record.host, record.path = head.method, head.host, head.path
        peer = connection.client_host  # as a PROXY header said, if there was one
        trusted = not front.knows(peer)
        if trusted:
            client = client_address(peer, head.headers, front.trust)
            if client != peer:
                connection.served(client, client)
            if not connection.admit():
                return
        decision = connection.listener.router.decide(head)
        if not isinstance(decision, Forward):
            self._answer(decision, head)
            return
        route = decision.route
        if not access.admits(route.access, connection.client_host):
            self._deny(route, "access", head)
            return
        hop = Hop(peer, connection.client_host, trusted, self._scheme, front.port)
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
        if one_request and not head.chunked and not head.upgrade:
            # What follows a body of known length is another request, which is not for this route.
            body_left = head.content_length or 0
            surplus = surplus[:body_left]
            body_left -= len(surplus)
        connection.spliceable &= decision.splice is not Splice.NEVER
        connection.dialing.choose(decision, head, connection.client_host, None)
        upgrades = decision.splice is Splice.UPGRADE
        self._go(route, outgoing + surplus, body_left=body_left, upgrades=upgrades)
        connection.on(Event.ROUTED)

    def _route_stream(self, hello: Hello | None, outgoing: bytes) -> None:
        """Decide about a stream; `outgoing` is what was read of it."""
        connection, record = self._connection, self._connection.record
        if hello is not None:
            record.head_ms = connection.elapsed()
            record.sni, record.alpn = hello.sni, hello.alpn
        if not self._admit_unknown():
            return
        decision = connection.listener.router.decide_stream(hello)
        if not isinstance(decision, Forward):
            denied = isinstance(decision, Deny)
            if isinstance(decision, Deny):
                record.route = decision.route.name
            self._refuse_stream(denied=denied, rule="deny" if denied else "")
            return
        route = decision.route
        if not access.admits(route.access, connection.client_host, hello):
            record.route = route.name
            self._refuse_stream(denied=True, rule="access")
            return
        alpn = hello.alpn[0] if hello is not None and hello.alpn else ""
        sni = "" if hello is None else hello.sni
        outgoing = self._proxy_out(decision, sni, alpn) + outgoing
        connection.spliceable &= decision.splice is not Splice.NEVER
        connection.dialing.choose(decision, None, connection.client_host, hello)
        self._go(route, outgoing)
        unread = connection.session.state is State.NEW
        connection.on(Event.ACCEPTED_UNREAD if unread else Event.ROUTED)

    def begin_unread(self) -> None:
        """Decide about a stream of which nothing is read."""
        self._route_stream(None, b"")

    def _admit_unknown(self) -> bool:
        """Admit the client of a stream that was not admitted before: no PROXY header came."""
        connection = self._connection
        return connection.admitted or connection.admit()

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
            destination = socket_address(client.getsockname())
        return proxyproto.encode(version, source, destination, authority=authority, alpn=alpn)

    # ---- answers of our own

    def _answer(self, decision: Decision, head: Head) -> None:
        """Answer a request instead of forwarding it."""
        connection = self._connection
        route = None if isinstance(decision, Forward) else decision.route
        if route is not None and not access.admits(route.access, connection.client_host):
            self._deny(route, "access", head)
            return
        if isinstance(decision, Deny):
            self._deny(decision.route, "deny", head)
            return
        if route is not None:
            connection.record.route = route.name
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
        port = self._connection.listener.front.port
        location = redirect_location(redirect, decision.match, head, self._scheme, port)
        if location is None:
            detail = "the request names no host that it could be redirected to"
            return 400, local_response(400, detail, method=head.method)
        return redirect.status, redirect_response(redirect.status, location, method=head.method)

    @property
    def _scheme(self) -> str:
        """What the client speaks; a trusted proxy may say that it came to it over TLS."""
        return "https" if self._header is not None and self._header.over_tls else "http"

    def _deny(self, route: Route, rule: str, head: Head) -> None:
        connection = self._connection
        connection.record.route, connection.record.rule = route.name, rule
        connection.end_with(Reason.DENIED)
        connection.answer_with(403, local_response(403, method=head.method))
        connection.on(Event.ANSWERED)

    def _refuse_stream(self, *, denied: bool, rule: str) -> None:
        """A TLS client is told by an alert; a bare stream can only be reset."""
        connection = self._connection
        reason = Reason.DENIED if denied else Reason.NO_ROUTE
        connection.record.rule = rule
        if connection.listener.protocol is not Protocol.TLS:
            connection.abort(reason)
            return
        connection.end_with(reason)
        number = clienthello.ACCESS_DENIED if denied else clienthello.UNRECOGNIZED_NAME
        connection.answer_with(None, clienthello.alert(number))
        connection.on(Event.ANSWERED)
