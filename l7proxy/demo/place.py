"""Where the demo runs: the policy as it stands if its addresses are free, else a copy that fits."""

from __future__ import annotations

import errno
import os
import re
import socket
from pathlib import Path

from l7proxy import config
from l7proxy.errors import StartupError
from l7proxy.model import Address, Policy


def settle(policy: Policy, path: Path, scratch: Path) -> tuple[Policy, Path, list[str]]:
    """The policy to run, its file, and a sentence for each address that had to change.

    Raises StartupError when an address is taken and cannot be replaced in the text of the policy.
    """
    text = path.read_text()
    notes = []
    for address in addresses(policy):
        problem = _problem(address)
        if not problem:
            continue
        free = _free()
        # The whole address, not the end or the beginning of a longer one.
        text, count = re.subn(rf"(?<![\w.:]){re.escape(str(address))}(?!\d)", str(free), text)
        if not count:
            raise StartupError(f"{address}: {os.strerror(problem)}; {path} needs a free one")
        notes.append(f"{address}: {os.strerror(problem).lower()}; {free} instead")
    if not notes:
        return policy, path, []
    copy = scratch / path.name
    copy.write_text(text)
    return config.load(str(copy)), copy, notes


def addresses(policy: Policy) -> list[Address]:
    """Every address of the policy that this machine has to listen on for the demo, once."""
    found = [listener.address for listener in policy.listeners.values()]
    endpoints = [end.address for backend in policy.backends.values() for end in backend.endpoints]
    return [one for one in dict.fromkeys([*found, *endpoints]) if isinstance(one, Address)]


def _problem(address: Address) -> int:
    """The errno of binding to `address`, 0 if it is free."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
            probe.listen(1)  # two sockets may be bound with SO_REUSEADDR, one of them may listen
    except OSError as error:
        return error.errno or errno.EADDRNOTAVAIL
    return 0


def _free() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return Address("127.0.0.1", probe.getsockname()[1])
