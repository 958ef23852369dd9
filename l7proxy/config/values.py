"""Texts that mean something: durations, hostnames, paths, names. Pure.

Each parser takes the text and returns the value or raises Bad, with the part of the text that is to
blame where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from l7proxy.config.addresses import is_ipv6
from l7proxy.config.bad import Bad
from l7proxy.config.problems import quoted

MAX_NAME = 63
MAX_USER = 32  # useradd(8)
MAX_HOSTNAME = 253  # RFC 1123, 2.1: "SHOULD handle host names of up to 255 characters"; DNS: 253
MAX_PATH = 1024  # Gateway API v1, HTTPPathMatch: maxLength
MAX_HOURS = 576  # 24 days: the kernel counts its TCP timeouts in milliseconds, in 31 bits


_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


def name(text: str) -> str:
    """A name of ours: it stands in logs and statistics, so it is short and needs no quoting."""
    if len(text) > MAX_NAME:
        raise Bad(f"the name {quoted(text)} has more than {MAX_NAME} characters")
    if not _NAME.fullmatch(text):
        raise Bad(
            f"{quoted(text)} is no name",
            "use letters, digits, `-`, `_` and `.`, with a letter or digit first and last",
        )
    return text


_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def user(text: str) -> str:
    """A user of the machine, by name or number. Whether there is such a one is seen later."""
    if len(text) > MAX_USER or not _USER.fullmatch(text):
        raise Bad(f"{quoted(text)} is no user", "write the name of one, or its number")
    return text


_DURATION = re.compile(r"(?:[0-9]{1,9}(?:ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9]+)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def no_duration(text: str) -> Bad:
    """For what looks like nothing in particular."""
    if re.fullmatch(r"[0-9]+", text):
        return Bad(f"{quoted(text)} has no unit", f"seconds are written as {text[:12]}s")
    hint = "write a number with a unit: 500ms, 10s, 5m, 1h, 1h30m"
    return Bad(f"{quoted(text)} is no duration", hint)


def duration(text: str) -> float:
    """Seconds. The words of Gateway API durations (GEP-2257): whole numbers with h, m, s, ms."""
    seconds = _seconds(text)
    if seconds > MAX_HOURS * 3600:
        raise Bad(f"{quoted(text)} is longer than {MAX_HOURS}h", "0s turns a timeout off")
    return seconds


def _seconds(text: str) -> float:
    if not _DURATION.fullmatch(text):
        raise no_duration(text)
    # In milliseconds first: 0.1 + 0.2 is a surprise, 100 + 200 is not.
    parts = _DURATION_PART.findall(text)
    return sum(int(number) * round(_SECONDS[unit] * 1000) for number, unit in parts) / 1000


def positive_duration(text: str) -> float:
    """Seconds, more than none."""
    seconds = duration(text)
    if seconds == 0:
        raise Bad("this timeout cannot be turned off", "give it a positive duration, such as 10s")
    return seconds


def duration_of(least: str, most: str) -> Callable[[str], float]:
    """A parser of durations from `least` to `most`."""
    low, high = _seconds(least), _seconds(most)

    def read(text: str) -> float:
        seconds = _seconds(text)
        if not low <= seconds <= high:
            raise Bad(f"{quoted(text)} is not from {least} to {most}")
        return seconds

    return read


_MODE = re.compile(r"0?[0-7]{3}")


def mode(text: str) -> int:
    """The mode of a socket's file, octal as in chmod(1)."""
    if not _MODE.fullmatch(text):
        hint = 'three octal digits for user, group and others, such as "0660"'
        raise Bad(f"{quoted(text)} is no file mode", hint)
    return int(text, 8)


def no_mode(text: str) -> Bad:
    """For a mode without quotes, which YAML reads as a number: 0660 is 432 to it."""
    if not _MODE.fullmatch(text):
        return Bad(f"{quoted(text)} is no file mode", 'write it in quotes, such as "0660"')
    read = int(text, 8) if text.startswith("0") else int(text)
    return Bad(
        f"a file mode is octal, and without quotes YAML reads {quoted(text)} as the number {read}",
        f'put it in quotes: "{text}"',
    )


# What nearly all look like; whatever else is sound or wrong is told apart below.
_USUAL_HOSTNAME = re.compile(r"(?:\*\.)?(?:[a-z][a-z0-9-]{0,20}[a-z0-9]\.){0,9}[a-z]{2,20}")
_USUAL_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]{0,40}){1,20}")

_HOST_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


def precise_hostname(text: str) -> str:
    """A hostname to go to, in lower case: Gateway API v1, PreciseHostname, has no wildcard."""
    if text.startswith("*"):
        hint = "write one host: it is where requests go"
        raise Bad(f"{quoted(text)} is a wildcard", hint, slice(0, 1))
    if ":" in text and "://" not in text and not is_ipv6(text.strip("[]")):
        bare = text.partition(":")[0]
        raise Bad(
            f"the hostname {quoted(text)} has a port",
            f"write {bare[:60]}" if bare else "",
            slice(len(bare), None),
        )
    return _hostname(text, "write the host alone, such as www.example.com")


def sni(text: str) -> str:
    """A name that clients ask for by SNI, or a wildcard as in `hostname`."""
    return _hostname(text, "write names of hosts, such as *.example.com")


