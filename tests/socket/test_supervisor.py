"""The supervisor with workers that do nothing but die, obey, or refuse to."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import json
import mmap
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from l7proxy.errors import StartupError
from l7proxy.net import channel
from l7proxy.net.channel import Channel, ChannelClosed
from l7proxy.net.process import STOP
from l7proxy.supervisor import workers as module
from l7proxy.supervisor.workers import Supervisor
from l7proxy.telemetry.counters import Counter, SharedCounters

# ---- workers

UP = mmap.mmap(-1, 4096)  # shared with the workers


def say_up(slot: int) -> None:
    """From now on this worker does what it does when it is told to stop."""
    struct.pack_into("q", UP, 8 * slot, os.getpid())


def obedient(slot: int, control: int) -> int:
    """Leaves when it is told to stop, or when the supervisor is gone."""
    signal.signal(STOP, lambda *_: os._exit(0))
    say_up(slot)
    os.read(control, 1)
    return 9


def stubborn(slot: int, control: int) -> int:
    """Resets its connections only when it is told a second time."""
    told = 0

    def count(*_: object) -> None:
        nonlocal told
        told += 1
        if told == 2:
            os._exit(3)

    signal.signal(STOP, count)
    say_up(slot)
    os.read(control, 1)
    return 9


def deaf(slot: int, control: int) -> int:
    signal.signal(STOP, signal.SIG_IGN)
    say_up(slot)
    os.read(control, 1)
    return 9


def broken(slot: int, control: int) -> int:
    raise ValueError("a bug")


# ---- drivers


def drive(supervisor: Supervisor, scenario: Callable[[], Awaitable[None]]) -> int:
    """Run the scenario beside the supervisor, which must have ended soon after; its exit code."""

    async def main() -> int:
        running = asyncio.create_task(supervisor.run())
        try:
            await scenario()
            return await asyncio.wait_for(running, 60)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    others = children()
    code = asyncio.run(main())
    assert children() <= others, "a worker or a zombie is left"
    return code


def children() -> set[int]:
    """The children of this process, zombies too. Some are other tests': a proxy that they share."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.005)


async def up(supervisor: Supervisor) -> None:
    """Wait until all workers are there, and have said so."""
    await until(
        lambda: (
            supervisor.running == supervisor.configured
            and all(
                struct.unpack_from("q", UP, 8 * slot) == (pid,) for slot, pid in supervisor.places
            )
        )
    )


async def restarted(supervisor: Supervisor, times: int) -> None:
    await until(
        lambda: supervisor.restarts == times and supervisor.running == supervisor.configured
    )


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


# ---- death and replacement


def test_a_dead_worker_is_replaced_at_once_and_its_gauges_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = SharedCounters(2, rows=1)
    lost: list[int] = []

    def on_exit(slot: int) -> int:
        lost.append(shared.reconcile(slot))
        return lost[-1]

    def child(slot: int, control: int) -> int:
        counters = shared.slot(slot)
        counters.view[Counter.ACCEPTED] += 5
        counters.view[Counter.SPLICES] += 4
        counters.view[Counter.CLOSED] += 2
        for _ in range(3):
            counters.enter(0)
        return obedient(slot, control)

    supervisor = Supervisor(2, child, on_exit=on_exit)

    async def scenario() -> None:
        await until(lambda: shared.active() == 6)
        victim, other = supervisor.pids
        os.kill(victim, signal.SIGKILL)
        await until(lambda: supervisor.restarts == 1 and victim not in supervisor.pids)
        assert "restarts later" not in caplog.text, "it is replaced at once"
        assert supervisor.running == 2
        assert other in supervisor.pids
        await until(lambda: shared.total(Counter.ACCEPTED) == 15)
        assert lost == [3]
        assert shared.active() == 6
        assert shared.spliced() == 8
        assert shared.present(0) == 6
        supervisor.stop()

    assert drive(supervisor, scenario) == 3  # the fakes leave without ending their connections
    assert shared.active() == 0
    shared.close()


def test_twenty_deaths_leak_no_descriptor_and_no_zombie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_MOST", 0.001)
    monkeypatch.setattr(module, "BACKOFF_FIRST", 0.001)
    before, others = descriptors(), children()
    supervisor = Supervisor(3, obedient)

    async def scenario() -> None:
        await until(lambda: supervisor.running == 3)
        held = descriptors()
        for death in range(1, 21):
            os.kill(supervisor.pids[death % 3], signal.SIGKILL)
            await restarted(supervisor, death)
        assert descriptors() == held
        assert children() - others == set(supervisor.pids)
        await up(supervisor)
        supervisor.stop()

    assert drive(supervisor, scenario) == 0
    assert descriptors() == before


