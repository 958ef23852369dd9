"""The texts of HTTP and TLS in a policy: header fields, methods, statuses, patterns. Pure.

As in `values`, each parser returns the value or raises Bad.
"""

from __future__ import annotations

import re

from l7proxy.config.bad import Bad
from l7proxy.config.problems import quoted
from l7proxy.config.values import MAX_PATH
from l7proxy.filters import forbidden_header
from l7proxy.patterns import PatternError, compile_pattern

# Security limits.
MAX_HEADER_NAME = 256  # Gateway API v1, HTTPHeaderName: maxLength
MAX_HEADER_VALUE = 4096  # Gateway API v1, HTTPHeader: maxLength of the value
MAX_METHOD = 32
MAX_QUERY_NAME = 256
MAX_QUERY_VALUE = 1024  # Gateway API v1, HTTPQueryParamMatch: maxLength
MAX_ALPN = 255  # RFC 7301, 3.1: opaque ProtocolName<1..2^8-1>
MAX_COOKIE_NAME = 128
MAX_EXPECTED = 1024  # bytes that a health check looks for
MAX_BODY = 64 * 1024  # of a response that stands in the policy

# RFC 9110, 5.6.2: token = 1*tchar
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105
_TOKEN = re.compile(TOKEN)
_NO_TOKEN = re.compile(r"[^!#$%&'*+.^_`|~0-9A-Za-z-]")


def _token(text: str, what: str, most: int, hint: str) -> str:
    if not text:
        raise Bad(f"a {what} cannot be empty")
    found = _NO_TOKEN.search(text)
    if found is not None:
        at = slice(found.start(), found.end())
        raise Bad(f"{quoted(found[0])} cannot stand in a {what}", hint, at)
    if len(text) > most:
        raise Bad(f"the {what} {quoted(text)} has more than {most} characters")
    return text


def header_name(text: str) -> str:
    """A field name of RFC 9110, 5.1, as written; names have no case."""
    if text.startswith(":") and _TOKEN.fullmatch(text[1:]):
        hint = "hosts, paths and methods have keys of their own"
        raise Bad(f"{quoted(text)} is a pseudo-header of HTTP/2", hint)
    if text.endswith(":") and _TOKEN.fullmatch(text[:-1]):
        raise Bad(f"{quoted(text)} ends with `:`", f"write {text[:-1][:60]}", slice(-1, None))
    hint = "letters, digits, and any of !#$%&'*+-.^_`|~"
    return _token(text, "header name", MAX_HEADER_NAME, hint)


def header_name_to_match(text: str) -> str:
    """A field name in lower case."""
    return header_name(text).lower()


def header_name_to_change(text: str) -> str:
    """A field name that a filter may set, add or remove, as written."""
    name = header_name(text)
    if (why := forbidden_header(name)) is not None:
        raise Bad(f"the header {quoted(name)} cannot be changed", why)
    return name


def header_name_of_response(text: str) -> str:
    """A field name that a filter may set, add or remove in a response, as written."""
    name = header_name(text)
    if (why := forbidden_header(name)) is not None:
        hint = "it is a header of requests" if name.lower() in ("host", "expect", "te") else why
        raise Bad(f"the header {quoted(name)} of a response cannot be changed", hint)
    return name


def header_name_to_send(text: str) -> str:
    """A field name that a response of the policy's own may have, as written."""
    name = header_name(text)
    if (why := forbidden_header(name)) is not None:
        hint = "it is a header of requests" if name.lower() in ("host", "expect") else why
        raise Bad(f"the header {quoted(name)} cannot be written here", hint)
    return name


_NO_VALUE = re.compile(r"[^\t\x20-\x7e]")


def header_value(text: str) -> str:
    """A field value of RFC 9110, 5.5, in ASCII.

    "Field values containing CR, LF, or NUL characters are invalid and dangerous"; "field values are
    usually constrained to the range of US-ASCII characters".
    """
    found = _NO_VALUE.search(text)
    if found is not None:
        at = slice(found.start(), found.end())
        if found[0] in "\r\n":
            hint = "a line break would begin another header: write the value on one line"
            raise Bad("a header value cannot hold a line break", hint, at)
        hint = "header values are ASCII: encode it as the receiver expects it"
        raise Bad(f"{quoted(found[0])} cannot stand in a header value", hint, at)
    if text != text.strip(" \t"):
        at = slice(0, 1) if text[0] in " \t" else slice(-1, None)
        hint = "it is not a part of the value on the way: remove it"
        raise Bad("a header value cannot begin or end with a blank", hint, at)
    if len(text) > MAX_HEADER_VALUE:
        raise Bad(f"a header value has at most {MAX_HEADER_VALUE} characters")
    return text


def query_name(text: str) -> str:
    """The name of a query parameter."""
    if not text:
        raise Bad("the name of a query parameter cannot be empty")
    for char in "&=#?":
        if char in text:
            at = slice(text.index(char), text.index(char) + 1)
            hint = "write the name alone; its value stands behind it"
            raise Bad(f"`{char}` cannot stand in the name of a query parameter", hint, at)
    if len(text) > MAX_QUERY_NAME:
        most = MAX_QUERY_NAME
        raise Bad(f"the name of a query parameter has at most {most} characters")
    return text


def query_value(text: str) -> str:
    """The value of a query parameter."""
    if len(text) > MAX_QUERY_VALUE:
        raise Bad(f"the value of a query parameter has at most {MAX_QUERY_VALUE} characters")
    return text


