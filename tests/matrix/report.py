"""What one kernel's run came to: the guest's JSON lines in, a verdict and its reasons out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Outcome:
    """Gathered line by line; a guest that died early leaves what it said until then."""

    series: str
    version: str
    kernel: str = ""
    programs: dict[str, str] = field(default_factory=dict)
    selftest: dict[str, Any] = field(default_factory=dict)
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    pytest_exit: int | None = None
    interception_exit: int | None = None
    demo: dict[str, Any] = field(default_factory=dict)
    complaints: dict[str, str] = field(default_factory=dict)
    doing: str = "its boot"
    ended: bool = False
    seconds: float = 0.0

    def hear(self, lines: Iterable[str]) -> None:
        """Take in the guest's report."""
        for line in lines:
            try:
                told = json.loads(line)
            except ValueError:
                continue  # the machine stopped in mid-line; `ended` stays False
            self._hear(told)

    def _hear(self, told: dict[str, Any]) -> None:
        match told:
            case {"doing": doing}:
                self.doing = doing
            case {"complaints": lines}:
                for line in lines:
                    self.complaints.setdefault(line, self.doing)
            case {"kernel": kernel, "btf": btf}:
                self.kernel = kernel if btf else f"{kernel} without BTF"
            case {"programs": programs}:
                self.programs = programs
            case {"selftest": selftest}:
                self.selftest = selftest
            case {"test": test}:
                # A test that passed and whose teardown failed is told twice: the worse one counts.
                if self.tests.get(test, {}).get("outcome") not in ("failed", "error"):
                    self.tests[test] = told
            case {"pytest_exit": code}:
                self.pytest_exit = code
            case {"interception_exit": code}:
                self.interception_exit = code
            case {"demo": demo}:
                self.demo = demo
            case {"end": True}:
                self.ended = True

    @property
    def program(self) -> str:
        """The verdict program that l7proxy uses here: the first of the object's that loads."""
        return next((name for name, refusal in self.programs.items() if not refusal), "none")

    @property
    def proven(self) -> bool:
        """The self-test found the sockmap datapath exact on this kernel."""
        return bool(self.selftest.get("ok"))

    @property
    def refusal(self) -> str:
        """Why l7proxy will not use the sockmap datapath here; empty when it does, or crashed."""
        return "; ".join(f"{c['name']}: {c['detail']}" for c in self._checks() if not c["ok"])

    def _checks(self) -> list[dict[str, Any]]:
        return list(self.selftest.get("checks", ()))

    def counts(self) -> Counter[str]:
        """Outcome of tests -> how many."""
        return Counter(test["outcome"] for test in self.tests.values())

    @property
    def good(self) -> bool:
        """Spliced and all passed, or refused and relayed; and nothing in the kernel's log.

        What is intercepted passes either way.
        """
        if not self.ended or self.complaints or self.demo.get("exit") != 0:
            return False
        if self.interception_exit != 0:
            return False
        datapath = self.demo["datapath"].removeprefix("datapath ")
        if self.proven:
            passed = self.pytest_exit == 0 and self.counts()["passed"] > 0
            return passed and datapath.startswith("sockmap")
        return bool(self.refusal) and not datapath.startswith("sockmap")

    def line(self) -> str:
        """The verdict in one line."""
        counts = self.counts()
        shown = [name for name in ("failed", "error", "skipped") if counts[name]]
        if self.proven:
            state = f"sockmap by program {self.program}"
        else:
            state = f"refused: {self.refusal}" if self.refusal else "no answer of the self-test"
        parts = (
            f"{self.kernel or 'did not boot'} ({self.version}): {state}",
            ", ".join(f"{counts[name]} {name}" for name in ("passed", *shown)),
            f"interception {'ok' if self.interception_exit == 0 else 'FAILED'}",
            f"demo {'exact' if self.demo.get('exit') == 0 else 'FAILED'}",
            f"{len(self.complaints)} kernel complaints",
            f"{self.seconds:.0f} s",
        )
        return f"{self.series:>5}  {'ok  ' if self.good else 'FAIL'}  {'; '.join(parts)}"

    def details(self) -> Iterator[str]:
        """Whatever a reader wants to know beyond the line, above all what went wrong."""
        for name, refusal in self.programs.items():
            yield f"program {name}: {refusal or 'loads'}"
        for check in self._checks():
            failed = "" if check["ok"] else "FAILED: "
            yield f"self-test, {check['name']}: {failed}{check['detail']}"
        if crash := self.selftest.get("crash"):
            yield f"self-test without an answer: {crash}"
        for name, test in self.tests.items():
            if test["outcome"] not in ("passed", "skipped"):
                yield f"{test['outcome']} {name}: {test['why']}"
        skips = Counter(t["why"] for t in self.tests.values() if t["outcome"] == "skipped")
        for why, count in skips.items():
            yield f"{count} skipped: {why.removeprefix('Skipped: ')}"
        if datapath := self.demo.get("datapath"):
            yield f"demo: {datapath}"
        if self.demo.get("exit"):
            yield f"demo ended with {self.demo['exit']}: {self.demo['tail']}"
        for line, doing in self.complaints.items():
            yield f"kernel log, in {doing}: {line}"
        if not self.ended:
            yield f"the guest stopped in {self.doing}"
