"""The life of a connection as two tables. Pure: events in, commands out; no socket, no clock.

The driver (`worker`) tells what happened and carries out what is ordered. An event that the
table has no row for is a bug of ours and raises `TransitionError`: better one connection reset
and one line in the log than a pair of sockets in a state that nobody thought of.

    accept -> HEAD -> DIAL -> SEND -> FIRST or ANSWER -> SPLICED <-> RELAYED -> CLOSED
    adopt ----------------------------------------------> SPLICED
                 \\______\\______\\______________\\___________\\-> REPLY -> LINGER -> CLOSED

Where each request is routed by itself, a connection goes round, once for each of them:

    HEAD -> DIAL -> EXCHANGE -> IDLE -> HEAD -> ...       or, where the connection is not kept:
                            \\-> LINGER -> CLOSED        or, after 101 or a 2xx to CONNECT:
                            \\-> SPLICED

While a pair is open each of its directions has a small life of its own, a `Flow`:

    KERNEL <-> OVERFLOW        spliced: the kernel redirects; or user space relays for a while
    USER                       first, relayed: user space moves the bytes, for now or for good
        -> DRAINING -> FINISHED      the FIN was seen; the ledger balances and it was passed on
"""

from __future__ import annotations

from enum import StrEnum

from l7proxy.errors import TransitionError
from l7proxy.model import Side


class State(StrEnum):
    """Where a connection is; the access log names it at the end."""

    NEW = "new"
    HEAD = "head"  # waiting for what routes: a PROXY header, a head, a ClientHello
    DIAL = "dial"  # connecting to an endpoint
    SEND = "send"  # writing the head, and what came with it, to the backend
    FIRST = "first"  # user space moves the first bytes both ways: a short connection is over then
    ANSWER = "answer"  # the response's head is read in user space; the rest of the request goes on
    EXCHANGE = "exchange"  # one request goes to its backend, and its response to the client
    IDLE = "idle"  # kept, between two requests: nothing has come of the next one
    SPLICED = "spliced"  # the kernel moves the bytes
    RELAYED = "relayed"  # user space moves the bytes
    REPLY = "reply"  # writing an answer of our own
    LINGER = "linger"  # answer written; waiting for the client to have read it
    CLOSED = "closed"


class Event(StrEnum):
    """What happened to a connection."""

    ACCEPTED = "accepted"  # and its first bytes are to be read
    ADOPTED = "adopted"  # its pair is in the kernel, and the worker that put it there has died
    ACCEPTED_UNREAD = "accepted unread"  # nothing is read of it: a backend group was chosen
    ROUTED = "routed"  # what routes is complete and a backend group was chosen
    ANSWERED = "answered"  # the decision, or a broken rule, is a local reply
    CONNECTED = "connected"
    UNREACHABLE = "unreachable"  # no endpoint took the connection
    SENT = "sent"  # everything user space has for the backend is in its write queue
    AWAITED = "awaited"  # the same, and the response's head is to be read before the pair opens
    ANSWER_SEEN = "answer seen"  # it was, and the client has it
    REACHED = "reached"  # a backend for one request: connected to, or kept from another request
    STALE = "stale"  # that one had ended before it got the request: another one is dialled
    EXCHANGED = "exchanged"  # request and response are through, and the client may send another one
    LAST = "last"  # they are through, and the client may not
    SWITCHED = "switched"  # the two speak something else from now on
    KEPT = "kept"  # an answer of our own is written, and the client may send another request
    BEGUN = "begun"  # a first byte of the next request
    LASTS = "lasts"  # the backend has answered, or much came, and neither end has ended
    MUCH = "much"  # more than a little comes: the kernel is for what is calm
    BLOCKED = "blocked"  # one end had no room for the first bytes, or has ended: no splice
    CALM = "calm"  # the relay moves little at a time, and the receivers keep up
    REFUSED = "refused"  # the kernel would not take the pair
    REPLIED = "replied"
    CLIENT_END = "client end"  # EOF of the client where no pair is open
    CLIENT_ERROR = "client error"
    BACKEND_ERROR = "backend error"
    BACKEND_SILENT = "backend silent"  # it ended without a byte, and an answer is still possible
    FINISHED = "finished"  # both directions are FINISHED
    TIMEOUT = "timeout"
    ABORT = "abort"  # a drain deadline, a limit, an internal error


class Command(StrEnum):
    """What the driver is to do."""

    READ_HEAD = "read head"
    DIAL = "dial"
    SEND = "send"
    READ_ANSWER = "read answer"
    FIRST = "first"  # move the first bytes both ways
    EXCHANGE = "exchange"  # move the request, and the response
    READ_NEXT = "read next"  # await the next request
    BEGIN = "begin"  # a record for it, and its time
    OPEN = "open"  # splice the pair, or relay it if that is not possible
    ADOPT = "adopt"  # go on with the pair where it is
    RELAY = "relay"  # relay the pair: the splice was refused, or could not be tried
    REPLY = "reply"  # answer the client; what and why the driver knows
    LINGER = "linger"  # half-close towards the client, wait for its end
    CLOSE = "close"  # close in order: what is queued is delivered
    RESET = "reset"  # reset whatever is open: nobody may take this for a complete stream