def method(text: str) -> str:
    """A method of RFC 9110, 9.1: "The method token is case-sensitive"."""
    _token(text, "method", MAX_METHOD, "write one method, such as GET")
    if text != text.upper():
        hint = f"write {text.upper()}"
        raise Bad(f"{quoted(text)} is not in upper case, and methods are case-sensitive", hint)
    return text


def pattern(text: str) -> str:
    """A regular expression in RE2's syntax, which no input can make slow."""
    if not text:
        raise Bad("an empty regular expression matches nothing but the empty text")
    try:
        compile_pattern(text)
    except PatternError as error:
        own = error.reason.startswith("it ")  # a limit of ours, and no matter of syntax
        raise Bad(
            f"{quoted(text)} cannot be used as a regular expression: {error.reason}",
            "" if own else "the syntax is that of RE2, without look-around and back-references",
            slice(error.start, error.end),
        ) from None
    return text


def path_pattern(text: str) -> str:
    """A regular expression that a whole path is compared with."""
    pattern(text)
    if re.match(r"[A-Za-z0-9_~%-]", text) and "|" not in text:
        hint = f"write /{text[:60]}, or .*{text[:60]} for paths that end with it"
        message = f"{quoted(text)} is compared with the whole path, which begins with `/`"
        raise Bad(message, hint, slice(0, 1))
    return text


def alpn(text: str) -> str:
    """An id of RFC 7301: 1 to 255 bytes, compared as they are."""
    if not text:
        raise Bad("the id of a protocol cannot be empty", "such as h2 or http/1.1")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise Bad(f"{quoted(text)} is no id of a protocol", "such as h2 or http/1.1")
    if len(text) > MAX_ALPN:
        raise Bad(f"the id of a protocol has at most {MAX_ALPN} bytes")
    if text != text.lower() and text.lower() in ("h2", "h3", "http/1.0", "http/1.1"):
        raise Bad(
            f"{quoted(text)} is in upper case, and the ids of ALPN are case-sensitive",
            f"write {text.lower()}",
        )
    return text


def cookie_name(text: str) -> str:
    """A cookie's name: a token (RFC 6265, 4.1.1)."""
    hint = "write the name alone: letters, digits, and any of !#$%&'*+-.^_`|~"
    return _token(text, "cookie name", MAX_COOKIE_NAME, hint)


_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


def host(text: str) -> str:
    """What stands in a Host header: a name or an address, and a port if it is to be there."""
    if not _HOST.fullmatch(text):
        raise Bad(f"{quoted(text)} is no host", "such as app.internal, or app.internal:8080")
    return text


def request_target(text: str) -> str:
    """A path and perhaps a query, as they are sent."""
    if not text.startswith("/"):
        raise Bad(f"the path {quoted(text)} does not start with `/`", f"write /{text[:60]}")
    found = re.search(r"[^!-~]|#", text)
    if found is not None:
        at = slice(found.start(), found.end())
        hint = "percent-encode it, as clients send it (a space is %20)"
        raise Bad(f"{quoted(found[0])} cannot stand in a path as it is", hint, at)
    if len(text) > MAX_PATH:
        raise Bad(f"the path {quoted(text)} has more than {MAX_PATH} characters")
    return text


def expected(text: str) -> str:
    """A text that has to stand in a body."""
    if not text:
        raise Bad("the empty text stands in every body", "leave `body` out")
    if len(text.encode()) > MAX_EXPECTED:
        raise Bad(f"the text to look for has at most {MAX_EXPECTED} bytes")
    return text


def body(text: str) -> str:
    """The body of a response, or a part of one."""
    if len(text.encode()) > MAX_BODY:
        hint = "larger ones are for a backend"
        raise Bad(f"a body has at most {MAX_BODY // 1024} KiB", hint)
    return text


_STATUSES = re.compile(r"([0-9]{3})(?:-([0-9]{3}))?")


def statuses(text: str) -> tuple[int, int]:
    """A status or a range of them, both ends included: "204", "200-399"."""
    found = _STATUSES.fullmatch(text)
    if found is None:
        raise no_statuses(text)
    first, last = int(found[1]), int(found[2] or found[1])
    if not (100 <= first <= 599 and 100 <= last <= 599):
        raise Bad(f"{quoted(text)} is not from 100 to 599")
    if first > last:
        raise Bad(f"{quoted(text)} ends before it begins", f"write {last}-{first}")
    return first, last


def no_statuses(text: str) -> Bad:
    """For what looks like nothing in particular."""
    if re.fullmatch("[1-5]xx", text.lower()):
        hint = f"write {text[0]}00-{text[0]}99"
        return Bad(f"{quoted(text)} is no range of statuses", hint)
    return Bad(f"{quoted(text)} is no range of statuses", "such as 204, or 200-399")


def cookie_path(text: str) -> str:
    """The path of a cookie (RFC 6265, 4.1.1): "any CHAR except CTLs or ";""."""
    if not text.startswith("/"):
        raise Bad(f"the path {quoted(text)} does not start with `/`", f"write /{text[:60]}")
    found = re.search("[^!-~]|;", text)
    if found is not None:
        at = slice(found.start(), found.end())
        raise Bad(f"{quoted(found[0])} cannot stand in the path of a cookie", "", at)
    if len(text) > MAX_PATH:
        raise Bad(f"the path {quoted(text)} has more than {MAX_PATH} characters")
    return text
