"""How a path is read.

A path can be spelled in many ways, and the backend gets it as the client sent it. If routing read
it one way and the backend another, `/public/../admin` would pass as `/public` here and act as
`/admin` there. Three readings are known:

- *equivalent*: RFC 3986, 6.2.2: percent-encoded unreserved characters are the characters ("%7E" is
  "~", "%61" is "a"), hex digits have no case. By that RFC these spellings are the same URI, so this
  reading is what patterns and paths are always compared in. Nothing else is decoded.
- *resolved*: the same with "." and ".." removed as RFC 3986, 5.2.4 says.
- *lenient*: what servers are known to make of it besides: "%2F", "%5C" and "\\" are "/", empty
  elements vanish, what follows ";" in an element is a parameter and not part of its name (RFC 3986,
  3.3, names the custom; servlet containers match "/admin;x" as "/admin"), and then dots are
  removed.

They agree on nearly every request. Where they do not, they still may lead to the same route, and
then it does not matter who is right. If they lead to different routes, nobody can know which one
the backend would enforce: the request is refused with 400. So a sidecar with one route forwards
whatever it gets, and no spelling reaches one route's backend under another route's path.

The same holds for what a route makes of the path. If `/app` takes the place of the prefix `/`, then
`/../secret` would become `/app/../secret`, which is `/secret` to who resolves it: where rewriting
one reading and reading what was rewritten come to two different paths, it is 400 as well.
"""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ODD = re.compile(r"/\.|//|\\|;|%2F|%5C")  # in the normal form
_ENCODED_SLASH = re.compile(r"%2F|%5C|\\")
_PARAMETER = re.compile(r";[^/]*")


def is_plain(path: str) -> bool:
    """Whether all readings of `path` are surely `path` itself: so it is for nearly all."""
    return not ("%" in path or "/." in path or ";" in path or "//" in path or "\\" in path)


def readings(path: str) -> tuple[str, str, str]:
    """`path` as equivalent, resolved and lenient servers read it."""
    plain = equivalent(path)
    if not plain.startswith("/") or not _ODD.search(plain):  # it has no elements, or nothing odd
        return plain, plain, plain
    resolved = _without_dots(plain, keep_empty=True) if "/." in plain else plain
    slashes = _PARAMETER.sub("", _ENCODED_SLASH.sub("/", plain))
    return plain, resolved, _without_dots(slashes, keep_empty=False)


def equivalent(path: str) -> str:
    """The normal form of RFC 3986, 6.2.2.1 and 6.2.2.2, as far as percent-encodings go.

    2.3: "URIs that differ in the replacement of an unreserved character with its corresponding
    percent-encoded US-ASCII octet are equivalent"; 6.2.2.1: "the hexadecimal digits within a
    percent-encoding triplet (e.g., "%3a" versus "%3A") are case-insensitive".
    """
    return _ESCAPE.sub(_normal_escape, path) if "%" in path else path


def _normal_escape(escape: re.Match[str]) -> str:
    char = chr(int(escape[1], 16))
    return char if char in _UNRESERVED else escape[0].upper()


def _without_dots(path: str, *, keep_empty: bool) -> str:
    """RFC 3986, 5.2.4 by elements; `keep_empty` False drops empty elements as well."""
    elements = path.split("/")[1:]
    kept: list[str] = []
    for element in elements:
        if element == "..":
            del kept[-1:]
        elif element != "." and (element or keep_empty):
            kept.append(element)
    if elements[-1] in ("", ".", "..") and (not kept or kept[-1]):
        kept.append("")
    return "/" + "/".join(kept)
