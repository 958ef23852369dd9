"""The session's two tables, as transcripts: `>>` what happened, `<<` what is ordered for it.

A line that begins with `client:` or `backend:` is about the direction that comes from that side.
`==` tells the state, or `client=... backend=...` the flows, at that point.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.errors import TransitionError
from l7proxy.model import Side
from l7proxy.session import (
    FLOWS,
    OPEN_STATES,
    TABLE,
    Command,
    Event,
    Flow,
    FlowCommand,
    FlowEvent,
    Session,
    State,
)

SPLICE = """
    >> accepted unread
    << dial
    >> connected
    << send
    >> sent
    << first
    == first
    >> lasts
    << open
    == spliced
"""
RELAY = SPLICE + ">> refused\n << relay\n == relayed\n == client=user backend=user\n"
HEAD = ">> accepted\n << read head\n == head\n"
DIAL = HEAD + ">> routed\n << dial\n == dial\n"
SEND = DIAL + ">> connected\n << send\n == send\n"
FIRST = SEND + ">> sent\n << first\n == first\n == client=user backend=user\n"
ANSWER = SEND + ">> awaited\n << read answer\n == answer\n"
EXCHANGE = DIAL + ">> reached\n << exchange\n == exchange\n"
IDLE = EXCHANGE + ">> exchanged\n << read next\n == idle\n"
REPLY = HEAD + ">> answered\n << reply\n == reply\n"
LINGER = REPLY + ">> replied\n << linger\n == linger\n"

TRANSCRIPTS = {
    "a request, and its answer, in passing": FIRST
    + """
        >> backend: fin
        << backend: drain
        >> backend: balanced
        << backend: pass fin
        == client=user backend=finished
        >> client: fin
        << client: drain
        >> client: balanced
        << client: pass fin
        >> finished
        << close
        == closed
    """,
    "the first bytes find no room, or only one end is left: relayed to the end": FIRST
    + """
        >> client: fin
        << client: drain
        >> client: balanced
        << client: pass fin
        >> blocked
        << relay
        == relayed
        == client=finished backend=user
    """,
    "what comes first, and the rest through the kernel": FIRST
    + """
        >> lasts
        << open
        == spliced
        == client=kernel backend=kernel
        >> client: fin
        << client: drain
        >> client: balanced
        << client: pass fin
        == client=finished backend=kernel
        >> backend: fin
        << backend: drain
        >> backend: balanced
        << backend: pass fin
        == client=finished backend=finished
        >> finished
        << close
        == closed
    """,
    "a pair whose worker has died goes on with the next one": """
        >> adopted
        << adopt
        == spliced
        == client=kernel backend=kernel
        >> backend: passed
        << backend: relay passed
    """,
    "a slow client: user space takes the direction over, twice": SPLICE
    + """
        >> backend: passed
        << backend: relay passed
        == client=kernel backend=overflow
        >> backend: passed
        >> backend: caught up
        == client=kernel backend=kernel
        >> backend: passed
        << backend: relay passed
        >> backend: fin
        << backend: drain
        == client=kernel backend=draining
        >> backend: passed
        << backend: drain
        >> backend: fin
        << backend: drain
        >> backend: balanced
        << backend: pass fin
        >> backend: fin
        >> backend: passed
        == client=kernel backend=finished
    """,
    "much comes first, and the kernel has it once it is calm": FIRST
    + """
        >> much
        << relay
        == relayed
        == client=user backend=user
        >> calm
        << open
        == spliced
        == client=kernel backend=kernel
        >> abort
        << reset
    """,
    "the kernel takes no pair: relayed to the end": RELAY
    + """
        >> backend: fin
        << backend: drain
        >> backend: balanced
        << backend: pass fin
        >> client: fin
        << client: drain
        >> client: balanced
        << client: pass fin
        >> finished
        << close
        == closed
    """,
    "an answer of our own": LINGER + ">> client end\n << close\n == closed",
    "... that the client does not end for": LINGER + ">> timeout\n << close\n == closed",
    "... that the client resets on": LINGER + ">> client error\n << reset\n == closed",
    "... cut short by a drain: it was written": LINGER + ">> abort\n << close\n == closed",
    "an answer that the client does not read": REPLY + ">> timeout\n << reset\n == closed",
    "an answer to a client that is gone": REPLY + ">> client error\n << reset\n == closed",
    "an answer cut short by a drain": REPLY + ">> abort\n << reset\n == closed",
    "no head in time is answered": HEAD + ">> timeout\n << reply\n == reply",
    "no head, but the end": HEAD + ">> client end\n << close\n == closed",
    "no head, but a reset": HEAD + ">> client error\n << reset\n == closed",
    "drained before the head was complete": HEAD + ">> abort\n << reset\n == closed",
    "no endpoint takes the connection": DIAL + ">> unreachable\n << reply\n == reply",
    "the client leaves during the dial": DIAL + ">> client error\n << reset\n == closed",
    "drained during the dial": DIAL + ">> abort\n << reset\n == closed",
    "the backend breaks before it has the request": SEND
    + ">> backend error\n << reply\n == reply\n",
    "the client breaks while its request is sent": SEND + ">> client error\n << reset\n == closed",
    "the backend takes nothing of the request": SEND + ">> timeout\n << reset\n == closed",
    "drained while the request is sent": SEND + ">> abort\n << reset\n == closed",
    "the response's head is read before the splice": ANSWER
    + ">> answer seen\n << open\n == spliced\n == client=kernel backend=kernel",
    "... and the pair is relayed": ANSWER
    + ">> answer seen\n << open\n >> refused\n << relay\n == relayed",
    "no response comes, but the end": ANSWER + ">> backend error\n << reply\n == reply\n",
    "the client breaks before the response": ANSWER + ">> client error\n << reset\n == closed",
    "no response, for too long": ANSWER + ">> timeout\n << reset\n == closed",
    "drained before the response": ANSWER + ">> abort\n << reset\n == closed",
    "aborted before anything happened": ">> abort\n << reset\n == closed",
    "first: the client breaks": FIRST + ">> client error\n << reset\n == closed",
    "first: the backend breaks": FIRST + ">> backend error\n << reset\n == closed",
    "first: idle": FIRST + ">> timeout\n << reset\n == closed",
    "first: the drain's deadline": FIRST + ">> abort\n << reset\n == closed",
    "first: an end without an answer is answered": FIRST
    + ">> backend silent\n << reply\n == reply\n >> replied\n << linger\n == linger",
    "spliced: the client breaks": SPLICE + ">> client error\n << reset\n == closed",
    "spliced: the backend breaks": SPLICE + ">> backend error\n << reset\n == closed",
    "spliced: idle or stalled": SPLICE + ">> timeout\n << reset\n == closed",
    "spliced: the drain's deadline": SPLICE + ">> abort\n << reset\n == closed",
    "spliced: an end without an answer is answered": SPLICE
    + ">> backend silent\n << reply\n == reply\n >> replied\n << linger\n == linger",
    "relayed: the client breaks": RELAY + ">> client error\n << reset\n == closed",
    "relayed: the backend breaks": RELAY + ">> backend error\n << reset\n == closed",
    "relayed: idle or stalled": RELAY + ">> timeout\n << reset\n == closed",
    "relayed: the drain's deadline": RELAY + ">> abort\n << reset\n == closed",
    "relayed: an end without an answer is answered": RELAY
    + ">> backend silent\n << reply\n == reply",
    "request after request, the second over a connection that was stale": IDLE
    + """
        >> begun
        << begin
        == head
        >> routed
        << dial
        >> reached
        << exchange
        >> stale
        << dial
        == dial
        >> reached
        << exchange
        >> last
        << linger
        == linger
        >> client end
        << close
        == closed
    """,
    "an answer of our own, and another request": REPLY
    + ">> kept\n << read next\n == idle\n >> begun\n << begin\n == head",
    "exchange: another protocol": EXCHANGE + ">> switched\n << open\n == spliced",
    "exchange: answered in the backend's place": EXCHANGE + ">> answered\n << reply\n == reply",
    "exchange: the client breaks": EXCHANGE + ">> client error\n << reset\n == closed",
    "exchange: the backend breaks": EXCHANGE + ">> backend error\n << reset\n == closed",
    "exchange: idle or stalled": EXCHANGE + ">> timeout\n << reset\n == closed",
    "exchange: the drain's deadline": EXCHANGE + ">> abort\n << reset\n == closed",
    "between two requests: the client ends": IDLE + ">> client end\n << close\n == closed",
    "between two requests: the client breaks": IDLE + ">> client error\n << reset\n == closed",
    "between two requests: for too long, or a drain": IDLE + ">> timeout\n << linger\n == linger",
    "between two requests: an operator's reset": IDLE + ">> abort\n << reset\n == closed",
}

Row = tuple[State, Event] | tuple[Flow, FlowEvent]


def flows(session: Session) -> str:
    """As in a transcript."""
    return f"client={session.flows[0].value} backend={session.flows[1].value}"


def play(text: str) -> tuple[Session, set[Row]]:
    """Play a transcript; what it says is what must happen. Returns the rows that it visited."""
    session = Session()
    visited: set[Row] = set()
    ordered: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        kind, _, what = line.partition(" ")
        side, _, flow_event = what.rpartition(": ")
        if kind == ">>":
            assert not ordered, f"also ordered: {ordered}"
            if side:
                at, told = Side[side.upper()], FlowEvent(flow_event)
                visited.add((session.flows[at], told))
                ordered = [f"{side}: {command.value}" for command in session.on_flow(at, told)]
            else:
                event = Event(what)
                visited.add((session.state, event))
                ordered = [command.value for command in session.on(event)]
        elif kind == "<<":
            assert ordered, f"nothing more is ordered, {what!r} was expected"
            assert ordered.pop(0) == what
        else:
            assert what in (session.state.value, flows(session))
    assert not ordered, f"also ordered: {ordered}"
    return session, visited


@pytest.mark.parametrize("text", TRANSCRIPTS.values(), ids=TRANSCRIPTS.keys())
def test_transcript(text: str) -> None:
    play(text)


def test_the_transcripts_visit_every_row() -> None:
    visited = set().union(*(play(text)[1] for text in TRANSCRIPTS.values()))
    assert visited == set(TABLE) | set(FLOWS)


# ---- what is not in a table


def session_in(state: State, *, both: Flow = Flow.KERNEL) -> Session:
    session = Session()
    session.state = state
    session.flows = [both, both]
    return session


@pytest.mark.parametrize(
    ("state", "event"),
    [(state, event) for state in State for event in Event if (state, event) not in TABLE],
)
def test_any_other_event_raises_and_changes_nothing(state: State, event: Event) -> None:
    session = session_in(state)
    with pytest.raises(TransitionError, match=f"'{event.value}' in state '{state.value}'"):
        session.on(event)
    assert session.state is state
    assert session.flows == [Flow.KERNEL, Flow.KERNEL]


@pytest.mark.parametrize(
    ("flow", "event"),
    [(flow, event) for flow in Flow for event in FlowEvent if (flow, event) not in FLOWS],
)
@pytest.mark.parametrize("state", [State.SPLICED, State.RELAYED])
def test_any_other_event_of_a_direction_raises(state: State, flow: Flow, event: FlowEvent) -> None:
    session = session_in(state, both=flow)
    with pytest.raises(TransitionError, match=f"'{event.value}' in a direction that is "):
        session.on_flow(Side.CLIENT, event)
    assert session.flows == [flow, flow]


@pytest.mark.parametrize("state", [s for s in State if s not in OPEN_STATES])
@pytest.mark.parametrize("event", FlowEvent)
def test_directions_live_only_while_a_pair_is_open(state: State, event: FlowEvent) -> None:
    session = session_in(state)
    assert not session.is_open
    with pytest.raises(TransitionError):
        session.on_flow(Side.BACKEND, event)


# ---- the shape of the tables


def leads_to(state: State) -> set[State]:
    """The states that can come after `state`, in any number of steps."""
    found: set[State] = set()
    frontier = {state}
    while frontier:
        frontier = {to for (at, _), (to, _) in TABLE.items() if at in frontier} - found
        found |= frontier
    return found


def test_every_state_is_reached_and_every_state_ends() -> None:
    assert leads_to(State.NEW) == set(State) - {State.NEW}
    for state in State:
        assert state is State.CLOSED or State.CLOSED in leads_to(state)
    assert leads_to(State.CLOSED) == set()


def test_closed_is_where_sockets_are_closed_and_nowhere_else() -> None:
    for (_, event), (to, commands) in TABLE.items():
        ends = Command.CLOSE in commands or Command.RESET in commands
        assert ends == (to is State.CLOSED), event
        assert len(commands) == 1


def test_anything_can_be_aborted_until_it_is_closed() -> None:
    """A limit, a drain's deadline or a bug of ours may end a connection in any state."""
    assert {state for state, event in TABLE if event is Event.ABORT} == set(State) - {State.CLOSED}