_Row = tuple[State, tuple[Command, ...]]

_RESET: _Row = (State.CLOSED, (Command.RESET,))
_CLOSE: _Row = (State.CLOSED, (Command.CLOSE,))
_REPLY: _Row = (State.REPLY, (Command.REPLY,))

TABLE: dict[tuple[State, Event], _Row] = {
    (State.NEW, Event.ACCEPTED): (State.HEAD, (Command.READ_HEAD,)),
    (State.NEW, Event.ACCEPTED_UNREAD): (State.DIAL, (Command.DIAL,)),
    (State.NEW, Event.ADOPTED): (State.SPLICED, (Command.ADOPT,)),
    (State.NEW, Event.ABORT): _RESET,
    (State.HEAD, Event.ROUTED): (State.DIAL, (Command.DIAL,)),
    (State.HEAD, Event.ANSWERED): _REPLY,
    (State.HEAD, Event.TIMEOUT): _REPLY,
    (State.HEAD, Event.CLIENT_END): _CLOSE,
    (State.HEAD, Event.CLIENT_ERROR): _RESET,
    (State.HEAD, Event.ABORT): _RESET,
    (State.DIAL, Event.CONNECTED): (State.SEND, (Command.SEND,)),
    (State.DIAL, Event.UNREACHABLE): _REPLY,
    (State.DIAL, Event.CLIENT_ERROR): _RESET,
    (State.DIAL, Event.ABORT): _RESET,
    (State.SEND, Event.SENT): (State.FIRST, (Command.FIRST,)),
    (State.FIRST, Event.LASTS): (State.SPLICED, (Command.OPEN,)),
    (State.FIRST, Event.MUCH): (State.RELAYED, (Command.RELAY,)),
    (State.FIRST, Event.BLOCKED): (State.RELAYED, (Command.RELAY,)),
    (State.RELAYED, Event.CALM): (State.SPLICED, (Command.OPEN,)),
    (State.SEND, Event.AWAITED): (State.ANSWER, (Command.READ_ANSWER,)),
    (State.ANSWER, Event.ANSWER_SEEN): (State.SPLICED, (Command.OPEN,)),
    (State.SPLICED, Event.REFUSED): (State.RELAYED, (Command.RELAY,)),
    (State.DIAL, Event.REACHED): (State.EXCHANGE, (Command.EXCHANGE,)),
    (State.EXCHANGE, Event.STALE): (State.DIAL, (Command.DIAL,)),
    (State.EXCHANGE, Event.EXCHANGED): (State.IDLE, (Command.READ_NEXT,)),
    (State.EXCHANGE, Event.LAST): (State.LINGER, (Command.LINGER,)),
    (State.EXCHANGE, Event.SWITCHED): (State.SPLICED, (Command.OPEN,)),
    (State.EXCHANGE, Event.ANSWERED): _REPLY,
    (State.EXCHANGE, Event.CLIENT_ERROR): _RESET,
    (State.EXCHANGE, Event.BACKEND_ERROR): _RESET,
    (State.EXCHANGE, Event.TIMEOUT): _RESET,
    (State.EXCHANGE, Event.ABORT): _RESET,
    (State.REPLY, Event.KEPT): (State.IDLE, (Command.READ_NEXT,)),
    (State.IDLE, Event.BEGUN): (State.HEAD, (Command.BEGIN,)),
    (State.IDLE, Event.CLIENT_END): _CLOSE,
    (State.IDLE, Event.CLIENT_ERROR): _RESET,
    (State.IDLE, Event.TIMEOUT): (State.LINGER, (Command.LINGER,)),
    (State.IDLE, Event.ABORT): _RESET,
    (State.REPLY, Event.REPLIED): (State.LINGER, (Command.LINGER,)),
    (State.REPLY, Event.CLIENT_ERROR): _RESET,
    (State.REPLY, Event.TIMEOUT): _RESET,
    (State.REPLY, Event.ABORT): _RESET,
    (State.LINGER, Event.CLIENT_END): _CLOSE,
    (State.LINGER, Event.CLIENT_ERROR): _RESET,
    (State.LINGER, Event.TIMEOUT): _CLOSE,
    (State.LINGER, Event.ABORT): _CLOSE,
}
for _state in (State.SEND, State.ANSWER):
    TABLE |= {
        (_state, Event.BACKEND_ERROR): _REPLY,
        (_state, Event.CLIENT_ERROR): _RESET,
        (_state, Event.TIMEOUT): _RESET,
        (_state, Event.ABORT): _RESET,
    }
