"""`nft`: the program that talks to the kernel about rules."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import Any

from l7proxy.sidecar import SidecarError
from l7proxy.sidecar.ruleset import TABLE

_SECONDS = 30.0
_PLACES = "/usr/sbin:/sbin:/usr/bin:/bin"  # of programs for root, which a user's PATH often lacks
_HINTS = (
    ("Operation not permitted", "run it with sudo, or with CAP_NET_ADMIN"),
    (
        "No such file or directory",
        "the kernel has no part of what these rules need: CONFIG_NFT_REDIR, CONFIG_NFT_NAT,"
        " CONFIG_NFT_FIB_INET, and for TPROXY CONFIG_NFT_TPROXY and CONFIG_NFT_SOCKET",
    ),
    ("Operation not supported", "this kernel does not know what these rules need"),
)


def apply(ruleset: str, *, check: bool = False) -> None:
    """Put a ruleset in place, all of it or nothing; `check`: only see whether it could be.

    Raises SidecarError.
    """
    _run(["--check"] if check else [], "--file", "-", given=ruleset)


@dataclass(slots=True)
class Chain:
    """What is in place of one chain."""

    rules: int = 0
    packets: int = 0  # that its counters have counted


@dataclass(slots=True)
class Found:
    """Our table as it is. `comments` are those of rules, in their order."""

    chains: dict[str, Chain] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)


def find() -> Found | None:
    """What is in place; None when there is nothing. Raises SidecarError."""
    listed = json.loads(_run(["--json"], "list", "tables"))["nftables"]
    family, name = TABLE.split()
    tables = [one["table"] for one in listed if "table" in one]
    if not any((one["family"], one["name"]) == (family, name) for one in tables):
        return None
    found = Found()
    for one in json.loads(_run(["--json"], "list", "table", family, name))["nftables"]:
        if "chain" in one:
            found.chains[one["chain"]["name"]] = Chain()
        elif "rule" in one:
            _take(found, one["rule"])
    return found


def _take(found: Found, rule: dict[str, Any]) -> None:
    chain = found.chains[rule["chain"]]
    chain.rules += 1
    if rule.get("comment"):
        found.comments.append(rule["comment"])
    for part in rule["expr"]:
        if isinstance(part, dict) and isinstance(part.get("counter"), dict):
            chain.packets += part["counter"]["packets"]


def _run(options: list[str], *arguments: str, given: str | None = None) -> str:
    program = shutil.which("nft") or shutil.which("nft", path=_PLACES)
    if program is None:
        raise SidecarError(
            "`nft` is missing: apt-get install nftables (dnf install nftables, apk add nftables)"
        )
    try:
        done = subprocess.run(
            [program, *options, *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SidecarError(f"{program}: {error}") from error
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        hint = next((hint for words, hint in _HINTS if words in said), "")
        raise SidecarError(f"nft: {said}{f'{chr(10)}{hint}' if hint else ''}")
    return done.stdout
