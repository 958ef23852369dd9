"""The arithmetic of the readings: attribution of CPU time, memory from /proc's texts."""

from __future__ import annotations

import os

import pytest

from loadtest import memory, meter


def _reading(
    at: float, idle: float, used: dict[int, tuple[int, bool, float, float]]
) -> meter.Reading:
    fields = (0.0, 0.0, 0.0, idle, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    processes = {pid: meter.Process(*given) for pid, given in used.items()}
    return meter.Reading(at, fields, processes)


def test_stat_line_with_a_hostile_name() -> None:
    line = "42 (a) b ( c) S 7 42 42 0 -1 2097216 0 0 0 0 150 50 30 20 20 0 1 0 9 0 0"
    found = meter._process(line)
    wanted = meter.Process(parent=7, kernel=True, used=200 / meter.TICK, reaped=50 / meter.TICK)
    assert found == wanted


def test_attribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "PROCESSORS", 2)
    # pid: parent, kernel thread, used, reaped
    before = _reading(
        100.0,
        50.0,
        {
            10: (1, False, 1.0, 0.0),  # client
            20: (1, False, 2.0, 0.0),  # origin
            30: (1, False, 3.0, 0.0),  # proxy
            2: (0, True, 4.0, 0.0),  # kworker
            50: (1, False, 5.0, 1.0),  # somebody else's shell
            51: (50, False, 0.5, 0.2),  # its compiler, gone at the second reading
        },
    )
    after = _reading(
        102.0,
        50.5,
        {
            10: (1, False, 1.5, 0.0),
            20: (1, False, 2.6, 0.0),
            30: (1, False, 3.4, 0.0),
            31: (30, False, 0.3, 0.0),  # a worker born in between
            2: (0, True, 4.7, 0.0),
            50: (1, False, 5.1, 2.0),  # reaped 1.0: 0.7 of it older than the first reading
        },
    )
    got = meter.usage(before, after, client=[10], origin=[20], proxy=[30], baseline=0.05)
    assert got.client == pytest.approx(0.5)
    assert got.origin == pytest.approx(0.6)
    assert got.proxy == pytest.approx(0.7)
    assert got.kthreads == pytest.approx(0.7)
    assert got.foreign == pytest.approx(0.1 + 0.3)
    assert got.machine == pytest.approx(2 * 2 - 0.5 - 0.4 - 0.05 * 2)
    assert got.rest == pytest.approx(got.machine - 1.1)


def test_own_sees_its_tree_and_its_work() -> None:
    cpu, switches, pids = meter.own([os.getpid()])
    total = sum(n * n for n in range(300_000))
    later, later_switches, _ = meter.own([os.getpid()])
    assert total
    assert os.getpid() in pids
    assert 0.001 < later - cpu < 5
    assert later_switches >= switches > 0
    assert meter.own([]) == (0.0, 0, frozenset())


SOCKSTAT = """\
sockets: used 180
TCP: inuse 7 orphan 0 tw 3 alloc 24 mem 19
UDP: inuse 1 mem 2
"""

MEMINFO = """\
MemTotal:       1000000 kB
MemFree:         600000 kB
MemAvailable:    800000 kB
Buffers:          10000 kB
Cached:          150000 kB
SReclaimable:     20000 kB
SUnreclaim:       30000 kB
HugePages_Total:       0
"""


def test_memory_from_its_texts() -> None:
    assert memory.tcp_pages(SOCKSTAT) == 19
    slab, machine = memory.meminfo(MEMINFO)
    assert slab == 30_000
    assert machine == 1_000_000 - 600_000 - 10_000 - 150_000 - 20_000


def test_pss_of_a_process_and_of_one_that_ended() -> None:
    assert memory.pss([os.getpid()]) > 1000
    assert memory.pss([2**22 + 1]) == 0.0


def test_the_recorder_takes_points_and_tells_peaks() -> None:
    sizes = iter([100.0, 300.0, 200.0])
    with memory.Recorder(lambda: next(sizes, 200.0), interval=0.01) as recorder:
        while len(recorder.series) < 4:
            pass
    assert [point["pss_kib"] for point in recorder.series[:4]] == [100.0, 300.0, 200.0, 200.0]
    assert recorder.peak("pss_kib") == 300.0
    times = [point["t"] for point in recorder.series]
    assert times == sorted(times)


def test_a_reading_that_fails_is_told() -> None:
    def fail() -> float:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"), memory.Recorder(fail) as recorder:
        recorder._thread.join(5)