OPEN_STATES = frozenset((State.FIRST, State.SPLICED, State.RELAYED))
"""States in which a pair is open, whatever moves its bytes."""

for _state in OPEN_STATES:
    TABLE |= {
        (_state, Event.FINISHED): _CLOSE,
        (_state, Event.CLIENT_ERROR): _RESET,
        (_state, Event.BACKEND_ERROR): _RESET,
        (_state, Event.BACKEND_SILENT): _REPLY,
        (_state, Event.TIMEOUT): _RESET,
        (_state, Event.ABORT): _RESET,
    }


class Flow(StrEnum):
    """Where one direction of an open pair is."""

    KERNEL = "kernel"
    OVERFLOW = "overflow"
    USER = "user"
    DRAINING = "draining"
    FINISHED = "finished"


class FlowEvent(StrEnum):
    """What happened to one direction."""

    PASSED = "passed"  # the kernel passed bytes instead of redirecting them
    CAUGHT_UP = "caught up"  # user space has written all that was passed
    FIN = "fin"  # the source will send nothing more
    BALANCED = "balanced"  # the ledger balances: nothing of the direction is under way


class FlowCommand(StrEnum):
    """What the driver is to do about one direction."""

    RELAY_PASSED = "relay passed"  # move what was passed, then let the kernel go on
    DRAIN = "drain"  # find out whether the ledger balances, until it does
    PASS_FIN = "pass fin"  # noqa: S105 - half-close the other side


_FlowRow = tuple[Flow, tuple[FlowCommand, ...]]

FLOWS: dict[tuple[Flow, FlowEvent], _FlowRow] = {
    (Flow.KERNEL, FlowEvent.PASSED): (Flow.OVERFLOW, (FlowCommand.RELAY_PASSED,)),
    (Flow.KERNEL, FlowEvent.FIN): (Flow.DRAINING, (FlowCommand.DRAIN,)),
    (Flow.OVERFLOW, FlowEvent.PASSED): (Flow.OVERFLOW, ()),
    (Flow.OVERFLOW, FlowEvent.CAUGHT_UP): (Flow.KERNEL, ()),
    (Flow.OVERFLOW, FlowEvent.FIN): (Flow.DRAINING, (FlowCommand.DRAIN,)),
    (Flow.USER, FlowEvent.FIN): (Flow.DRAINING, (FlowCommand.DRAIN,)),
    (Flow.DRAINING, FlowEvent.PASSED): (Flow.DRAINING, (FlowCommand.DRAIN,)),
    (Flow.DRAINING, FlowEvent.FIN): (Flow.DRAINING, (FlowCommand.DRAIN,)),
    (Flow.DRAINING, FlowEvent.BALANCED): (Flow.FINISHED, (FlowCommand.PASS_FIN,)),
    (Flow.FINISHED, FlowEvent.FIN): (Flow.FINISHED, ()),
    (Flow.FINISHED, FlowEvent.PASSED): (Flow.FINISHED, ()),
}


_FINISHED = Flow.FINISHED
_BEGINS = {State.FIRST: Flow.USER, State.SPLICED: Flow.KERNEL, State.RELAYED: Flow.USER}
"""How directions begin where a pair opens, or another way of moving its bytes takes over."""


class Session:
    """One connection's place in the tables. `flows` is indexed by the side that bytes come from."""

    __slots__ = ("flows", "state")

    def __init__(self) -> None:
        self.state = State.NEW
        self.flows = [Flow.KERNEL, Flow.KERNEL]

    def on(self, event: Event) -> tuple[Command, ...]:
        """Advance by `event`; the commands to carry out, in order. Raises TransitionError."""
        try:
            self.state, commands = TABLE[self.state, event]
        except KeyError:
            raise TransitionError(f"{event.value!r} in state {self.state.value!r}") from None
        begins = _BEGINS.get(self.state)
        if begins is not None:
            self.flows = [one if one is _FINISHED else begins for one in self.flows]
        return commands

    def on_flow(self, side: Side, event: FlowEvent) -> tuple[FlowCommand, ...]:
        """Advance the direction from `side` by `event`. Raises TransitionError."""
        if self.state not in OPEN_STATES:
            raise TransitionError(f"{event.value!r} of a direction in state {self.state.value!r}")
        try:
            self.flows[side], commands = FLOWS[self.flows[side], event]
        except KeyError:
            flow = self.flows[side].value
            raise TransitionError(f"{event.value!r} in a direction that is {flow!r}") from None
        return commands

    @property
    def is_open(self) -> bool:
        """Whether a pair is open, whatever moves its bytes."""
        return self.state in OPEN_STATES

    @property
    def finished(self) -> bool:
        """Whether both directions ended and both FINs were passed on."""
        return self.flows[0] is _FINISHED and self.flows[1] is _FINISHED
