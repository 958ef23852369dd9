"""The supervisor loads; a worker without any capability starts, splices and releases."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import tempfile
import traceback
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from l7proxy.datapath import libbpf, sockmap
from l7proxy.datapath.sockmap import load_splicers
from l7proxy.errors import DatapathUnavailable

from .pairs import CLIENT, Pair, read_exactly

pytestmark = pytest.mark.kernel

NOBODY = 65534
PR_SET_NO_NEW_PRIVS = 38
CAP_NET_ADMIN, CAP_BPF = 12, 39  # include/uapi/linux/capability.h
LINUX_CAPABILITY_VERSION_3 = 0x20080522


def as_nobody(work: Callable[[], None]) -> str:
    """Run `work` in a child that gave up everything; as `in_child`."""

    def give_up() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        with open("/proc/self/status") as status:
            assert "CapEff:\t0000000000000000\n" in status.readlines()

    return in_child(work, give_up)


def keep(*capabilities: int) -> None:
    """Give up all other capabilities, for ever; the user stays (capset(2))."""
    held = sum(1 << capability for capability in capabilities)
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    sets = [held & 0xFFFFFFFF] * 2 + [0] + [held >> 32] * 2 + [0]
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capset(header, struct.pack("=6I", *sets)) == 0, os.strerror(ctypes.get_errno())


def in_child(work: Callable[[], None], give_up: Callable[[], None]) -> str:
    """Run `work` in a child, after `give_up`; returns its traceback, empty if all went well."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        problem = ""
        try:
            give_up()
            work()
        except BaseException:
            problem = traceback.format_exc()
        os.write(writer, problem.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        problem = stream.read()
    os.waitpid(pid, 0)
    return problem


def test_a_worker_needs_the_descriptors_and_no_capability():
    (splicer,) = load_splicers(1, 2)

    def worker() -> None:
        splicer.start()
        for _ in range(3):
            one = Pair(splicer).splice()
            one.client.sendall(b"hello")
            assert read_exactly(one.backend, 5) == b"hello"
            splicer.set_relayed(one.index, 5)
            one.client.sendall(b"again")
            assert one.near_client.recv(5) == b"again" if not wait(one) else True
            one.close_all()
        assert splicer.events() == []

    def wait(one: Pair) -> None:
        while one.counts(CLIENT)[1] != 5:
            pass

    assert as_nobody(worker) == ""
    assert splicer.totals().redirected_client == 15  # the supervisor sees it
    assert splicer.totals().passed == 15
    splicer.close()


@pytest.fixture
def readable(monkeypatch):
    """The object where anybody may read it: a checkout below /root is closed to `as_nobody`."""
    image = resources.files("l7proxy.datapath").joinpath("l7proxy.bpf.o").read_bytes()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "l7proxy.bpf.o").write_bytes(image)
        monkeypatch.setattr(sockmap.resources, "files", lambda _: place)
        yield


@pytest.mark.usefixtures("readable")
def test_loading_without_capabilities_says_which_are_missing():
    def worker() -> None:
        with pytest.raises(DatapathUnavailable) as refused:
            load_splicers(1, 2)
        assert "not permitted" in refused.value.reason
        for capability in ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "--cap-add BPF"):
            assert capability in refused.value.remedy

    assert as_nobody(worker) == ""


@pytest.mark.usefixtures("readable")
def test_what_the_verifier_refuses_is_told_for_both_programs():
    """Without CAP_PERFMON it refuses what it takes otherwise, and not by EPERM."""

    def worker() -> None:
        with pytest.raises(libbpf.ProgramRefused) as refused:
            load_splicers(1, 2)
        verdict, probe = refused.value.reason.split("; ")
        told = r"this kernel refuses the program \((EACCES|EINVAL)\) \[.+\]"
        assert re.fullmatch(f"verdict: {told}", verdict)
        assert re.fullmatch(f"verdict_probe: {told}", probe)
        assert "Linux 6.12 or later" in refused.value.remedy
        assert "CAP_PERFMON" in refused.value.remedy
        with pytest.raises(libbpf.ProgramRefused) as refused:
            load_splicers(1, 2, program="verdict_probe")
        assert refused.value.reason == probe

    assert in_child(worker, lambda: keep(CAP_NET_ADMIN, CAP_BPF)) == ""


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOMEM, errno.ENOSYS])
def test_what_no_other_program_would_change_is_told_once(code, monkeypatch):
    tried = []

    def refuse(bpf: libbpf.BpfObject) -> None:
        tried.append(bpf)
        raise libbpf.explain(code, "loading", libbpf.ProgramRefused)

    monkeypatch.setattr(libbpf.BpfObject, "load", refuse)
    with pytest.raises(DatapathUnavailable) as refused:
        load_splicers(1, 2)
    assert not isinstance(refused.value, libbpf.ProgramRefused)
    assert len(tried) == 1
    assert refused.value.remedy


def test_an_object_that_cannot_be_read_is_told_as_unavailable(tmp_path, monkeypatch):
    monkeypatch.setattr(sockmap.resources, "files", lambda _: tmp_path)
    with pytest.raises(DatapathUnavailable) as refused:
        load_splicers(1, 2)
    path = tmp_path / "l7proxy.bpf.o"
    assert refused.value.reason == f"cannot read {path}: No such file or directory"
    assert "install l7proxy anew" in refused.value.remedy


def test_a_missing_library_says_what_to_install(monkeypatch):
    libbpf.library.cache_clear()
    monkeypatch.setattr(libbpf, "SONAME", "libnothere.so.1")
    with pytest.raises(DatapathUnavailable) as refused:
        libbpf.library()
    assert "apt-get install libbpf1" in refused.value.remedy
    monkeypatch.undo()
    libbpf.library.cache_clear()


def test_the_log_of_libbpf_is_part_of_the_exception():
    with pytest.raises(DatapathUnavailable) as refused:
        libbpf.BpfObject(b"\x7fELF, but not really")
    assert "libbpf:" in refused.value.reason
