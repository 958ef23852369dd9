"""A policy on its way to the processes that use it."""

from __future__ import annotations

import gc
import os
from dataclasses import replace

import pytest

from l7proxy import config
from l7proxy.model import Policy
from l7proxy.net import bundle
from l7proxy.net.channel import ChannelBroken

TEXT = """\
listeners:
  web: {address: 127.0.0.1:8080, limits: {connections: 7}}
  admin: {address: 127.0.0.1:8081}
routes:
  - {name: api, hostnames: [api.example.com], matches: [{path: /v1}], backendRefs: [{name: app}]}
  - {name: rest, backendRefs: [{name: app}]}
backends:
  app: {endpoints: [127.0.0.1:9001, 127.0.0.1:9002]}
"""


def policy() -> Policy:
    found = config.check_text(TEXT).policy
    assert found is not None
    return found


def test_what_is_unpacked_is_what_was_packed() -> None:
    fd = bundle.pack(policy())
    assert bundle.unpack(fd) == policy()
    assert bundle.unpack(fd) == policy(), "it can be read again: by the next worker"
    assert bundle.backends(fd) == policy().backends
    os.close(fd)


def test_the_manifest_is_what_the_supervisor_needs() -> None:
    fd = bundle.pack(policy())
    found = bundle.manifest(fd)
    assert [listener.name for listener in found.listeners] == ["web", "admin"]
    assert found.listeners[0].limits.connections == 7
    assert (found.routes, found.backends, found.probing) == (2, 1, False)
    os.close(fd)


def test_many_routes_come_in_small_frames() -> None:
    one = policy()
    many = replace(
        one, routes=tuple(replace(one.routes[0], name=f"r{number}") for number in range(1000))
    )
    fd = bundle.pack(many)
    assert len(list(bundle.unpacking(fd))) == 1 + 1000 // bundle.BATCH
    assert bundle.unpack(fd) == many
    os.close(fd)


def test_half_read_it_holds_nothing_for_ever() -> None:
    before = len(os.listdir("/proc/self/fd"))
    fd = bundle.pack(policy())
    steps = bundle.unpacking(fd)
    next(steps)
    os.close(fd)
    del steps
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("read", [bundle.manifest, bundle.unpack, bundle.backends])
def test_what_could_still_be_changed_is_not_unpickled(read: object) -> None:
    fd = os.memfd_create("policy", os.MFD_ALLOW_SEALING)
    os.write(fd, b"\1" + bytes(7) + b".")
    assert callable(read)
    with pytest.raises(ChannelBroken, match="not sealed"):
        read(fd)
    os.close(fd)