def test_a_worker_that_dies_early_again_and_again_comes_back_later_and_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BACKOFF_FIRST", 0.05)
    starts, writer = os.pipe()

    def child(slot: int, control: int) -> int:
        if slot == 1:
            return obedient(slot, control)  # so that the other one is not hopeless
        os.write(writer, f"{time.monotonic()}\n".encode())
        return 7

    supervisor = Supervisor(2, child)

    async def scenario() -> None:
        await until(lambda: supervisor.restarts == 6)
        supervisor.stop()

    assert drive(supervisor, scenario) == 0
    os.close(writer)
    with os.fdopen(starts) as file:
        times = [float(line) for line in file]
    gaps = [later - sooner for sooner, later in pairwise(times)]
    # How long it took would say more about the machine.
    assert caplog.text.count("worker restarts later slot=0") == 5, "all but the first of six wait"
    assert [gap >= least for gap, least in zip(gaps[1:5], (0.05, 0.1, 0.2, 0.4), strict=False)] == [
        True
    ] * 4


def test_gives_up_when_no_worker_ever_comes_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "BACKOFF_FIRST", 0.001)
    supervisor = Supervisor(2, lambda _slot, _control: 7)

    async def nothing() -> None: ...

    assert drive(supervisor, nothing) == 1
    assert "giving up" in caplog.text
    assert "worker ended slot=0" in caplog.text
    assert "exit_code=7" in caplog.text


def test_does_not_give_up_on_workers_that_are_killed_from_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BACKOFF_FIRST", 0.001)
    supervisor = Supervisor(1, obedient)

    async def scenario() -> None:
        await until(lambda: supervisor.running == 1)
        for death in range(1, 9):
            os.kill(supervisor.pids[0], signal.SIGKILL)
            await restarted(supervisor, death)
        await up(supervisor)
        supervisor.stop()

    assert drive(supervisor, scenario) == 0


@pytest.mark.parametrize("missing", ["process", "descriptor"])
def test_when_nothing_can_be_forked_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    before = descriptors()
    supervisor = Supervisor(1, obedient)
    failures = iter([OSError(errno.EAGAIN, "try again"), OSError(errno.EMFILE, "too many")])
    owner, name = (os, "fork") if missing == "process" else (channel, "pair")
    real = getattr(owner, name)

    def failing(*arguments: object) -> object:
        for failure in failures:
            raise failure
        return real(*arguments)

    async def scenario() -> None:
        monkeypatch.setattr(owner, name, failing)
        await up(supervisor)
        supervisor.stop()

    assert drive(supervisor, scenario) == 0
    assert caplog.text.count("fork failed slot=0") == 2
    assert descriptors() == before


