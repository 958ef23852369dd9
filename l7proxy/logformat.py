"""Format strings of the access log, read once when a policy is loaded. Pure: text in, parts out.

    %[endpoint]  %[req.hdr(User-Agent)]      ours, for everything that there is
    %ci  %Tt  %{+Q}r                         HAProxy's
    %h  %>s  %{User-Agent}i  %{us}T          Apache's
    %%                                       a percent sign

A few letters mean one thing to Apache and another one to HAProxy (`%b`, `%s`). They are Apache's,
and an error where the format has a word that only HAProxy knows: a format that was copied from
there must not come to mean something else without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from l7proxy.errors import L7ProxyError


@dataclass(frozen=True, slots=True)
class Variable:
    """`name` is ours; the others' words stand without the percent sign, arguments in braces."""

    name: str
    doc: str
    haproxy: tuple[str, ...] = ()
    apache: tuple[str, ...] = ()


def _v(name: str, doc: str, haproxy: str = "", apache: str = "") -> Variable:
    return Variable(name, doc, tuple(haproxy.split()), tuple(apache.split()))


HEADER = "req.hdr"
"""The variable with an argument: `%[req.hdr(NAME)]`, `%{NAME}i`."""

VARIABLES: tuple[Variable, ...] = (
    _v("time", "when it was accepted, `2026-11-22T11:42:34.460Z`"),
    _v("time_clf", "the same as `[22/Nov/2026:11:42:34 +0000]`", "", "t"),
    _v("time_ms", "the same as `22/Nov/2026:11:42:34.460`", "tr"),
    _v("time_gmt", "the same as `22/Nov/2026:11:42:34 +0000`", "trg"),
    _v("epoch", "the same in seconds since 1970", "Ts", "{sec}t"),
    _v("epoch_ms", "the same in milliseconds", "", "{msec}t"),
    _v("worker", "the number of the worker"),
    _v("pid", "its process id", "pid", "P"),
    _v("listener", "the listener", "f ft"),
    _v("client", "who is served, address and port"),
    _v("client_ip", "the address alone", "ci", "h a"),
    _v("client_port", "the port alone", "cp", "{remote}p"),
    _v("proxy", "the proxy that said who the client is"),
    _v("destination", "where it was going to when it was intercepted"),
    _v("route", "the route"),
    _v("backend", "the backend group"),
    _v("endpoint", "the endpoint, as it is dialled"),
    _v("endpoint_ip", "its address alone", "si"),
    _v("endpoint_port", "its port alone", "sp"),
    _v("method", "the method of the first request", "HM", "m"),
    _v("host", "its host"),
    _v("path", "its path, without the query", "HP", "U"),
    _v("uri", "its path and its query", "HU"),
    _v("query", "its query, with the `?`", "HQ", "q"),
    _v("version", "its version, `HTTP/1.1`", "HV", "H"),
    _v("request", "its request line, with the query", "r", "r"),
    _v(HEADER, "a header of it, `%[req.hdr(User-Agent)]`", "", "{NAME}i"),
    _v("sni", "the server name of a ClientHello"),
    _v("alpn", "its ALPN protocols"),
    _v("protocol", "HTTP, TLS or TCP"),
    _v("datapath", "what moved the bytes: sockmap, splice2 or copy"),
    _v("head_ms", "milliseconds from accept to the end of the head"),
    _v("head_ms_int", "the same, whole, and -1 where there was none", "Tq"),
    _v("dial_ms", "milliseconds from accept until the endpoint had answered the dial"),
    _v("connect_ms_int", "milliseconds of the dial, whole, or -1", "Tc"),
    _v("first_byte_ms", "milliseconds from accept until the client got the first byte"),
    _v("splice_ms", "milliseconds from accept until the pair was open"),
    _v("total_ms", "milliseconds from accept to the end"),
    _v("total_ms_int", "the same, whole", "Tt", "{ms}T"),
    _v("total_us", "the same in microseconds", "", "D {us}T"),
    _v("total_s", "the same in seconds", "", "T {s}T"),
    _v("bytes_in", "bytes of the client", "", "I"),
    _v("bytes_out", "bytes of the backend, heads included", "B", "B O"),
    _v("bytes_out_clf", "the same, `-` for none", "", "b"),
    _v("kernel_in", "bytes of the client that the kernel moved"),
    _v("kernel_out", "bytes of the backend that the kernel moved"),
    _v("overflows", "how often user space took a direction over"),
    _v("reused", "`true` where the backend's connection had served another request before"),
    _v("status", "the status of an answer of l7proxy's own", "ST", "s >s"),
    _v("reason", "why it ended"),
    _v("rule", "the rule that refused it"),
    _v("state", "the state that it ended in, or `live`"),
    _v("rate", "of how many such connections this is one: 0.01 is one of a hundred"),
    _v("ident", "always `-`", "", "l"),
    _v("user", "always `-`", "", "u"),
)

