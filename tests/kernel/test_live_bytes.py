"""Bytes by route and endpoint are counted while connections go on, once, whoever counts them."""

from __future__ import annotations

import pytest
from proxy import until
from scrapes import Scrape, no_way_back

from kernel.test_worker_death import GREETING, House, opened

pytestmark = [pytest.mark.kernel, pytest.mark.net]

BLOCK = bytes(range(250)) * 40
LABELS = ("listener", "raw", "route", "all", "backend", "app")


def counted(house: House, way: str) -> tuple[float, float]:
    """What the series of the route say of both directions."""
    scrape, name = Scrape(house.proxy), "l7proxy_connection_bytes_total"
    up, down = (
        scrape[name, *LABELS, "direction", direction, "way", way]
        for direction in ("from_client", "from_backend")
    )
    return up, down


def test_a_live_connection_counts_and_so_does_one_that_was_adopted() -> None:
    with opened() as house:
        client, backend = house.pair()
        size = len(BLOCK)
        for round_ in (1, 2):
            for _ in range(3):
                client.send(BLOCK)
                assert backend.read(size) == BLOCK
            backend.send(BLOCK)
            assert client.read(size) == BLOCK
            moved = (3.0 * size * round_, float(size * round_))
            until(lambda moved=moved: counted(house, "kernel") == moved, "they are counted")
            if round_ == 1:
                before = Scrape(house.proxy)
                house.kill()
        assert counted(house, "relay") == (len(GREETING), len(GREETING))
        client.send(BLOCK)
        assert backend.read(size) == BLOCK
        client.close()
        backend.close()
        house.proxy.settled()
        assert counted(house, "kernel") == (7.0 * size, 2.0 * size)
        assert counted(house, "relay") == (len(GREETING), len(GREETING))
        no_way_back(before, Scrape(house.proxy))
        house.proxy.stop()
