"""Across `systemctl restart`: everything waits in the service manager's store of descriptors.

    SIGTERM   the workers leave, their pairs flow on (`worker.leaving`)
              listening sockets, maps, pairs, and a description of them go into the store
              this process exits; the manager's duplicates are the last ones
    start     they come back with the sockets of socket units (`net.systemd`), are taken out of the
              store, and the workers adopt the pairs

What the manager has no room for, it drops: then ours is the last descriptor, and as with everything
that is spliced its end is a reset. Descriptors come back in any order, so a pair's are told by the
cookies of their sockets, which are the kernel's and stay the same. A description of another layout
(`succession.layout`) is not understood: what came with it is reset, and nothing is guessed.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from collections.abc import Iterable

from l7proxy.datapath.maps import MAPS, SO_COOKIE
from l7proxy.datapath.sockmap import Splicer, inherit_splicer
from l7proxy.net import channel
from l7proxy.net.activation import Activation
from l7proxy.net.channel import ChannelBroken
from l7proxy.net.kept import Kept
from l7proxy.net.listen import ListeningSocket
from l7proxy.net.systemd import Manager, Passed
from l7proxy.supervisor.keeper import Keeper
from l7proxy.supervisor.succession import Heritage, layout
from l7proxy.telemetry.log import event

log = logging.getLogger(__name__)

_PREFIX = "l7proxy-"  # of all names in the store
_STATE, _PAIRS, _LISTENING, _MAP = (_PREFIX + kind for kind in ("state", "pairs", "listen", "map"))


def store(
    manager: Manager,
    keeper: Keeper,
    sockets: Iterable[tuple[str, ListeningSocket]],
    splicers: Iterable[Splicer],
    pairs: int,
) -> bool:
    """Put everything into the manager's store; False when it could not be told of all of it."""
    described, fds, done = [], [], True
    for slot, splicer in enumerate(splicers):
        for name, fd in zip(MAPS, splicer.descriptors(), strict=True):
            done &= manager.store(f"{_MAP}-{slot}-{name}", [fd])
        kept = keeper.of(slot)
        fds += [fd for one in kept.values() for fd in (one.client, one.backend)]
        described.append(
            [
                [index, _cookie(one.client), _cookie(one.backend), one.record.hex()]
                for index, one in kept.items()
            ]
        )
    for name, one in sockets:
        if not one.passed:  # those of socket units come again by themselves
            done &= manager.store(f"{_LISTENING}.{name}", [one.sock.fileno()])
    state = {"layout": layout(), "pairs": pairs, "slots": described}
    memory = channel.seal(_STATE, json.dumps(state).encode())
    try:
        done &= manager.store(_PAIRS, fds) if fds else True
        return done and manager.store(_STATE, [memory]) and manager.barrier()
    finally:
        os.close(memory)


def restore(passed: tuple[Passed, ...], manager: Manager) -> Heritage | None:
    """What an earlier life has stored, among what was passed; taken out of the store."""
    ours = [one for one in passed if one.name.startswith(_PREFIX)]
    if not ours:
        return None
    for name in {one.name for one in ours}:
        manager.forget(name)
    by_name = {one.name: one.fd for one in ours if one.name != _PAIRS}
    fresh = [one for one in passed if not one.name.startswith(_PREFIX)]
    listening = [
        Passed(one.name.removeprefix(_LISTENING + "."), one.fd)
        for one in ours
        if one.name.startswith(_LISTENING + ".")
    ]
    activation = Activation([*fresh, *listening])
    heritage = Heritage(None, same=False, activation=activation)
    heritage.passed = activation.addresses({one.fd for one in fresh})
    fds = [one.fd for one in ours if one.name == _PAIRS]
    try:
        state = json.loads(channel.unseal(by_name[_STATE]))
        heritage.same = state["layout"] == layout()
        if heritage.same:
            _take(heritage, state, by_name, fds)
    except (KeyError, ValueError, TypeError, OSError, ChannelBroken) as error:
        log.warning(event("what was stored is not understood", why=error))
        heritage.same, heritage.splicers, heritage.stored = False, (), ()
    _close_rest(heritage, by_name, fds)
    return heritage


def _take(
    heritage: Heritage,
    state: dict[str, list[list[list[object]]]],
    by_name: dict[str, int],
    fds: list[int],
) -> None:
    by_cookie = {_cookie(fd): fd for fd in fds}
    stored = []
    for slot, pairs in enumerate(state["slots"]):
        for index, client, backend, record in pairs:
            ends = by_cookie.get(client), by_cookie.get(backend)  # type: ignore[call-overload]
            if ends[0] is not None and ends[1] is not None:
                stored.append(
                    (slot, int(str(index)), Kept(ends[0], ends[1], bytes.fromhex(str(record))))
                )
    heritage.pairs = int(str(state["pairs"]))
    splicers = []
    for slot in range(len(state["slots"])):
        maps = {name: by_name[f"{_MAP}-{slot}-{name}"] for name in MAPS}
        splicers.append(inherit_splicer(maps, heritage.pairs))
    heritage.splicers, heritage.stored = tuple(splicers), tuple(stored)


def _close_rest(heritage: Heritage, by_name: dict[str, int], fds: list[int]) -> None:
    """The last descriptors of what nobody takes: a reset for each socket among them."""
    taken = {fd for _, _, one in heritage.stored for fd in (one.client, one.backend)}
    kept = tuple(by_name) if heritage.splicers else ()
    taken |= {by_name[name] for name in kept if name.startswith(_MAP)}
    taken |= {fd for name, fd in by_name.items() if name.startswith(_LISTENING)}
    for fd in {*fds, *by_name.values()} - taken:
        os.close(fd)


def _cookie(fd: int) -> int:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        found: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
        return found
    finally:
        sock.detach()
