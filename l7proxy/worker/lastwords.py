"""What a backend said before it broke: an answer that came before it had the whole request.

RFC 9112 section 9.5: "A client SHOULD monitor the connection for an error response while sending
the request"; a server that refuses a large body answers (413) and closes, and its kernel resets
what still comes. Linux keeps what was received before a reset (`tcp_reset` leaves the receive
queue alone, and `tcp_recvmsg` looks there before it tells of the error), so it can be read after
the write has failed. Passed on is a whole response only: of a short one nobody must think that it
has ended.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from l7proxy.answer import AnswerReader, is_whole
from l7proxy.errors import Reason
from l7proxy.telemetry.counters import Counter

if TYPE_CHECKING:
    from l7proxy.worker.connection import Connection

MOST = 64 * 1024  # bytes of such an answer

_DONTWAIT = socket.MSG_DONTWAIT


def last_words(connection: Connection) -> bool:
    """Have the whole answer that the backend has left ready for the client; False: there is none.

    Not to be called once the client has got a byte of it.
    """
    answer = _read(connection)
    if not is_whole(answer, connection.record.method or "GET"):
        return False
    connection.end_with(Reason.BACKEND_CLOSED)
    connection.early_answer += len(answer)
    connection.worker.view[Counter.RELAYED_BACKEND] += len(answer)
    connection.answer_with(None, AnswerReader(connection.dialing.set_cookie).feed(answer))
    return True


def _read(connection: Connection) -> bytes:
    """What is left in the backend's socket; nothing if that is more than `MOST`."""
    backend, scratch = connection.backend, connection.worker.scratch
    answer = b""
    try:
        while backend is not None and (n := backend.recv_into(scratch, 0, _DONTWAIT)):
            answer += scratch[:n]
            if len(answer) > MOST:
                return b""
    except OSError:
        pass  # that there is no more, or what it broke with
    return answer