def _hostname(text: str, hint: str) -> str:
    try:
        return hostname(text)
    except Bad as bad:  # its hints that name other keys are those for the hostnames of a route
        raise Bad(bad.message, hint if "`" in bad.hint else bad.hint, bad.part) from None


def hostname(text: str) -> str:
    """A hostname of a route, in lower case: a DNS name, or `*.` and a DNS name.

    Gateway API v1, Hostname: "IPs are not allowed"; "a hostname may be prefixed with a wildcard
    label (`*.`). The wildcard label must appear by itself as the first label."
    """
    if _USUAL_HOSTNAME.fullmatch(text):
        return text
    if "://" in text:
        rest = text.partition("://")[2].split("/")[0].split(":")[0]
        raise Bad(f"{quoted(text)} is a URL, and a hostname is wanted", f"write {rest}")
    if text == "*":
        raise Bad("`*` alone is no hostname", "leave `hostnames` out to match every host")
    if "/" in text:
        bare, _, _ = text.partition("/")
        hint = f"write {bare}, and the path in `matches`" if bare else "paths stand in `matches`"
        raise Bad(f"the hostname {quoted(text)} has a path", hint, slice(len(bare), None))
    bare, colon, port = text.partition(":")
    if colon and port.isdecimal() and bare:
        raise Bad(
            f"the hostname {quoted(text)} has a port",
            f"write {bare}: the port of a request is ignored",
            slice(len(bare), None),
        )
    lower = text.lower()
    name = lower.removeprefix("*.")
    if "*" in name:
        raise Bad(
            f"the wildcard in {quoted(text)} is not the whole first label",
            "a wildcard is written as *.example.com",
            slice(text.rindex("*"), text.rindex("*") + 1),
        )
    if re.fullmatch(r"[0-9.]+", name) or is_ipv6(name.strip("[]")):
        raise Bad(
            f"{quoted(text)} is an IP address, and hostnames are DNS names",
            "leave `hostnames` out to match every host",
        )
    if not name.isascii():
        raise Bad(f"the hostname {quoted(text)} is not ASCII", "write its `xn--` form (punycode)")
    if name.endswith(".") and len(name) > 1:
        raise Bad(
            f"the hostname {quoted(text)} ends with a dot",
            f"write {lower.rstrip('.')}",
            slice(-1, None),
        )
    at = len(lower) - len(name)
    for label in name.split("."):
        if not _HOST_LABEL.fullmatch(label) or len(label) > 63:
            raise Bad(
                f"{quoted(text)} is no hostname",
                "labels of letters, digits and `-`, at most 63 characters each, with dots between",
                slice(at, at + len(label)),
            )
        at += len(label) + 1
    if len(name) > MAX_HOSTNAME:
        raise Bad(f"the hostname {quoted(text)} has more than {MAX_HOSTNAME} characters")
    return lower


_PATH = re.compile(r"(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+")


def path(text: str) -> str:
    """A path to compare with, as Gateway API v1 (HTTPPathMatch) admits it.

    "must be an absolute path and start with '/'"; "must not contain '//'", "'/./'", "'/../'",
    "'%2f'", "'#'"; "must not end with '/..'", "'/.'". A request that is spelled so is another
    matter: see `routing`.
    """
    if _USUAL_PATH.fullmatch(text):
        return text
    if "://" in text:
        raise Bad(
            f"{quoted(text)} is a URL, and a path is wanted", "the host stands in `hostnames`"
        )
    if not text.startswith("/"):
        raise Bad(f"the path {quoted(text)} does not start with `/`", f"write /{text[:60]}")
    for char, what in (("?", "query"), ("#", "fragment")):
        if char in text:
            at = text.index(char)
            raise Bad(f"a path has no {what}", f"write {text[:at][:60]}", slice(at, None))
    if text.endswith("/*"):  # stricter than Gateway API, where it would be compared as it stands
        raise Bad(
            f"{quoted(text)} ends with `*`, which stands for nothing but itself",
            f"write `path: {text[:-2][:60] or '/'}`, which matches everything below it as well",
            slice(-1, None),
        )
    if not _PATH.fullmatch(text):
        found = re.search(r"%(?![0-9A-Fa-f]{2})|[^-A-Za-z0-9/._~!$&'()*+,;=:@%]", text)
        at = found.start() if found else 0
        raise Bad(
            f"{quoted(text[at])} cannot stand in a path as it is",
            "percent-encode it, as clients send it (a space is %20)",
            slice(at, at + 1),
        )
    _unambiguous(text)
    if len(text) > MAX_PATH:
        raise Bad(f"the path {quoted(text)} has more than {MAX_PATH} characters")
    return text


_UNCLEAR = re.compile(
    r"(?P<empty>//)|/(?P<dots>(?:\.|%2[Ee]){1,2})(?=/|$)|(?P<slash>%2[Ff]|%5[Cc])"
)


def _unambiguous(text: str) -> None:
    found = _UNCLEAR.search(text)
    if found is None:
        return
    if found["empty"]:
        message, part = "an empty path element cannot be matched", slice(*found.span())
    elif found["slash"]:
        message, part = "an encoded slash cannot be matched", slice(*found.span())
    else:
        message, part = (
            f"the path element {quoted(found['dots'])} cannot be matched",
            slice(*found.span("dots")),
        )
    raise Bad(message, "servers differ in what they make of it: write the path without it", part)
