"""The HTTP responses that l7proxy gives by itself. Pure.

Each is complete, and ends the connection unless it says `keep`: then the client may send another
request on it, which is routed by itself.
"""

from __future__ import annotations

from l7proxy.model import StaticResponse

# RFC 9110 section 15; 431 is of RFC 6585.
_PHRASES = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    205: "Reset Content",
    301: "Moved Permanently",
    302: "Found",
    303: "See Other",
    304: "Not Modified",
    307: "Temporary Redirect",
    308: "Permanent Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    408: "Request Timeout",
    409: "Conflict",
    410: "Gone",
    414: "URI Too Long",
    417: "Expectation Failed",
    421: "Misdirected Request",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}


def local_response(
    status: int, detail: str = "", *, method: str = "GET", keep: bool = False
) -> bytes:
    """Return a complete HTTP/1.1 response with a short plain text body, for any final status.

    `detail` becomes the rest of the body's only line: its control characters are replaced, so
    that text that came from a request cannot look like more than text. `method` is the request's:
    RFC 9110 section 9.3.2, "the server MUST NOT send content in the response" to HEAD.

    There is no Date field: this floor has no clock, and RFC 9110 section 6.6.1 wants none from an
    origin server without one. `no-store`, because 404, 414 and 501 may be cached otherwise
    (RFC 9110 section 15.1), which would outlive a mended policy.
    """
    if not 200 <= status <= 599 or status in (204, 205, 304):
        raise ValueError(f"status {status} has no content or is not final")
    phrase = _phrase(status)
    line = f"{status} {phrase}: {detail}" if detail else f"{status} {phrase}"
    text = "".join(char if char.isprintable() else "?" for char in line)
    body = text.encode("utf-8", "replace") + b"\n"
    head = (
        f"HTTP/1.1 {status} {phrase}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        f"{'' if keep else _CLOSE}"
        "\r\n"
    ).encode("ascii")
    return head if method == "HEAD" else head + body


_CLOSE = "Connection: close\r\n"


def _phrase(status: int) -> str:
    return _PHRASES.get(status, "Error" if status >= 400 else "Response")


def static_response(response: StaticResponse, *, method: str = "GET", keep: bool = False) -> bytes:
    """Return the response that a policy writes, complete.

    Content-Length and `Connection: close` are added, and a Content-Type where there is a body and
    the policy names none. 204 and 304 have no content and no length (RFC 9110 section 8.6), 205
    has the length 0 (section 15.3.6); a response to HEAD tells the length and has no content.
    """
    status = response.status
    body = b"" if status in (204, 205, 304) else response.body.encode()
    lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
    lines += [f"{name}: {value}" for name, value in response.headers]
    if body and not any(name.lower() == "content-type" for name, _ in response.headers):
        lines.append("Content-Type: text/plain; charset=utf-8")
    if status not in (204, 304):
        lines.append(f"Content-Length: {len(body)}")
    if not keep:
        lines.append("Connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    return head if method == "HEAD" else head + body


def redirect_response(
    status: int, location: str, *, method: str = "GET", keep: bool = False
) -> bytes:
    """Return a redirect with a line of text for people whose client does not follow it.

    No Cache-Control: 301 and 308 may be cached (RFC 9110 section 15.4), which is their purpose.
    """
    return static_response(
        StaticResponse(status, (("Location", location),), f"{status} {_phrase(status)}\n"),
        method=method,
        keep=keep,
    )


def http2_refusal(detail: str) -> bytes:
    """Return what a client gets that began with HTTP/2: an answer that it can read.

    RFC 9113 section 3.4: "The server connection preface consists of a potentially empty SETTINGS
    frame". Then a GOAWAY frame (section 6.8) with the error HTTP_1_1_REQUIRED (section 7: "The
    endpoint requires that HTTP/1.1 be used instead of HTTP/2"), stream 0 as the last one that was
    looked at, and `detail` as debug data, which clients of gRPC show.
    """
    payload = bytes(4) + _HTTP_1_1_REQUIRED.to_bytes(4, "big") + detail.encode("ascii", "replace")
    return _frame(_SETTINGS, b"") + _frame(_GOAWAY, payload)


_SETTINGS, _GOAWAY = 4, 7
_HTTP_1_1_REQUIRED = 13


def _frame(kind: int, payload: bytes) -> bytes:
    """RFC 9113 section 4.1: length, type, flags, stream; all of the connection's own here."""
    return len(payload).to_bytes(3, "big") + bytes((kind, 0)) + bytes(4) + payload
