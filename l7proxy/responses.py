"""The HTTP responses that l7proxy gives by itself. Pure.

Each is complete and ends the connection: whoever gets one got nothing from a backend, and no
later request on that connection is read.
"""

from __future__ import annotations

# RFC 9110 section 15; 431 is of RFC 6585.
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
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


def local_response(status: int, detail: str = "", *, method: str = "GET") -> bytes:
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
    phrase = _PHRASES.get(status, "Error" if status >= 400 else "Response")
    line = f"{status} {phrase}: {detail}" if detail else f"{status} {phrase}"
    text = "".join(char if char.isprintable() else "?" for char in line)
    body = text.encode("utf-8", "replace") + b"\n"
    head = (
        f"HTTP/1.1 {status} {phrase}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        "Connection: close\r\n"
        "\r\n"
    ).encode("ascii")
    return head if method == "HEAD" else head + body
