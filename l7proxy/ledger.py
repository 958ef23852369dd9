"""The byte accounts of one direction of a spliced pair. Pure: numbers in, answers out.

Facts about the kernel, and what follows from each:

- The verdict program counts a byte as *redirected* when it decides, but a kernel worker sends it
  later (`sk_psock_backlog`). So "redirected" does not mean "written": user space may write to the
  destination, or pass the FIN on, only when the destination's write queue has taken every
  redirected byte. Else the two writers interleave, or a stream ends early and looks complete.
- What the program could not redirect it *passed*: those bytes wait in the source socket, and as
  long as `passed != relayed` the program redirects nothing more. So while user space relays, the
  redirected count stands still, and the order of the two ways is exact.
- `tcpi_bytes_received` counts the FIN as one byte. A direction is complete when all but that one
  have been redirected or passed.
- The kernel's counters start at zero with the splice; TCP's start with the connection. What user
  space moved before the splice is therefore kept here, as `early_in` and `early_out`.

The identities, for the direction from socket S to socket D:

    received(S) - fin            == early_in  + redirected + passed       every byte was judged
    queued(D)                    == early_out + redirected + written      every byte was written
    passed == written == relayed                                          user space has caught up
"""

from __future__ import annotations

from enum import Enum


class Step(Enum):
    """What is to be done next for a direction; the answer of `Ledger.step`."""

    FLOW = "flow"  # nothing: the kernel moves the bytes
    RELAY = "relay"  # take what was passed and write it
    WAIT = "wait"  # bytes are on their way inside the kernel: look again shortly
    FINISH = "finish"  # the ledger balances and the FIN was seen: pass it on


class Ledger:
    """The accounts of one direction. Counts are bytes since the connection began or the splice.

    `early_in`:  taken from the source by user space before the splice
    `early_out`: written to the destination by user space before the splice
    `redirected`, `passed`: the kernel's counters, as last read (monotonic)
    `written`:   passed bytes that user space has written to the destination
    """

    __slots__ = ("early_in", "early_out", "passed", "redirected", "written")

    def __init__(self, early_in: int = 0, early_out: int = 0) -> None:
        self.early_in = early_in
        self.early_out = early_out
        self.redirected = 0
        self.passed = 0
        self.written = 0

    def read_kernel(self, redirected: int, passed: int) -> None:
        """Take over the kernel's counters. Raises ValueError if one ran backwards."""
        if redirected < self.redirected or passed < self.passed:
            raise ValueError("a counter of the kernel ran backwards")
        self.redirected = redirected
        self.passed = passed

    @property
    def caught_up(self) -> bool:
        """Whether everything that was passed has been written: the kernel may redirect again."""
        return self.passed == self.written

    @property
    def expected_in_queue(self) -> int:
        """What the destination's write queue must have taken for user space to write to it."""
        return self.early_out + self.redirected + self.written

    @property
    def total(self) -> int:
        """Bytes that have gone from the source to the destination's socket, early ones included."""
        return self.early_in + self.redirected + self.written

    def may_write(self, queued: int) -> bool:
        """Whether user space may write: every redirected byte is in the write queue.

        `queued` is the progress of the destination's write queue since its connection began:
        `tcpi_bytes_sent - tcpi_bytes_retrans + tcpi_notsent_bytes`. It never over-estimates.
        """
        return queued == self.expected_in_queue

    def judged(self, received: int) -> bool:
        """Whether the verdict program has seen all of a direction whose FIN has arrived.

        `received` is `tcpi_bytes_received` of the source, which counts that FIN as one.
        """
        return received - 1 == self.early_in + self.redirected + self.passed

    def step(self, *, fin: bool, received: int, queued: int) -> Step:
        """What to do next, from the two TCP counters (see `judged` and `may_write`).

        `fin`: the source's FIN has arrived. `received` is looked at only then.
        """
        if not self.caught_up:
            return Step.RELAY if self.may_write(queued) else Step.WAIT
        if not fin:
            return Step.FLOW
        if self.judged(received) and self.may_write(queued):
            return Step.FINISH
        return Step.WAIT
