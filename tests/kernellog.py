"""An eye on the kernel's log: what it prints when it caught itself, or one of us, doing wrong.

One complaint is known and no failure: WARN_ON_ONCE in inet_sock_destruct(), reached from
sk_psock_destroy(): a socket is freed with a residue in sk_forward_alloc. Bytes that the verdict
passes while redirected ones still wait to be sent to the same socket are handed over by
sk_psock_backlog(), which charges them by skb_set_owner_r() without the socket's lock. Two at once
change a counter that is no atomic. Neither the verdict nor user space can keep bytes from arriving
in that moment, and nothing is lost but a few bytes of accounting. It appears once a boot.

Nor are reports that tell of others: that a hypervisor has taken a processor away for many seconds
(a lockup, a stall of RCU, a task that hangs), or that a process somewhere ran out of memory. They
are ours if the stack has anything to do with what l7proxy has the kernel do.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

ALARM = re.compile(
    r"WARNING:|BUG:|BUG |Oops|general protection|Call Trace|lockup|hung task|refcount_t|"
    r"recvmsg seq # bug|list_(add|del) corruption|rcu: INFO|KASAN|UBSAN"
)

_KNOWN_WARNING = re.compile(r"WARNING: .*\binet_sock_destruct\+0x")
_KNOWN_FRAME = re.compile(r"^ sk_psock_destroy\+0x")  # "? name" would be a guess of the unwinder
_TRACE = re.compile(r"^Call Trace:")
_END = re.compile(r"^---\[ end trace ")

_STILL = re.compile(
    r"soft lockup|rcu: INFO|NMI backtrace for cpu \d+$|blocked for more than|invoked oom-killer"
)
_OURS = re.compile(r"psock|sk_msg|skmsg|sock_?map|tcp_bpf|bpf_prog_|strp_")
_STACK_ENDS = re.compile(r"^ </TASK>")
_USERS = re.compile(r"^traps: ")  # a process did wrong, not the kernel


@dataclass(frozen=True, slots=True)
class Sorted:
    """Lines of the log: those that are a failure, the known warnings, a report without its end."""

    alarms: tuple[str, ...]
    known: tuple[str, ...]
    rest: tuple[str, ...]


def sort_out(lines: Sequence[str]) -> Sorted:
    """Tell alarms from the known warning; nothing but its own two alarming lines is forgiven."""
    alarms: list[str] = []
    known: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if _KNOWN_WARNING.search(line):
            end = next((i for i in range(at, len(lines)) if _END.match(lines[i])), None)
            if end is None:
                return Sorted(tuple(alarms), tuple(known), tuple(lines[at:]))
            trace = next((i for i in range(at, end) if _TRACE.match(lines[i])), end)
            if any(_KNOWN_FRAME.match(one) for one in lines[trace:end]):
                known.append(line)
                inside = [*lines[at + 1 : trace], *lines[trace + 1 : end]]
                alarms += [one for one in inside if ALARM.search(one)]
                at = end + 1
                continue
        if _STILL.search(line):
            end = next((i for i in range(at, len(lines)) if _STACK_ENDS.match(lines[i])), None)
            if end is None:
                return Sorted(tuple(alarms), tuple(known), tuple(lines[at:]))
            report = lines[at : end + 1]
            if not any(_OURS.search(one) for one in report):
                known.append(line)
                at = end + 1
                continue
        if ALARM.search(line) and not _USERS.match(line):
            alarms.append(line)
        at += 1
    return Sorted(tuple(alarms), tuple(known), ())


class KernelLog:
    """New lines of /dev/kmsg; none where it cannot be read. `known`: warnings that are no alarm."""

    def __init__(self) -> None:
        self.known: list[str] = []
        try:
            self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1

    def alarms(self) -> list[str]:
        """The alarming ones among the lines since the last call."""
        lines = self._read()
        found = sort_out(lines)
        for _ in range(50):  # the kernel may be amid a report
            if not found.rest:
                break
            time.sleep(0.01)
            lines += self._read()
            found = sort_out(lines)
        self.known += found.known
        return [*found.alarms, *(line for line in found.rest if ALARM.search(line))]

    def _read(self) -> list[str]:
        lines: list[str] = []
        while self._fd >= 0:
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten before we read them
                continue
            text = record.decode(errors="replace").partition(";")[2]
            lines.append(text.partition("\n")[0])
        return lines

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