PRESETS = {
    "common": '%h %l %u %t "%r" %>s %b',
    "combined": '%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i"',
}
"""Formats that have a name. `json`, which is none of them, is what there is without a format."""

# What these letters are to HAProxy; Apache has them too, for something else.
_OTHERWISE = {
    "b": "backend",
    "s": "endpoint",
    "t": "time_ms",
    "T": "time_gmt",
    "U": "bytes_in",
    "H": "",  # the host's name
}

NAMES = {one.name: one for one in VARIABLES}
_APACHE = {word: one.name for one in VARIABLES for word in one.apache if "NAME" not in word}
_HAPROXY = {word: one.name for one in VARIABLES for word in one.haproxy}
_WORDS = _HAPROXY | _APACHE

MAX_FORMAT = 2000  # characters
MAX_HEADERS = 16  # that a format may have
MAX_HEADER_NAME = 100

_TOKEN = re.compile(
    r"%(?:(?P<percent>%)"
    r"|\[(?P<ours>[^\]]*)\]"
    r"|\{\+(?P<flag>[A-Za-z]+)\}(?P<flagged>[A-Za-z]+|\[[^\]]*\])"
    r"|\{(?P<argument>[^{}]*)\}(?P<letter>[A-Za-z])"
    r"|(?P<word>[<>]?[A-Za-z]+))"
)
_HEADER = re.compile(r"req\.f?hdr\((?P<name>[^()]*)\)")
_FIELD = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class BadFormat(L7ProxyError):
    """What is wrong with a format, and with which part of it.

    `word` is what was probably meant to be one of `known`.
    """

    def __init__(
        self, part: slice, message: str, hint: str = "", word: str = "", known: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.part = part
        self.message = message
        self.hint = hint
        self.word = word
        self.known = known


@dataclass(frozen=True, slots=True)
class Part:
    """A variable at its place. `argument`: the name of a header, in lower case.

    `is_quoted`: it stands between double quotes, or (`adds_quotes`) brings its own.
    """

    name: str
    argument: str = ""
    is_quoted: bool = False
    adds_quotes: bool = False


Format = tuple[str | Part, ...]


def parse(text: str) -> Format:
    """The parts of a format, or of the preset with this name. Raises BadFormat."""
    text = PRESETS.get(text, text)
    if len(text) > MAX_FORMAT:
        raise BadFormat(slice(MAX_FORMAT, None), f"it is longer than {MAX_FORMAT:,} characters")
    control = _CONTROL.search(text)
    if control is not None:
        raise BadFormat(slice(*control.span()), "a line has no control characters but tabs")
    found: list[str | Part] = []
    foreign: list[tuple[slice, str]] = []
    is_haproxys = False
    quotes = 0
    for piece, span in _pieces(text):
        if isinstance(piece, str):
            quotes += piece.count('"')
            found.append(piece)
            continue
        part, word = _variable(piece, span, is_quoted=quotes % 2 == 1)
        if word in _OTHERWISE:
            foreign.append((span, word))
        is_haproxys |= word in _HAPROXY and word not in _APACHE and len(word) > 1
        is_haproxys |= part.adds_quotes
        found.append(part)
    if is_haproxys and foreign:
        _refuse_mix(*foreign[0])
    if not any(isinstance(one, Part) for one in found):
        hint = "write json, common, combined, or variables like %[client]"
        raise BadFormat(slice(0, None), "a format without a variable", hint, text, _NAMED)
    if len(headers(tuple(found))) > MAX_HEADERS:
        raise BadFormat(slice(0, None), f"it has more than {MAX_HEADERS} headers")
    return tuple(found)


_NAMED = ("json", *PRESETS)


def headers(form: Format) -> frozenset[str]:
    """The headers of a request that a format needs, in lower case."""
    return frozenset(one.argument for one in form if isinstance(one, Part) and one.name == HEADER)


def _pieces(text: str) -> Iterator[tuple[str | re.Match[str], slice]]:
    at = 0
    while (start := text.find("%", at)) >= 0:
        if start > at:
            yield text[at:start], slice(at, start)
        match = _TOKEN.match(text, start)
        if match is None:
            hint = "write %% for a percent sign" if start + 1 == len(text) else _hint(text[start:])
            raise BadFormat(slice(start, start + 1), "this % begins no variable", hint)
        at = match.end()
        yield ("%" if match["percent"] else match), slice(start, at)
    if at < len(text):
        yield text[at:], slice(at, len(text))


def _hint(rest: str) -> str:
    if rest.startswith("%!") or rest[1:2].isdigit():
        return "conditions on the status are not there: answers of backends are not read"
    return "write %[name], %% for a percent sign"


def _variable(match: re.Match[str], span: slice, *, is_quoted: bool) -> tuple[Part, str]:
    """The part, and the word of HAProxy's or Apache's that stood there."""
    if match["ours"] is not None:
        return _ours(match["ours"], span, is_quoted), ""
    if match["flag"] is not None:
        if match["flag"] != "Q":
            raise BadFormat(span, f"the flag `+{match['flag']}` is not there", "only {+Q} is")
        inner = match["flagged"]
        if inner.startswith("["):
            part, word = _ours(inner[1:-1], span, is_quoted), ""
        else:
            part, word = _word(inner, span, is_quoted), inner
        return Part(part.name, part.argument, is_quoted=True, adds_quotes=True), word
    if match["letter"] is None:
        return _word(match["word"], span, is_quoted), match["word"]
    argument, letter = match["argument"], match["letter"]
    if letter == "i":
        return _header(argument, span, is_quoted), ""
    if letter in "oCen":
        what = {"o": "headers of answers", "C": "cookies"}.get(letter, "variables and notes")
        hint = "answers of backends are not read" if letter == "o" else ""
        raise BadFormat(span, f"{what} are not there", hint)
    word = f"{{{argument}}}{letter}"
    if word not in _APACHE:
        known = tuple(one for one in _APACHE if one.startswith("{"))
        raise BadFormat(span, f"unknown variable `%{word}`", _listed(known), word, known)
    return Part(_APACHE[word], "", is_quoted), ""


def _ours(name: str, span: slice, is_quoted: bool) -> Part:
    header = _HEADER.fullmatch(name)
    if header is not None:
        return _header(header["name"], span, is_quoted)
    if name not in NAMES or name == HEADER:
        known = (*NAMES, f"{HEADER}(NAME)")
        raise BadFormat(span, f"unknown variable `%[{name}]`", "", name, known)
    return Part(name, "", is_quoted)


def _word(word: str, span: slice, is_quoted: bool) -> Part:
    name = _WORDS.get(word)
    if name is None:
        known = tuple(f"%{one}" for one in _WORDS) + tuple(f"%[{one}]" for one in NAMES)
        raise BadFormat(span, f"unknown variable `%{word}`", "", f"%{word}", known)
    return Part(name, "", is_quoted)


def _header(name: str, span: slice, is_quoted: bool) -> Part:
    if not _FIELD.fullmatch(name) or len(name) > MAX_HEADER_NAME:
        raise BadFormat(span, "this is no name of a header", "write %{User-Agent}i")
    return Part(HEADER, name.lower(), is_quoted)


def _refuse_mix(span: slice, word: str) -> None:
    other = _OTHERWISE[word]
    hint = f"write %[{_APACHE[word]}]"
    raise BadFormat(
        span,
        f"`%{word}` is one thing to Apache and another one to HAProxy, and this format has words"
        " that only HAProxy knows",
        f"{hint} or %[{other}]" if other else hint,
    )


def _listed(known: tuple[str, ...]) -> str:
    return "known are " + ", ".join(f"`%{one}`" for one in known)
