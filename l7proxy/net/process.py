"""Forking out of a process that runs an event loop.

The facts, and what follows:

- A child inherits the loop's wake-up descriptor: a signal that reaches it before its handlers are
  reset would be written into the *parent's* loop. So every signal is blocked across the fork, and
  unblocked in the child once nothing of the parent's is left.
- A child inherits every descriptor, and what it holds stays open: a control socket whose other end
  it should see close, a client of the admin server that waits for its end. So a child closes all
  but what it is told to keep.
- Objects of the parent's that own such a descriptor must not be collected in the child, where the
  number may already be another socket's. So the garbage collector is frozen there, and the child
  never returns into the parent's frames: it leaves by `os._exit`.
- Ctrl-C goes to the whole foreground group, an init system's SIGTERM to the whole control group.
  A child that took them for its own would be told twice, once by them and once by its parent, and
  twice means "reset". In a child both stay blocked; its parent says `STOP`, a number that nobody
  else thinks of. What else is for the parent (SIGHUP, SIGUSR1, SIGUSR2) would end
  a child: likewise.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from l7proxy.errors import L7ProxyError

log = logging.getLogger(__name__)

STOP = signal.SIGRTMIN  # the parent's word to a child: end in order; a second time: at once
_PARENTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
EXIT_CRASHED = 70  # of a child whose code raised (sysexits.h: EX_SOFTWARE)


def fork(body: Callable[[], int], keep: frozenset[int]) -> int:
    """Run `body` in a child that holds the descriptors in `keep` only; the child's process id.

    The child exits with what `body` returns, or, logged, with `EXIT_CRASHED` if it raises. Raises
    OSError when there can be no child.
    """
    with _signals_blocked():
        pid = os.fork()
        if pid == 0:
            _be_child(body, keep)  # never returns
    return pid


def _be_child(body: Callable[[], int], keep: frozenset[int]) -> None:
    code = EXIT_CRASHED
    try:
        gc.freeze()
        _reset_signals()
        for fd in descriptors() - keep:
            close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, _PARENTS)
        code = body()
    except L7ProxyError as error:
        log.error("process %d cannot run: %s", os.getpid(), error)
    except BaseException:
        log.exception("process %d crashed", os.getpid())
    finally:
        os._exit(code)


def descriptors() -> frozenset[int]:
    """The open descriptors of this process."""
    found = map(int, os.listdir("/proc/self/fd"))
    return frozenset(fd for fd in found if _is_open(fd))  # the one that read the list is not


def close(fd: int) -> None:
    """Close a descriptor; it is no error if it is closed already."""
    try:
        os.close(fd)
    except OSError:
        pass


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reset_signals() -> None:
    """Default for what this process handles; what was ignored (SIGPIPE) stays ignored."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