def test_how_a_worker_died_is_told(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor(1, obedient, on_exit=lambda _slot: 4)

    async def scenario() -> None:
        await until(lambda: supervisor.running == 1)
        os.kill(supervisor.pids[0], signal.SIGVTALRM)
        await until(lambda: supervisor.restarts == 1)
        supervisor.stop()

    drive(supervisor, scenario)
    assert "worker ended slot=0" in caplog.text
    assert "signal=SIGVTALRM" in caplog.text
    assert "connections_lost=4" in caplog.text


# ---- what a worker starts with


def test_a_worker_holds_only_what_was_open_before_the_supervisor() -> None:
    reader, writer = os.pipe()

    def child(slot: int, control: int) -> int:
        held = open_files()
        del held[str(control)]
        os.write(writer, json.dumps([slot, held]).encode() + b"\n")
        return obedient(slot, control)

    before = open_files()
    supervisor = Supervisor(3, child)

    async def scenario() -> None:
        await up(supervisor)  # all three have told
        os.kill(supervisor.pids[0], signal.SIGKILL)  # its successor is born among the others' ends
        await until(lambda: supervisor.restarts == 1)
        await up(supervisor)
        supervisor.stop()

    assert drive(supervisor, scenario) == 0
    os.close(writer)
    with os.fdopen(reader) as file:
        told = [json.loads(line) for line in file]
    assert sorted(slot for slot, _ in told) == [0, 0, 1, 2]
    for _, held in told:
        assert held == before, "neither the loop's nor another worker's, and nothing was lost"


def open_files() -> dict[str, str]:
    """What this process holds, by descriptor."""
    links = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            links[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the one that read the list
    return links


def test_a_worker_starts_with_default_signals_and_leaves_stopping_to_its_parent() -> None:
    reader, writer = os.pipe()

    def child(slot: int, control: int) -> int:
        answer = {
            "stop": signal.getsignal(STOP) == signal.SIG_DFL,
            "chld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
            "pipe": signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN,
            "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            "wakeup": signal.set_wakeup_fd(-1),
        }
        os.write(writer, json.dumps(answer).encode())
        return obedient(slot, control)

    supervisor = Supervisor(1, child)
    answer: dict[str, object] = {}

    async def scenario() -> None:
        await until(lambda: bool(select.select([reader], [], [], 0)[0]))
        answer.update(json.loads(os.read(reader, 4096)))
        supervisor.stop()

    assert drive(supervisor, scenario) == 0
    os.close(reader)
    os.close(writer)
    assert answer == {
        "stop": True,
        "chld": True,
        "pipe": True,
        "blocked": [
            signal.SIGHUP,
            signal.SIGINT,
            signal.SIGUSR1,
            signal.SIGUSR2,
            signal.SIGTERM,
        ],
        "wakeup": -1,
    }


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("bug"), 70), (StartupError("no"), 70), (SystemExit(0), 70)]
)
def test_an_exception_ends_the_worker_and_never_reaches_the_loop(
    error: BaseException, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    parent = os.getpid()

    def child(slot: int, control: int) -> int:
        raise error

    supervisor = Supervisor(1, child)

    async def scenario() -> None:
        await until(lambda: supervisor.restarts >= 1)
        supervisor.stop()

    drive(supervisor, scenario)
    assert os.getpid() == parent
    assert f"exit_code={code}" in caplog.text


# ---- the end


def test_a_drain_that_ends_in_time_is_clean() -> None:
    drained: list[bool] = []
    supervisor = Supervisor(2, obedient, on_drain=lambda: drained.append(True))

    async def scenario() -> None:
        await up(supervisor)
        assert not supervisor.draining
        supervisor.stop()
        assert supervisor.draining

    assert drive(supervisor, scenario) == 0
    assert drained == [True]


def test_at_the_deadline_connections_are_reset(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    supervisor = Supervisor(2, stubborn, drain_seconds=0.3, active=lambda: 7)

    async def scenario() -> None:
        await up(supervisor)
        supervisor.stop()

    begun = time.monotonic()
    assert drive(supervisor, scenario) == 3
    assert time.monotonic() - begun >= 0.3
    assert "draining connections=7 workers=2 seconds=0.3" in caplog.text
    assert "resetting connections connections=7 why=deadline" in caplog.text


def test_a_second_signal_does_not_wait_for_the_deadline() -> None:
    supervisor = Supervisor(1, stubborn, drain_seconds=600)

    async def scenario() -> None:
        await up(supervisor)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert supervisor.running == 1
        os.kill(os.getpid(), signal.SIGINT)

    begun = time.monotonic()
    assert drive(supervisor, scenario) == 3
    assert time.monotonic() - begun < 300.0


def test_while_it_is_only_leaving_workers_are_replaced() -> None:
    phases: list[str] = []
    supervisor = Supervisor(
        1, obedient, drain_delay=600, on_drain=lambda: phases.append(str(supervisor.phase))
    )

    async def scenario() -> None:
        assert not supervisor.ready
        await until(lambda: supervisor.running == 1)
        await until(lambda: supervisor.ready)
        supervisor.drain()
        supervisor.drain()
        assert (supervisor.ready, supervisor.draining) == (False, True)
        await until(lambda: supervisor.phase == "leaving")
        os.kill(supervisor.pids[0], signal.SIGKILL)
        await restarted(supervisor, 1)
        await up(supervisor)
        assert phases == []
        supervisor.stop()
        supervisor.stop()  # it insists, so that nobody waits for the delay

    drive(supervisor, scenario)
    assert phases == ["draining"]
    assert supervisor.phase == "stopped"


def test_the_delay_of_a_drain_comes_to_its_end() -> None:
    supervisor = Supervisor(1, obedient, drain_delay=0.3)

    async def scenario() -> None:
        await up(supervisor)
        supervisor.drain()

    begun = time.monotonic()
    assert drive(supervisor, scenario) == 0
    assert time.monotonic() - begun >= 0.3


def test_a_signal_after_an_order_to_drain_is_a_first_one() -> None:
    """Kubernetes sends SIGTERM behind the preStop hook, which may have begun the drain."""
    supervisor = Supervisor(1, stubborn, drain_seconds=600)

    async def scenario() -> None:
        await up(supervisor)
        supervisor.drain()
        await until(lambda: supervisor.phase == "draining")
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert supervisor.phase == "draining"
        os.kill(os.getpid(), signal.SIGTERM)

    begun = time.monotonic()
    assert drive(supervisor, scenario) == 3
    assert time.monotonic() - begun < 300.0


def test_the_progress_of_a_drain_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "PROGRESS", 0.1)
    left = itertools.count(9, -1)
    supervisor = Supervisor(1, stubborn, drain_seconds=600, active=lambda: next(left))

    def lines() -> list[str]:
        return [one for one in caplog.messages if one.startswith("draining connections=")]

    async def scenario() -> None:
        await up(supervisor)
        supervisor.stop()
        await until(lambda: len(lines()) >= 3)
        supervisor.stop()

    assert drive(supervisor, scenario) == 3
    assert re.fullmatch(r"draining connections=7 workers=1 seconds_left=\d+", lines()[1])


def test_what_is_reset_is_counted_with_what_dies(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    supervisor = Supervisor(
        1,
        deaf,
        drain_seconds=0.1,
        reset_seconds=0.2,
        on_exit=lambda _slot: 5,
        present=lambda: {"web": 3, "idle": 0, "db": 4},
        resets=iter([10, 12, 12]).__next__,
    )

    async def scenario() -> None:
        await up(supervisor)
        supervisor.stop()

    assert drive(supervisor, scenario) == 3
    assert "on=db:4,web:3" in caplog.text
    assert "stopped connections_reset=7" in caplog.text, "two by the worker, five with it"


def test_a_worker_that_does_not_listen_is_killed() -> None:
    supervisor = Supervisor(1, deaf, drain_seconds=0.1, reset_seconds=0.2, on_exit=lambda _slot: 1)

    async def scenario() -> None:
        await up(supervisor)
        supervisor.stop()

    assert drive(supervisor, scenario) == 3


def not_permitted(pid: int, number: int) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_without_cap_kill_workers_are_sent_off_by_their_control_sockets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module.os, "kill", not_permitted)
    supervisor = Supervisor(2, obedient, drain_seconds=600, on_exit=lambda _slot: 1)

    async def scenario() -> None:
        await until(lambda: supervisor.running == 2)
        supervisor.stop()

    begun = time.monotonic()
    assert drive(supervisor, scenario) == 3, "their connections did not end by themselves"
    assert time.monotonic() - begun < 300.0
    assert caplog.text.count("not permitted to signal a worker") == 2
    assert "CAP_KILL" in caplog.text
    assert "worker ended" not in caplog.text, "what was asked for is no error"


def test_a_worker_that_may_not_be_killed_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stuck(slot: int, control: int) -> int:
        while True:
            signal.pause()

    supervisor = Supervisor(1, stuck, drain_seconds=0.1, reset_seconds=0.1)
    left: list[int] = []

    async def scenario() -> None:
        await until(lambda: supervisor.running == 1)
        left.extend(supervisor.pids)
        monkeypatch.setattr(module.os, "kill", not_permitted)
        supervisor.stop()
        await until(lambda: "left behind" in caplog.text)
        monkeypatch.undo()
        os.kill(left[0], signal.SIGKILL)
        os.waitpid(left[0], 0)

    assert drive(supervisor, scenario) == 4
    assert f"workers are left behind pids={left[0]}" in caplog.text


def test_a_worker_that_dies_in_the_drain_is_not_replaced() -> None:
    supervisor = Supervisor(2, stubborn, drain_seconds=0.5)

    async def scenario() -> None:
        await up(supervisor)
        supervisor.stop()
        os.kill(supervisor.pids[0], signal.SIGKILL)
        await until(lambda: supervisor.running == 1)
        assert supervisor.restarts == 0

    assert drive(supervisor, scenario) == 3


def test_a_worker_waiting_for_its_restart_is_forgotten_in_the_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BACKOFF_FIRST", 600.0)
    monkeypatch.setattr(module, "BACKOFF_MOST", 600.0)

    def child(slot: int, control: int) -> int:
        return 7 if slot == 0 else obedient(slot, control)

    supervisor = Supervisor(2, child)

    async def scenario() -> None:
        await until(lambda: supervisor.restarts == 2)  # the second one waits
        assert supervisor.running == 1
        waiting = supervisor._slots[0]
        assert waiting.restart is not None
        supervisor.stop()
        await until(lambda: supervisor.running == 0)
        assert waiting.restart is None

    assert drive(supervisor, scenario) == 0


def test_workers_leave_when_the_supervisor_is_killed() -> None:
    """Each of three: one that held another's control socket would keep it alive."""
    script = textwrap.dedent("""
        import asyncio, os
        from l7proxy.supervisor.workers import Supervisor
        def child(slot, control):
            os.read(control, 1)
            return 0
        s = Supervisor(3, child)
        asyncio.run(s.run(lambda: print(*s.pids, flush=True)))
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 3
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        process.kill()
        deadline = time.monotonic() + 60
        while any(_alive(pid) for pid in pids):
            assert time.monotonic() < deadline, "a worker outlived its supervisor"
            time.sleep(0.01)


def _alive(pid: int) -> bool:
    """Not gone, and no zombie that the machine's init has yet to collect."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- messages


@dataclass(frozen=True)
class Word:
    text: str


def talkative(_slot: int, control: int) -> int:
    """Says back what it is told, until it is told to lie."""
    end = Channel(socket.socket(fileno=control), (Word,))
    while True:
        select.select([control], [], [])
        try:
            for received in end.receive():
                if received.message.text == "lie":
                    os.write(control, b"cos\nsystem\n(S'true'\ntR.")
                else:
                    end.send(Word(received.message.text + "!"))
        except ChannelClosed:
            return 0


def test_children_are_told_and_heard_and_a_liar_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[tuple[int, str]] = []
    supervisor = Supervisor(
        2,
        talkative,
        accepts=(Word,),
        on_message=lambda slot, message: heard.append((slot, message.text)),
    )

    async def scenario() -> None:
        await until(lambda: supervisor.running == 2)
        supervisor.send_workers(Word("a"))
        await until(lambda: sorted(heard) == [(0, "a!"), (1, "a!")])
        supervisor.send(1, Word("lie"))
        await restarted(supervisor, 1)
        assert supervisor.has(1)
        supervisor.send(1, Word("b"))
        await until(lambda: (1, "b!") in heard)
        supervisor.stop()

    assert drive(supervisor, scenario) == 0
    assert "worker killed slot=1" in caplog.text
    assert "not a message" in caplog.text


def test_a_worker_that_does_not_read_costs_the_supervisor_nothing_but_that_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = descriptors()
    supervisor = Supervisor(1, deaf_to_messages)

    async def scenario() -> None:
        await until(lambda: supervisor.running == 1)
        for _ in range(5000):
            supervisor.send(0, Word("x" * 1000))
        await restarted(supervisor, 1)
        supervisor.stop()

    assert drive(supervisor, scenario) == 0
    assert "nobody reads them" in caplog.text
    assert descriptors() == before


def deaf_to_messages(_slot: int, _control: int) -> int:
    signal.signal(STOP, lambda *_: os._exit(0))
    while True:
        signal.pause()


# ---- the prober


def test_the_prober_lives_while_it_is_wanted_and_is_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[tuple[int, str]] = []
    supervisor = Supervisor(
        1,
        obedient,
        prober=partial(talkative, 1),
        prober_accepts=(Word,),
        on_message=lambda slot, message: heard.append((slot, message.text)),
    )

    async def scenario() -> None:
        await until(lambda: supervisor.running == 1)
        assert not supervisor.has(1)
        supervisor.probe(wanted=True)
        supervisor.probe(wanted=True)
        assert supervisor.has(1)
        assert supervisor.running == 1, "it is no worker"
        supervisor.send(1, Word("a"))
        await until(lambda: heard == [(1, "a!")])
        supervisor.send(1, Word("lie"))
        await until(lambda: "prober ended" in caplog.text)
        await until(lambda: supervisor.has(1))
        supervisor.probe(wanted=False)
        await until(lambda: not supervisor.has(1))
        supervisor.probe(wanted=True)
        supervisor.stop()

    assert drive(supervisor, scenario) == 0
    assert "prober killed slot=1" in caplog.text
