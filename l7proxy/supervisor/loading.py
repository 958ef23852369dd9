"""A policy is checked in a process that is there for nothing else.

Checking 10,000 routes takes seconds, and the supervisor has workers to look after. So it forks a
child with its own rights (the file may be root's), which reads, checks and packs the policy, hands
back two sealed memfds and ends. Whatever goes wrong in there, the supervisor has not seen it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from l7proxy import config as policies
from l7proxy.config import Problem, Report
from l7proxy.net import bundle, channel, process
from l7proxy.net.channel import Channel, ChannelBroken, ChannelClosed, Received

SECONDS = 120.0  # a policy that takes longer to check is refused
MOST_PROBLEMS = 100  # that are told one by one; the text has all of them


@dataclass(frozen=True, slots=True)
class Loaded:
    """The child's message; with it come the report, and the policy if there is one."""

    errors: int
    warnings: int


@dataclass(slots=True)
class Result:
    """What checking came to. `policy` is a descriptor (`net.bundle`), -1 when there are errors."""

    errors: int
    warnings: int
    text: str
    problems: list[dict[str, Any]]
    policy: int = -1


def load(path: str) -> Result:
    """Check the policy here and now."""
    report = policies.check(path)
    policy = -1 if report.policy is None else bundle.pack(report.policy)
    told = [_as_dict(problem) for problem in (*report.errors, *report.warnings)[:MOST_PROBLEMS]]
    return Result(len(report.errors), len(report.warnings), _text(report), told, policy)


async def load_aside(path: str) -> Result:
    """Check the policy in a child. A child that cannot say what it found is a failure as well."""
    began = time.monotonic()
    try:
        received = await aside(lambda number: _child(path, number), Loaded, seconds=SECONDS)
        return _result(received.message, received.fds)
    except TimeoutError:
        return failure(f"checking took more than {time.monotonic() - began:.0f} s")
    except ChannelClosed:
        return failure("the process that checked it ended early; the log says why")
    except (ChannelBroken, OSError) as error:
        return failure(f"it could not be checked: {error}")


async def aside(
    body: Callable[[int], int], accepts: type, *, seconds: float, keep: Iterable[int] = ()
) -> Received:
    """Run `body(control_fd)` in a child, and wait for the one message that it sends.

    The child has the descriptors in `keep`, and no others of this process. Raises TimeoutError,
    ChannelClosed when it ends without a message, ChannelBroken, OSError.
    """
    ours, theirs = channel.pair()
    end = Channel(ours, (accepts,), fds=2)
    child = 0
    try:
        with theirs:
            number = theirs.fileno()
            child = process.fork(lambda: body(number), frozenset({0, 1, 2, number, *keep}))
        async with asyncio.timeout(seconds):
            while True:
                await _readable(end)
                for received in end.receive():
                    return received
    finally:
        end.close()
        if child:
            os.kill(child, signal.SIGKILL)  # not waited for yet, so the number is still its own
            os.waitpid(child, 0)


def failure(why: str) -> Result:
    """A policy that could not even be looked at, or not be used for another reason."""
    problem = {"severity": "error", "message": why}
    return Result(1, 0, f"error: {why}", [problem])


def _child(path: str, number: int) -> int:
    result = load(path)
    report = json.dumps({"text": result.text, "problems": result.problems}).encode()
    fds = [channel.seal("report", report)]
    if result.policy >= 0:
        fds.append(result.policy)
    Channel(socket.socket(fileno=number), ()).send(Loaded(result.errors, result.warnings), fds)
    return 0


async def _readable(end: Channel) -> None:
    loop = asyncio.get_running_loop()
    arrived = loop.create_future()

    def arrive() -> None:
        if not arrived.done():
            arrived.set_result(None)

    loop.add_reader(end.fileno(), arrive)
    try:
        await arrived
    finally:
        loop.remove_reader(end.fileno())


def _result(message: Loaded, fds: list[int]) -> Result:
    report, *policy = fds
    try:
        told = json.loads(channel.unseal(report))
    finally:
        os.close(report)
    return Result(message.errors, message.warnings, told["text"], told["problems"], *policy)


def _text(report: Report) -> str:
    return report.render() if report.errors or report.warnings else ""


def _as_dict(problem: Problem) -> dict[str, Any]:
    location = problem.place.location
    return {
        "severity": str(problem.severity),
        "file": location.file,
        "line": location.line,
        "column": location.column,
        "message": problem.message,
        "hint": problem.hint,
    }
