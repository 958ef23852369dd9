"""Messages to a syslog daemon, as one of this machine and as one of another reads them."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path

import pytest

from l7proxy.errors import Reason, StartupError
from l7proxy.model import AccessLogRules
from l7proxy.telemetry import syslog
from l7proxy.telemetry.accesslog import AccessLog, Record
from l7proxy.telemetry.syslog import Destination, Syslog, parse


def record(number: int = 0, **fields: object) -> Record:
    return Record(1.0, 1, "web", "192.0.2.1:5000", bytes_in=number, **fields)  # type: ignore[arg-type]


def daemon(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.settimeout(60)
    return sock


def log_to(where: str) -> AccessLog:
    log = AccessLog.open(where)
    log.follow(AccessLogRules(format="%h %[bytes_in] %[reason]"))
    return log


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("syslog", Destination("/dev/log", 16 * 1)),
        ("syslog:/run/log", Destination("/run/log", 16)),
        ("syslog:192.0.2.1:514?facility=local7", Destination(("192.0.2.1", 514), 23)),
        ("syslog:[2001:db8::1]:1514", Destination(("2001:db8::1", 1514), 16)),
        ("syslog?facility=daemon", Destination("/dev/log", 3)),
    ],
)
def test_where_it_goes(text: str, found: Destination) -> None:
    assert parse(text) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("syslog:loghost:514", "write syslog"),
        ("syslog:192.0.2.1", "write syslog"),
        ("syslog:192.0.2.1:99999", "write syslog"),
        ("syslog:192.0.2.1:²", "write syslog"),
        ("syslog?facility=local8", "local7"),
        ("syslog?tag=x", "?facility="),
        ("syslog:/no/such/socket", "start a syslog daemon first"),
    ],
)
def test_what_is_wrong_is_told_at_the_start(text: str, says: str) -> None:
    with pytest.raises(StartupError, match=re.escape(says)):
        AccessLog.open(text)


def test_a_daemon_of_this_machine(tmp_path: Path) -> None:
    """RFC 3164 without a host's name, as the C library writes it."""
    with daemon(tmp_path / "log") as there:
        log = log_to(f"syslog:{tmp_path / 'log'}")
        log.write(record(1))
        log.write(record(2, reason=Reason.BACKEND_RESET))
        log.flush()
        messages = [there.recv(9000).decode() for _ in range(2)]
        log.close()
    stamp = r"[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d"
    tag = rf"l7proxy\[{os.getpid()}\]:"
    assert re.fullmatch(rf"<134>{stamp} {tag} 192\.0\.2\.1 1 done", messages[0])
    assert re.fullmatch(rf"<132>{stamp} {tag} 192\.0\.2\.1 2 backend_reset", messages[1])


def test_a_daemon_elsewhere() -> None:
    """RFC 5424, in UDP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind(("127.0.0.1", 0))
        there.settimeout(60)
        log = log_to(f"syslog:127.0.0.1:{there.getsockname()[1]}?facility=local1")
        log.write(record(1))
        log.flush()
        message = there.recv(9000).decode()
        log.close()
    match = re.fullmatch(
        r"<142>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (\S+) l7proxy (\d+) access -"
        r" 192\.0\.2\.1 1 done",
        message,
    )
    assert match is not None, message
    assert match[2] == socket.gethostname()
    assert int(match[3]) == os.getpid()


def test_a_daemon_that_does_not_read_costs_messages_and_no_time(tmp_path: Path) -> None:
    with daemon(tmp_path / "log") as there:
        log = log_to(f"syslog:{tmp_path / 'log'}")
        begun = time.monotonic()
        for number in range(6000):
            log.write(record(number))
            log.flush()
        assert time.monotonic() - begun < 60
        assert log.pending
        assert log.dropped > 0
        got = []
        there.setblocking(False)
        while True:
            try:
                got.append(there.recv(9000))
            except BlockingIOError:
                if not log.pending:
                    break
                log.flush()
        log.close()
    assert len(got) + log.dropped == 6000
    assert [int(one.split()[-2]) for one in got] == list(range(len(got)))


def test_a_daemon_that_starts_anew_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    clock = [0.0]
    first = daemon(path)
    out = Syslog(parse(f"syslog:{path}"), lambda: clock[0])
    log = AccessLog(out)
    log.write(record(1))
    log.flush()
    assert b"192.0.2.1" in first.recv(9000)
    first.close()
    path.unlink()
    for number in (2, 3):
        log.write(record(number))
        log.flush()
    assert log.dropped == 2, "nobody is there"
    with daemon(path) as second:
        log.write(record(4))
        log.flush()
        assert log.dropped == 3, "it is tried once a second"
        clock[0] += 1.1
        log.write(record(5))
        log.flush()
        assert b'"bytes_in":5' in second.recv(9000)
    with_new = path
    with_new.unlink()
    with daemon(path) as third:  # one that came up between two messages costs none
        clock[0] += 1.1
        log.write(record(6))
        log.flush()
        assert b'"bytes_in":6' in third.recv(9000)
    assert log.dropped == 3
    log.close()


def test_udp_that_nobody_listens_to_is_counted() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    log = AccessLog.open(f"syslog:127.0.0.1:{port}")
    for _ in range(5):
        log.write(record())
        log.flush()
        time.sleep(0.02)
    assert log.dropped == 4, "the last one's fate is not known yet"
    log.close()


def test_each_worker_has_a_socket_of_its_own(tmp_path: Path) -> None:
    with daemon(tmp_path / "log"):
        out = Syslog.open(f"syslog:{tmp_path / 'log'}")
        assert out._socket is None
    assert set(syslog.FACILITIES) >= {"daemon", "local0", "local7"}
