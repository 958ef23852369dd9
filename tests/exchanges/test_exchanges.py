"""Random exchanges through l7proxy on every datapath, each against its model.

L7PROXY_EXCHANGES is how many on each (`make exchanges`: 10,000), L7PROXY_SEED repeats a run.
"""

from __future__ import annotations

import asyncio
import os
import random
import time

import pytest
from proxy import DATAPATHS, Proxy

from .client import Target
from .judge import perform
from .origin import Origins
from .plan import FEATURES, KIB, MOST

pytestmark = [pytest.mark.net, pytest.mark.slow]

COUNT = int(os.environ.get("L7PROXY_EXCHANGES", "150"))
SEED = int(os.environ.get("L7PROXY_SEED", "0")) or random.SystemRandom().getrandbits(32)
POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0}}
routes:
  - {{name: a, splice: request, matches: [{{path: /a}}], backendRefs: [{{name: a}}]}}
  - {{name: b, splice: request, matches: [{{path: /b}}], backendRefs: [{{name: b}}]}}
  - {{name: c, splice: request, matches: [{{path: /c}}], backendRefs: [{{name: c}}]}}
backends:
  a: {{endpoints: ["127.0.0.1:{a}"]}}
  b: {{endpoints: ["127.0.0.1:{b}"]}}
  c: {{endpoints: ["127.0.0.1:{c}"]}}
"""


@pytest.mark.parametrize("datapath", DATAPATHS)
def test_each_exchange_is_as_its_model_says(datapath: str) -> None:
    print(f"L7PROXY_SEED={SEED}")
    began = time.monotonic()
    most = MOST if COUNT > 1000 else 256 * KIB
    with (
        Origins(SEED, most, FEATURES) as origins,
        Proxy(POLICY.format(**origins.ports), datapath, workers=2) as proxy,
    ):
        target = Target(proxy.address("web"), SEED, most, FEATURES)
        report = asyncio.run(perform(target, origins, COUNT))
        print(f"{report} in {time.monotonic() - began:.0f} s")
        assert not report.failures, f"L7PROXY_SEED={SEED}: {report.failures[:5]}"
        assert report.ends["done"] > COUNT * 0.7, report
        # kept and shared: far fewer connections than exchanges
        assert sum(report.accepted.values()) < report.exchanges * 0.6, report
        stats = proxy.settled()
        assert stats["errors"]["internal"] == 0
        assert stats["workers"]["restarts"] == 0
        proxy.stop()
