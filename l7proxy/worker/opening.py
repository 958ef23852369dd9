"""From accept to what routes: read a PROXY header, a request's head, a ClientHello.

Dropped when the request goes on its way, so that an idle connection is small; but where each
request is routed by itself: there it reads the head of each.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING

from l7proxy import clienthello, proxyproto
from l7proxy.access import UNIX_CLIENT
from l7proxy.clienthello import HelloReader
from l7proxy.datapath.relay import SourceBroken
from l7proxy.errors import BadHello, BadProxyHeader, BadRequest, Reason
from l7proxy.gate import Rule
from l7proxy.head import Head, HeadReader
from l7proxy.model import Address, Hello, Protocol, ProxyHeader, Side
from l7proxy.responses import http2_refusal
from l7proxy.session import Event, State
from l7proxy.worker.deciding import Deciding
from l7proxy.worker.front import admit, served
from l7proxy.worker.requests import Requests
from l7proxy.worker.wire import WATCH

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

_DONTWAIT = socket.MSG_DONTWAIT


class Opening:
    """The state HEAD of one connection."""

    __slots__ = (
        "_admitted",
        "_connection",
        "_destination",
        "_full_read",
        "_header",
        "_is_late",
        "_peer",
        "_proxy",
        "_reader",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._admitted = False  # by the listener's rules on clients
        self._proxy: proxyproto.HeaderReader | None = None
        self._header: proxyproto.Header | None = None
        self._reader: HeadReader | HelloReader | None = None
        self._full_read = False  # the last read filled its buffer: there may be more
        self._destination: Address | None = None  # where it was going when it was intercepted
        self._is_late = False  # the deadline of a later head is set
        self._peer = ("", "", "")  # who is connected, whatever a request says of others

    def begin(self) -> None:
        """Start: read what routes, or decide at once where nothing is read."""
        connection, front = self._connection, self._connection.listener.front
        if front.intercepted is not None:
            self._destination = front.intercepted.destination(connection)
            if self._destination is None:
                return
            connection.record.destination = str(self._destination)
        if not self._admit_known():
            return
        if front.reads:
            connection.on(Event.ACCEPTED)
        else:
            self._read_stream()

    # ---- reading

    def _read_stream(self) -> None:
        """Take what the client of a bare stream has said already along to the backend.

        Nobody waits for it. It saves a round through epoll for a client that speaks first.
        """
        connection = self._connection
        scratch = connection.worker.first_scratch
        try:
            n = connection.client.recv_into(scratch, 0, _DONTWAIT)
        except BlockingIOError:
            n = 0
        except OSError:
            connection.abort(Reason.CLIENT_RESET)
            return
        connection.early_in += n
        self._decide(None, bytes(scratch[:n]))  # the pair looks after what there is more

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
            self._decide(None, b"")
            return
        self.ready(Side.CLIENT, 0)

    def ready(self, side: Side, mask: int) -> None:
        """Read until it is known what to do, or the client has no more for now."""
        connection = self._connection
        if connection.requests is not None:
            self.next_ready(side, mask)
            return
        scratch = connection.worker.first_scratch
        while True:
            try:
                n = connection.client.recv_into(scratch, 0, _DONTWAIT)
            except BlockingIOError:
                if connection.tick < 0:  # the first wait: most heads are there with their client
                    connection.set_deadline(connection.listener.timeouts.head)
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
                    self._decide(head, reader.surplus)
                return head is not None
            if reader is None:
                self._decide(None, data)
                return True
            hello = reader.feed(data)
            if hello is not None:
                self._decide(hello, bytes(reader.taken))
            return hello is not None
        except BadRequest as error:
            connection.end_with(Reason.BAD_REQUEST)
            connection.record.rule = error.rule
            if error.rule == Rule.HTTP2:
                connection.answer_with(None, http2_refusal(error.detail))
            else:
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
            self._decide(None, b"")
        elif proxy is not None or not isinstance(self._reader, HeadReader):
            connection.abort(Reason.HEAD_TIMEOUT)
        else:
            connection.end_with(Reason.HEAD_TIMEOUT)
            connection.reply_with(408, "the request's head did not arrive in time")
            connection.on(Event.TIMEOUT)

    # ---- request after request

    def requests(self) -> Requests:
        """What the connection has where each of its requests is routed by itself."""
        connection = self._connection
        if connection.requests is None:
            host, name, proxy = self._peer
            connection.requests = Requests(
                connection, host=host, name=name, proxy=proxy, admitted=self._admitted
            )
            connection.requests.client.more = self._full_read
        return connection.requests

    def await_next(self) -> None:
        """The client may send another request, which is read by the rules of the policy then."""
        connection, requests = self._connection, self._connection.requests
        assert requests is not None
        worker = connection.worker
        self._follow_reload()
        if requests.pending or requests.client.more:
            worker.look_again(connection, 0.0)  # others have their turn first
        elif worker.is_stopping or connection.listener.retired:
            connection.hang_up()
            return
        worker.calendar.sooner(connection, worker.now + connection.listener.timeouts.keep_alive)
        connection.watch(connection.client, WATCH)

    def resume(self) -> None:
        """Go on with what has come of the next request already."""
        requests = self._connection.requests
        assert requests is not None
        data, requests.pending = requests.pending, b""
        if data:
            self._begin_next()
            if self._take(data):
                return
        if requests.client.more:
            self._read_next(requests)
        else:
            self._await_rest()

    def next_ready(self, _side: Side, mask: int) -> None:
        """The client has begun another request, or has gone."""
        requests = self._connection.requests
        assert requests is not None
        if mask & select.EPOLLERR:
            self._connection.client_failed()
            return
        if mask & select.EPOLLPRI:
            self._connection.abort(Reason.URGENT_DATA)
            return
        requests.client.note(mask)
        if not requests.pending:  # else it is looked at again soon
            self._read_next(requests)

    def _read_next(self, requests: Requests) -> None:
        connection, client = self._connection, requests.client
        scratch = connection.worker.first_scratch
        while client.more:
            try:
                n = client.read(scratch)
            except SourceBroken:
                connection.client_failed()
                return
            if n < 0:
                break
            if n == 0:
                if not requests.rests:
                    connection.end_with(Reason.CLIENT_CLOSED)
                connection.on(Event.CLIENT_END)
                return
            if requests.rests:
                self._begin_next()
            if self._take(bytes(scratch[:n])):
                return
        self._await_rest()

    def _follow_reload(self) -> None:
        """The next request is read, and let in, by the rules that hold now."""
        connection, listener = self._connection, self._connection.listener
        connection.follow_reload()
        if connection.listener is not listener:
            self._admitted = False
        self._reader = HeadReader(connection.listener.limits)

    def _begin_next(self) -> None:
        self._follow_reload()
        self._connection.on(Event.BEGUN)
        self._is_late = False

    def _await_rest(self) -> None:
        """The head is not complete: it has so much time, from its first byte on."""
        connection = self._connection
        if connection.session.state is State.IDLE:
            if connection.worker.is_stopping or connection.listener.retired:
                connection.hang_up()
        elif not self._is_late:
            self._is_late = True
            connection.set_deadline(connection.listener.timeouts.head)

    def idle_timed_out(self) -> None:
        """A deadline passed while nothing of the next request has come."""
        connection, requests = self._connection, self._connection.requests
        assert requests is not None
        worker = connection.worker
        until = requests.idle_since + connection.listener.timeouts.keep_alive
        if worker.now < until:
            worker.calendar.set(connection, until)
        elif not requests.pending:
            connection.hang_up()

    # ---- what is known

    def _admit_known(self) -> bool:
        """Apply the rules on clients, unless somebody may yet say who it is; False: it is over."""
        connection = self._connection
        if connection.listener.front.knows(connection.client_host):
            self._admitted = admit(connection)
            return self._admitted
        return True

    def _learn_client(self) -> bool:
        """Take over what a PROXY header says; False when this client is refused."""
        header = self._header
        source = None if header is None else header.source
        if source is not None:
            host = source.host if isinstance(source, Address) else UNIX_CLIENT
            served(self._connection, host, str(source))
        return self._admit_known()

    def _decide(self, what: Head | Hello | None, data: bytes) -> None:
        """Decide; `data` is what was read beside a head, or all of a stream that was read."""
        deciding = Deciding(
            self._connection,
            self._header,
            self._destination,
            admitted=self._admitted,
            full_read=self._full_read,
        )
        if isinstance(what, Head):
            connection = self._connection
            if connection.requests is None:
                record = connection.record
                self._peer = (connection.client_host, record.client, record.proxy)
            deciding.route(what, data)
        else:
            deciding.route_stream(what, data)
