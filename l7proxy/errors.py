"""Exceptions and the stable names of reasons. Floor 0: imports nothing of l7proxy.

An error says where, what, and what to do about it. Whatever ends or degrades a connection has one
name out of `Reason`, so that the access log, the statistics and the tests speak of the same thing.
"""

from __future__ import annotations

from enum import StrEnum


class L7ProxyError(Exception):
    """Base of every error that l7proxy raises on purpose."""


class PolicyError(L7ProxyError):
    """A policy that cannot be used. `str()` is the whole report, all problems at once."""


class DatapathUnavailable(L7ProxyError):
    """The kernel cannot splice here.

    `reason` is one line that says what is missing, `remedy` the command or setting that mends it.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}; {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy


class StartupError(L7ProxyError):
    """The proxy cannot start as asked (address in use, no such user, ...)."""


class TransitionError(L7ProxyError):
    """An event that the session's table has no row for: always a bug of ours."""


class BadRequest(L7ProxyError):
    """A head that is not forwarded.

    `status` is the HTTP status to answer with, `rule` the short name of the rule that was broken.
    """

    def __init__(self, status: int, rule: str, detail: str = "") -> None:
        super().__init__(f"{status} {rule}: {detail}" if detail else f"{status} {rule}")
        self.status = status
        self.rule = rule
        self.detail = detail


class BadResponse(L7ProxyError):
    """A response of a backend that is not forwarded: where it ends, or what it says, is ambiguous.

    `rule` is the short name of the rule that was broken. Whoever catches it closes the connection
    to the backend.
    """

    def __init__(self, rule: str, detail: str = "") -> None:
        super().__init__(f"{rule}: {detail}" if detail else rule)
        self.rule = rule
        self.detail = detail


class BadHello(L7ProxyError):
    """First bytes on a TLS listener that are no ClientHello, or one that is not passed on.

    `rule` is the short name of the rule that was broken, `alert` the number of the TLS alert that
    says so (RFC 8446 section 6).
    """

    def __init__(self, rule: str, alert: int, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.alert = alert
        self.detail = detail


class BadProxyHeader(L7ProxyError):
    """A malformed header of the PROXY protocol; `rule` is the short name of what was broken."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail


class Reason(StrEnum):
    """Why a connection ended as it did; `errors` of `/stats` counts all but `DONE`."""

    DONE = "done"  # both ends finished and every byte was delivered
    LOCAL_REPLY = "local_reply"  # answered by l7proxy itself as the policy says (404)
    BAD_REQUEST = "bad_request"  # the strict gate refused the head
    BAD_HELLO = "bad_hello"  # no ClientHello, or none that is passed on
    PROXY_HEADER = "proxy_header"  # a malformed PROXY header, or none where one is required
    DENIED = "denied"  # by `allow` and `deny` of a listener or of a route, or by `deny: true`
    LOOP = "loop"  # an intercepted connection that would come back: it is to us, or from us
    NO_ROUTE = "no_route"  # a stream (TLS, TCP) that no route takes; a request is answered with 404
    HEAD_TIMEOUT = "head_timeout"  # no complete head, ClientHello or PROXY header in time
    CLIENT_CLOSED = "client_closed"  # the client left before its first request was complete
    CLIENT_RESET = "client_reset"
    BACKEND_RESET = "backend_reset"
    DIAL_REFUSED = "dial_refused"  # no endpoint took the connection
    DIAL_TIMEOUT = "dial_timeout"
    NO_ENDPOINT = "no_endpoint"  # every endpoint of the group is down or has weight 0
    UNRESOLVED = "unresolved"  # the names of the group have no address yet
    CIRCUIT_OPEN = "circuit_open"  # the group, or each of its endpoints, has all that it takes
    BACKEND_CLOSED = "backend_closed"  # the backend left before it got the request
    BAD_RESPONSE = "bad_response"  # the strict gate refused the backend's response
    REQUEST_TIMEOUT = "request_timeout"  # the response was not through in the route's time
    IDLE_TIMEOUT = "idle_timeout"
    STALLED = "stalled"  # a receiver took nothing for the overflow timeout
    URGENT_DATA = "urgent_data"  # out-of-band TCP data is refused
    CONNECTION_LIMIT = "connection_limit"
    CLIENT_LIMIT = "client_limit"  # this client has as many connections as it may
    RATE_LIMITED = "rate_limited"  # more requests than a route lets through
    DESCRIPTORS = "descriptors"  # EMFILE or ENFILE
    DATAPATH = "datapath"  # the verdict program gave a connection up (broken sequence)
    DRAIN_DEADLINE = "drain_deadline"
    OPERATOR_RESET = "operator_reset"  # somebody asked the admin server to end this one
    UPGRADED = "upgraded"  # not spliced when another l7proxy took this one's place
    NOT_ADOPTED = "not_adopted"  # its worker died, and bytes of it with the worker
    INTERNAL = "internal"  # a bug of ours; the log has the traceback
