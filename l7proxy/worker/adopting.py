"""Going on with the spliced pairs of a worker that has died.

It may have died anywhere: the machine code of one system call is the only thing that is known to be
over. So nothing is believed that it would have had to note after a step; what happened is read from
where it happened:

- The kernel's counters stand in the mapped arrays, and the verdict has gone on meanwhile.
- While `passed != relayed` the program redirects nothing, and user space writes to the sink only
  when every redirected byte is in its write queue. So what is in that queue beyond those was
  written by user space: TCP itself knows how much of the passed bytes is through, to the byte.
- What was taken out of the source likewise: `copied_seq` moves with every byte that was read or
  redirected (`net.sockdiag`). Nothing is taken that is not written (`overflow`), so nothing died
  with the worker; what was written and not taken yet is taken now. Should the accounts ever say
  otherwise, both sides are reset: a stream with a hole must never look complete.
- That an end was passed on is seen in the state of the sink's socket. A socket that is closed
  altogether ended well only if both ends are known: its own was passed on by a worker that noted
  so before, and the other one stands in the ledger.
- Epoll is asked first and the states are read then: no end comes unnoticed.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from l7proxy.access import host_of
from l7proxy.errors import Reason
from l7proxy.model import Side
from l7proxy.net import dial
from l7proxy.net.kept import Kept
from l7proxy.net.messages import Adopted
from l7proxy.net.sockdiag import SockDiag
from l7proxy.net.tcpinfo import tcp_info
from l7proxy.session import Event, Flow, FlowEvent
from l7proxy.telemetry.log import event
from l7proxy.telemetry.presence import NOWHERE
from l7proxy.worker.connection import Connection
from l7proxy.worker.handover import Handed, Unreadable
from l7proxy.worker.spliced import SplicedPair

if TYPE_CHECKING:
    from l7proxy.worker.generation import OpenListener
    from l7proxy.worker.loop import Worker

log = logging.getLogger(__name__)

# include/net/tcp_states.h
_CLOSE = 7
_SHUT = frozenset((4, 5, 6, 9, 11))  # FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING

_SIDES = (Side.CLIENT, Side.BACKEND)  # to go through an Enum takes as long as a system call
_LOOKS = 1000  # at a source that goes on to receive: nobody reads, so its window ends that
_NO_LIMIT = 1 << 62


class Lost(Exception):
    """This pair cannot be gone on with."""


def adopt(worker: Worker, kept: Mapping[int, Kept]) -> Adopted:
    """Take over all pairs in `kept`; what is impossible to go on with is reset."""
    adopting = _Adopting(worker)
    refused = 0
    gc.disable()  # all of it stays: to look through it again and again would take as long as that
    try:
        for index, pair in kept.items():
            refused += not adopting.adopt(index, pair)
    finally:
        gc.enable()
        adopting.close()
    return Adopted(len(kept) - refused, refused)


class _Adopting:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._listeners = {one.name: one for one in worker.accepting.listeners()}
        self._bygone: dict[tuple[object, ...], OpenListener] = {}
        self._diag: SockDiag | None = None
        self._told: set[str] = set()

    def close(self) -> None:
        if self._diag is not None:
            self._diag.close()

    def adopt(self, index: int, kept: Kept) -> bool:
        """Whether the pair goes on, or has ended well; else it is reset."""
        worker, fds = self._worker, (kept.client, kept.backend)
        sockets: list[socket.socket] = []
        try:
            for fd in fds:
                sockets.append(_socket(fd))
            handed = Handed(kept.record, worker.slot)
            assert worker.splicer is not None
            worker.splicer.adopt(index, *fds)
        except (OSError, Unreadable) as error:
            self._tell(str(error))
            for sock in sockets:
                dial.reset_now(sock)
                sock.close()
            for fd in fds[len(sockets) :]:
                os.close(fd)
            worker.not_adopted(index)
            return False
        return self._resume(index, handed, *sockets)

    def _tell(self, why: str) -> None:
        """Once for each kind of trouble."""
        if why not in self._told:
            self._told.add(why)
            log.warning(event("pair not adopted", slot=self._worker.slot, why=why))

    def _resume(
        self, index: int, handed: Handed, client: socket.socket, backend: socket.socket
    ) -> bool:
        worker, record = self._worker, handed.record
        listener = self._listener(handed)
        connection = Connection(worker, listener, client, ("", 0))
        handed.write_to(connection)
        connection.opening, connection.client_host = None, ""
        connection.splicer_index = index
        connection.take_backend(backend, None)
        worker.resumed(connection, listener.row)
        connection.dialing.resume(listener.groups.get(record.backend), record.endpoint)
        if handed.counted:
            entry = worker.presence.enter(listener.name, host_of(record.client), _NO_LIMIT)
            connection.presence = NOWHERE if entry is None else entry
        connection.on(Event.ADOPTED)
        try:
            self._find_out(connection)
        except (Lost, OSError) as error:
            self._tell(str(error))
            connection.abort(Reason.NOT_ADOPTED)
            return False
        return True

    def _listener(self, handed: Handed) -> OpenListener:
        """The listener that it came from, as far as an open connection needs one.

        It may have left the policy, or have another row there.
        """
        name, protocol = handed.record.listener, handed.protocol
        key = (name, protocol, handed.row, handed.timeouts)
        found = self._bygone.get(key)
        if found is None:
            template = self._listeners.get(name) or next(iter(self._listeners.values()))
            found = self._bygone[key] = dataclasses.replace(
                template, name=name, protocol=protocol, row=handed.row, timeouts=handed.timeouts
            )
        return found

    # ---- where the pair is

    def _find_out(self, connection: Connection) -> None:
        """Bring the connection to where its kernel side is, and let it go on from there.

        Raises Lost, or OSError of a socket that broke meanwhile.
        """
        pair = connection.pair
        assert isinstance(pair, SplicedPair)
        states = [tcp_info(connection.end(side)).state for side in _SIDES]
        for side in _SIDES:
            if states[side] == _CLOSE and not pair.ended_well(side):
                is_client = side is Side.CLIENT
                connection.abort(Reason.CLIENT_RESET if is_client else Reason.BACKEND_RESET)
                return
        for side in _SIDES:
            is_passed = pair.recall(side)
            if states[side.other] in _SHUT or states[side.other] == _CLOSE:
                connection.session.on_flow(side, FlowEvent.FIN)
                connection.session.on_flow(side, FlowEvent.BALANCED)
            elif is_passed:
                self._count(connection, pair, side)
        if connection.session.finished:
            connection.on(Event.FINISHED)
            return
        for side in _SIDES:
            if connection.session.is_open and connection.session.flows[side] is not Flow.FINISHED:
                pair.go_on(side)

    def _count(self, connection: Connection, pair: SplicedPair, side: Side) -> None:
        """How far user space has come with what was passed of a direction that has not ended."""
        source, sink = connection.end(side), connection.end(side.other)
        if self._diag is None:
            self._diag = SockDiag()
        for _ in range(_LOOKS):
            received = tcp_info(source).bytes_received
            unread = self._diag.unread(source)
            if received == tcp_info(source).bytes_received:
                break
        else:
            raise Lost("its source does not stand still")
        owed = pair.resume(side, received=received, unread=unread, queued=tcp_info(sink).queued)
        if owed < 0 or not pair.is_sound(side):
            raise Lost("its accounts do not add up")


def _socket(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock
