"""No process beside the supervisor holds what another one's connections depend on."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from proxy import Proxy, until

pytestmark = pytest.mark.kernel

POLICY = """\
listeners:
  web: {address: "127.0.0.1:0"}
routes:
  - {name: all, backendRefs: [{name: app}]}
backends:
  app: {endpoints: ["127.0.0.1:9"], healthCheck: {type: TCP, interval: 60s}}
"""


def maps(pid: int) -> set[int]:
    """The BPF maps that a process has a descriptor of."""
    found: set[int] = set()
    for one in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            for line in one.read_text().splitlines():
                if line.startswith("map_id:"):
                    found.add(int(line.split()[1]))
    return found


@pytest.mark.usefixtures("bounded")  # where that fails, l7proxy does not start with sockmap
def test_each_worker_has_its_own_maps_and_the_prober_none():
    with Proxy(POLICY, "sockmap", workers=2) as proxy:
        children = until(
            lambda: proxy.workers if len(proxy.workers) == 3 else None, "they are there"
        )
        until(lambda: sum(not maps(pid) for pid in children) == 1, "the prober holds none")
        one, other = (held for pid in children if (held := maps(pid)))
        assert not one & other
        assert one | other == maps(proxy.process.pid)
        proxy.stop()
