"""Marked packets are delivered here: the routing rule and the route of TPROXY, by rtnetlink.

What is ours is told by the protocol number that a rule and a route have (rtnetlink(7),
`RTPROT_*`: from 4 on it is up to who sets it), so nothing has to be remembered, and nothing of
anybody else's is touched. Each family is for itself: where the kernel has no IPv6 there is none.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from l7proxy.sidecar import SidecarError

PROTOCOL = 176
TABLE = 1764
PRIORITY = 1764  # behind `local` (0), before `main` (32766)

_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_NEWRULE, _RTM_DELRULE, _RTM_GETRULE = 32, 33, 34
_REQUEST, _ACK, _DUMP = 0x01, 0x04, 0x300
_CREATE_NEW = 0x600  # NLM_F_CREATE | NLM_F_EXCL
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_RTMSG = struct.Struct("=8BI")  # and fib_rule_hdr, which is alike
_LOCAL, _HOST = 2, 254  # RTN_LOCAL, RT_SCOPE_HOST
_TO_TABLE = 1  # FR_ACT_TO_TBL
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 6, 10, 15, 16, 21
_RTA_OIF, _RTA_TABLE = 4, 15
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_ABSENT = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)


def marks() -> list[int]:
    """The marks of the routing rules of ours that are in place. Raises SidecarError."""
    return [
        _word(found, _FRA_FWMARK)
        for family in _FAMILIES
        for _, found in _ours(_RTM_GETRULE, family)
    ]


def routes() -> bool:
    """Whether routes of ours are in place. Raises SidecarError."""
    return any(True for family in _FAMILIES for _ in _ours(_RTM_GETROUTE, family))


def add(mark: int) -> None:
    """Put both in place for each family, unless they are. Raises SidecarError."""
    for old in marks():
        if old != mark:
            _remove_rules(old)
    for family in _FAMILIES:
        try:
            _change(_RTM_NEWROUTE, _CREATE_NEW, *_route(family))
            _change(_RTM_NEWRULE, _CREATE_NEW, *_rule(family, mark))
        except OSError as error:
            if family == socket.AF_INET6 and error.errno in _ABSENT:
                continue
            raise _explained(error) from error


def remove() -> None:
    """Take away what is ours. Raises SidecarError."""
    _remove_rules(None)
    _drop(_RTM_GETROUTE, _RTM_DELROUTE, None)


def _remove_rules(mark: int | None) -> None:
    _drop(_RTM_GETRULE, _RTM_DELRULE, mark)


def _drop(get: int, delete: int, mark: int | None) -> None:
    for family in _FAMILIES:
        for body, found in list(_ours(get, family)):
            if mark is None or _word(found, _FRA_FWMARK) == mark:
                try:
                    _change(delete, 0, body, b"")  # as it was told of
                except OSError as error:
                    raise _explained(error) from error


def _route(family: int) -> tuple[bytes, bytes]:
    head = _RTMSG.pack(family, 0, 0, 0, 0, PROTOCOL, _HOST, _LOCAL, 0)
    loopback = socket.if_nametoindex("lo")
    return head, _attribute(_RTA_TABLE, TABLE) + _attribute(_RTA_OIF, loopback)


def _rule(family: int, mark: int) -> tuple[bytes, bytes]:
    head = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, _TO_TABLE, 0)
    words = {
        _FRA_PRIORITY: PRIORITY,
        _FRA_FWMARK: mark,
        _FRA_FWMASK: mark,
        _FRA_TABLE: TABLE,
    }
    named = b"".join(_attribute(kind, value) for kind, value in words.items())
    return head, named + struct.pack("=HHB3x", 5, _FRA_PROTOCOL, PROTOCOL)


def _attribute(kind: int, value: int) -> bytes:
    return struct.pack("=HHI", 8, kind, value)


# ---- rtnetlink(7)


def _change(kind: int, flags: int, head: bytes, attributes: bytes) -> None:
    """Ask for one change; what is there already is no error. Raises OSError."""
    for answer, body in _talk(kind, _REQUEST | _ACK | flags, head + attributes):
        if answer == _ERROR:
            (code,) = struct.unpack_from("=i", body)
            if code and code != -errno.EEXIST:
                raise OSError(-code, os.strerror(-code))
            return


def _ours(kind: int, family: int) -> Iterator[tuple[bytes, dict[int, bytes]]]:
    """The body of each rule or route of ours, and its attributes."""
    want = kind - 2  # RTM_GET* -> RTM_NEW*
    head = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    try:
        answers = list(_talk(kind, _REQUEST | _DUMP, head))
    except OSError as error:
        if error.errno in _ABSENT:
            return
        raise _explained(error) from error
    for answer, body in answers:
        if answer == _ERROR:
            (code,) = struct.unpack_from("=i", body)
            if -code in _ABSENT:
                return
            raise _explained(OSError(-code, os.strerror(-code)))
        if answer != want or body[0] != family:
            continue
        found = dict(_attributes(body[_RTMSG.size :]))
        of_rule = found.get(_FRA_PROTOCOL, b"\0")[0]
        protocol = of_rule if kind == _RTM_GETRULE else body[5]
        if protocol == PROTOCOL:
            yield body, found


def _talk(kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(5.0)
        sock.send(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body)
        while True:
            data = sock.recv(1 << 20)
            while data:
                size, answer, _, _, _ = _HEADER.unpack_from(data)
                if answer == _DONE:
                    return
                yield answer, data[_HEADER.size : size]
                if answer == _ERROR:
                    return
                data = data[(size + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:size]
        data = data[max(4, (size + 3) & ~3) :]


def _word(found: dict[int, bytes], kind: int) -> int:
    value = found.get(kind)
    return 0 if value is None else int(struct.unpack("=I", value)[0])


def _explained(error: OSError) -> SidecarError:
    said = (error.strerror or str(error)).lower()
    if error.errno == errno.EPERM:
        said = "needs CAP_NET_ADMIN: run it with sudo"
    return SidecarError(f"routing of marked packets: {said}")
