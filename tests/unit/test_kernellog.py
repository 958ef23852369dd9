"""Which lines of the kernel's log fail a run."""

from __future__ import annotations

import pytest
from kernellog import KernelLog, sort_out

# Linux 6.18.44, a stress run; registers left out.
RESIDUE = """\
------------[ cut here ]------------
WARNING: CPU: 1 PID: 28576 at net/ipv4/af_inet.c:157 inet_sock_destruct+0x174/0x1a0
CPU: 1 UID: 0 PID: 28576 Comm: kworker/1:1 Not tainted 6.18.44-fc-v669 #1 PREEMPT(none)
Workqueue: events sk_psock_destroy
RIP: 0010:inet_sock_destruct+0x174/0x1a0
Call Trace:
 <TASK>
 __sk_destruct+0x2b/0x1d0
 sk_psock_destroy+0x316/0x380
 process_one_work+0x18c/0x350
 worker_thread+0x192/0x310
 ? __pfx_worker_thread+0x10/0x10
 kthread+0xf8/0x220
 ? __pfx_kthread+0x10/0x10
 ? _raw_spin_unlock+0xa/0x30
 ? finish_task_switch.isra.0+0x8d/0x2b0
 ? __pfx_kthread+0x10/0x10
 ? __pfx_kthread+0x10/0x10
 ret_from_fork+0x151/0x170
 ? __pfx_kthread+0x10/0x10
 ret_from_fork_asm+0x1a/0x30
 </TASK>
---[ end trace 0000000000000000 ]---
""".splitlines()
WARNING = RESIDUE[1]


def instead(old: str, new: str) -> list[str]:
    """The report with one thing changed."""
    changed = [line.replace(old, new) for line in RESIDUE]
    assert changed != RESIDUE
    return changed


def test_the_residue_on_freeing_a_socket_is_known():
    assert "inet_sock_destruct" in WARNING
    lines = ["docker0: port 1 entered disabled state", *RESIDUE, "eth0: link up"]
    found = sort_out(lines)
    assert (found.alarms, found.known, found.rest) == ((), (WARNING,), ())


OTHERS = {
    "another function warns": instead("inet_sock_destruct", "inet_csk_destroy_sock"),
    "another way to it": instead("sk_psock_destroy+", "tcp_close+"),
    "only a guess of the unwinder": instead(" sk_psock_destroy+", " ? sk_psock_destroy+"),
    "a bug, not a warning": instead("WARNING:", "BUG:"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_like_it_but_another_thing_fails(case):
    found = sort_out(OTHERS[case])
    assert found.known == ()
    assert OTHERS[case][1] in found.alarms


@pytest.mark.parametrize("at", [0, 2, 6, len(RESIDUE) - 1, len(RESIDUE)])
@pytest.mark.parametrize(
    "line",
    [
        "WARNING: CPU: 0 PID: 1 at net/core/sock.c:1 sk_stream_kill_queues+0x1/0x2",
        "BUG: KASAN: slab-use-after-free in tcp_read_skb+0x1/0x2",
        "TCP: recvmsg seq # bug: copied 1, seq 2, rcvnxt 3, fl 0",
    ],
)
def test_another_alarm_before_amid_or_after_it_fails(at, line):
    found = sort_out([*RESIDUE[:at], line, *RESIDUE[at:]])
    assert found.alarms == (line,)
    assert found.known == (WARNING,)


class Told(KernelLog):
    """A log that tells these batches of lines, one at each reading."""

    def __init__(self, *batches: list[str]) -> None:
        super().__init__()
        self._batches = list(batches)

    def _read(self) -> list[str]:
        return self._batches.pop(0) if self._batches else []


def test_a_report_that_comes_in_two_readings_is_one():
    log = Told(RESIDUE[:4], RESIDUE[4:9], RESIDUE[9:], ["BUG: soft lockup"])
    assert log.alarms() == []
    assert log.known == [WARNING]
    assert log.alarms() == ["BUG: soft lockup"]
    log.close()


def test_a_report_that_never_ends_fails():
    log = Told(RESIDUE[:-2])
    assert log.alarms() == [WARNING, "Call Trace:"]
    assert log.known == []
    log.close()


LOCKUP = """\
watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [python:4711]
CPU: 1 UID: 0 PID: 4711 Comm: python Not tainted 6.18.44-fc-v669 #1 PREEMPT(none)
RIP: 0010:finish_task_switch.isra.0+0x8d/0x2b0
Call Trace:
 <TASK>
 __schedule+0x2b/0x1d0
 ep_poll+0x316/0x380
 do_epoll_wait+0x18c/0x350
 </TASK>
""".splitlines()


@pytest.mark.parametrize(
    "first",
    [
        LOCKUP[0],
        "rcu: INFO: rcu_sched self-detected stall on CPU",
        "NMI backtrace for cpu 0",
        "INFO: task chromium:811 blocked for more than 122 seconds.",
        "chromium invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE), order=0",
    ],
)
def test_a_machine_that_stands_still_fails_nobody(first):
    lines = ["eth0: link up", first, *LOCKUP[1:], "eth0: link down"]
    found = sort_out(lines)
    assert (found.alarms, found.known, found.rest) == ((), (first,), ())


@pytest.mark.parametrize(
    "frame", ["sk_psock_backlog+0x1/0x2", "bpf_prog_1234_verdict+0x1/0x2", "tcp_bpf_sendmsg+0x1/2"]
)
def test_a_lockup_in_what_we_have_the_kernel_do_fails(frame):
    found = sort_out([line.replace("ep_poll+0x316/0x380", frame) for line in LOCKUP])
    assert found.known == ()
    assert LOCKUP[0] in found.alarms


def test_another_alarm_behind_a_lockup_fails():
    found = sort_out([*LOCKUP, *OTHERS["another way to it"]])
    assert WARNING in found.alarms


def test_a_process_that_did_wrong_fails_nobody():
    text = "[811] general protection fault ip:7f2 sp:7ffd error:0 in libc.so.6[7f3,1]"
    assert sort_out([f"traps: chromium{text}"]).alarms == ()
    kernel = "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1]"
    assert sort_out([kernel]).alarms == (kernel,)
