"""`l7proxy doctor`: what of this machine lets l7proxy splice, or keeps it from it.

Each check asks the kernel, never its version, and says what to do. Only what splicing needs can
fail; what merely limits how much l7proxy can carry is a warning.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from l7proxy import __version__
from l7proxy.doctor.capacity import capacity
from l7proxy.doctor.checks import Check, State
from l7proxy.doctor.splicing import Proof, prove_kernel, prove_sockmap, requirements, self_test
from l7proxy.net import privileges

__all__ = ["Check", "Diagnosis", "State", "diagnose", "main", "prove_sockmap"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks; `can_splice` is what `l7proxy run --datapath auto` would find."""

    can_splice: bool
    checks: tuple[Check, ...]

    def as_json(self) -> str:
        """One object: version, can_splice, checks [{name, state, value, advice}]."""
        checks = [asdict(check) for check in self.checks]
        found = {"version": __version__, "can_splice": self.can_splice, "checks": checks}
        return json.dumps(found, indent=2)

    def as_text(self) -> str:
        """Aligned lines for people, with the verdict at the end."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{check.state:<4}  {check.name:<{width}}  {check.value}".rstrip())
            if check.advice:
                lines.append(f"{'':<4}  {'':<{width}}  -> {check.advice}")
        lines.append("")
        if self.can_splice:
            lines.append("l7proxy can splice here: the kernel moves the bytes.")
        else:
            lines.append(
                "l7proxy cannot splice here: it works, and relays the bytes in user space."
            )
        return "\n".join(lines)


def diagnose(root: str = "/", prove: Callable[[], Proof] = prove_kernel) -> Diagnosis:
    """Run every check. `root` is where /proc and /sys are found, `prove` the self-test."""
    where = Path(root)
    proof = tuple(self_test(prove))
    can_splice = all(check.state is not State.FAIL for check in proof)
    return Diagnosis(can_splice, (*requirements(where), *proof, *capacity(where)))


def main(as_json: bool, write: Callable[[str], object] = print) -> int:
    """Print the diagnosis; 0 when l7proxy can splice, else 1."""
    privileges.use_permitted()
    found = diagnose()
    write(found.as_json() if as_json else found.as_text())
    return 0 if found.can_splice else 1
