"""A checked policy on its way to the processes that use it: one sealed memfd for all of them.

It is made by the process that has checked the policy, and read by workers, which build from it a
few milliseconds at a time: so it is a row of frames, each with a few hundred microseconds' worth of
objects. The supervisor reads the first frame only, `Manifest`: routes are nothing to it.

Frames are pickles. Who reads one runs what its writer wants, and that is no new power here: the
writer is the supervisor's own child, with the supervisor's rights, and has read nothing but the
policy, which is trusted. Never is one read that came from a worker; a worker sends none.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from l7proxy.model import AccessLogRules, Backend, Listener, NameAddress, Policy, Route
from l7proxy.net import channel

BATCH = 25  # routes, or backends, in a frame

_LENGTH = struct.Struct("<Q")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the supervisor has to know of a policy."""

    source: str
    listeners: tuple[Listener, ...]
    routes: int
    backends: int
    names: frozenset[str]  # DNS names of endpoints
    probing: bool  # it has such names, or health checks
    access_log: AccessLogRules


def pack(policy: Policy) -> int:
    """A sealed memfd with the policy. Raises OSError."""
    backends = tuple(policy.backends.values())
    names = frozenset(
        one.address.name
        for backend in backends
        for one in backend.endpoints
        if isinstance(one.address, NameAddress)
    )
    manifest = Manifest(
        policy.source,
        tuple(policy.listeners.values()),
        len(policy.routes),
        len(backends),
        names,
        bool(names) or any(backend.health is not None for backend in backends),
        policy.access_log,
    )
    frames = [manifest, *_batches(backends), *_batches(policy.routes)]
    written = [pickle.dumps(frame, pickle.HIGHEST_PROTOCOL) for frame in frames]
    return channel.seal("policy", b"".join(_LENGTH.pack(len(one)) + one for one in written))


def _batches(items: tuple[_T, ...]) -> Iterator[tuple[_T, ...]]:
    for first in range(0, len(items), BATCH):
        yield items[first : first + BATCH]


def manifest(fd: int) -> Manifest:
    """The first frame. Raises ChannelBroken when it is none of `pack`."""
    channel.check_sealed(fd)
    size = _LENGTH.unpack(os.pread(fd, _LENGTH.size, 0))[0]
    found = pickle.loads(os.pread(fd, size, _LENGTH.size))
    assert isinstance(found, Manifest)
    return found


def backends(fd: int) -> dict[str, Backend]:
    """The backend groups of a packed policy, and nothing else of it."""
    found: dict[str, Backend] = {}
    frames = _frames(fd)
    wanted = next(frames).backends
    while len(found) < wanted:
        found.update((backend.name, backend) for backend in next(frames))
    return found


def unpack(fd: int) -> Policy:
    """The policy, at once."""
    steps = unpacking(fd)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: Policy = done.value
            return found


def unpacking(fd: int) -> Generator[None, None, Policy]:
    """The same a frame at a time; the policy is the generator's value."""
    frames = _frames(fd)
    first: Manifest = next(frames)
    found: dict[str, Backend] = {}
    routes: list[Route] = []
    for frame in frames:
        if len(found) < first.backends:
            found.update((backend.name, backend) for backend in frame)
        else:
            routes.extend(frame)
        yield
    return Policy(
        {listener.name: listener for listener in first.listeners},
        tuple(routes),
        found,
        first.source,
        first.access_log,
    )


def _frames(fd: int) -> Iterator[Any]:
    channel.check_sealed(fd)
    # private: before 6.7 a sealed memfd cannot be mapped shared, not even for reading
    with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as data:
        at = 0
        while at < len(data):
            (size,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            yield pickle.loads(data[at : at + size])
            at += size
