"""The pod is made once. Without root, or without nftables, nothing here can be tried."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from pod import Pod


@pytest.fixture(scope="session")
def pod() -> Iterator[Pod]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces and nftables need root")
    for program, package in (("nft", "nftables"), ("ip", "iproute2")):
        if shutil.which(program) is None:
            pytest.skip(f"`{program}` is missing: apt-get install {package}")
    with Pod() as pod:
        yield pod