def test_a_stream_that_was_cut_is_reset() -> None:
    """While a pair is open, or on its way to it, only FINISHED ends a connection in order."""
    streaming = (State.DIAL, State.SEND, State.ANSWER, State.SPLICED, State.RELAYED)
    for (state, event), (_, commands) in TABLE.items():
        if state in streaming and Command.CLOSE in commands:
            assert event is Event.FINISHED


def test_each_side_is_told_apart() -> None:
    session = session_in(State.SPLICED)
    session.on_flow(Side.BACKEND, FlowEvent.FIN)
    assert session.flows == [Flow.KERNEL, Flow.DRAINING]
    session.on_flow(Side.CLIENT, FlowEvent.PASSED)
    assert session.flows == [Flow.OVERFLOW, Flow.DRAINING]


@given(st.lists(st.tuples(st.sampled_from(Side), st.sampled_from(FlowEvent)), max_size=40))
def test_a_fin_is_passed_on_once_and_only_after_a_fin(
    told: list[tuple[Side, FlowEvent]],
) -> None:
    """Whatever is told, in any order: refused events change nothing."""
    session = session_in(State.SPLICED)
    fins: list[Side] = []
    seen: set[Side] = set()
    for side, event in told:
        try:
            commands = session.on_flow(side, event)
        except TransitionError:
            continue
        if event is FlowEvent.FIN:
            seen.add(side)
        if FlowCommand.PASS_FIN in commands:
            fins.append(side)
        for each in Side:
            assert (session.flows[each] is Flow.FINISHED) == (each in fins)
    assert len(fins) == len(set(fins))
    assert set(fins) <= seen
    assert session.finished == (len(fins) == 2)


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_nothing_is_ordered_once_it_is_closed(events: list[Event]) -> None:
    session = Session()
    for event in events:
        ended = session.state is State.CLOSED
        try:
            session.on(event)
        except TransitionError:
            continue
        assert not ended
