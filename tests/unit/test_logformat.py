"""Format strings of the access log: what they may have, and that no client can forge a line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy import logformat
from l7proxy.config import check_text
from l7proxy.errors import Reason
from l7proxy.logformat import HEADER, NAMES, PRESETS, VARIABLES, BadFormat, Part, parse
from l7proxy.telemetry import accessformat, sink
from l7proxy.telemetry.accessformat import compiled
from l7proxy.telemetry.accesslog import Record, encode

MANUAL = Path(__file__).parents[2] / "policies" / "README.md"


def record(**fields: object) -> Record:
    known: dict[str, object] = {
        "time": 1_700_000_000.25,
        "worker": 3,
        "listener": "web",
        "client": "[2001:db8::1]:5000",
        "proxy": "10.0.0.1:4711",
        "destination": "192.0.2.7:443",
        "route": "api",
        "backend": "app",
        "endpoint": "127.0.0.1:9001",
        "method": "GET",
        "host": "example.com",
        "path": "/v1",
        "query": "q=1",
        "sni": "a.example",
        "alpn": ("h2", "http/1.1"),
        "protocol": "HTTP",
        "datapath": "sockmap",
        "head_ms": 1.75,
        "dial_ms": 4.0,
        "first_byte_ms": 4.125,
        "splice_ms": 4.25,
        "total_ms": 2100.5,
        "bytes_in": 81,
        "bytes_out": 2**40,
        "kernel_in": 1,
        "kernel_out": 2,
        "overflows": 4,
        "reused": True,
        "status": 404,
        "reason": Reason.BACKEND_RESET,
        "rule": "host",
        "state": "spliced",
        "rate": 0.01,
        "version": "1.1",
        "headers": {"user-agent": 'curl "8"', "referer": "http://x/"},
    }
    return Record(**known | fields)  # type: ignore[arg-type]


def line(form: str, **fields: object) -> str:
    made = compiled(form)(record(**fields))
    assert made.endswith(b"\n")
    return made[:-1].decode("ascii")


WHOLE = [
    ("time", "2023-11-14T22:13:20.250Z"),
    ("time_clf", "[14/Nov/2023:22:13:20 +0000]"),
    ("time_ms", "14/Nov/2023:22:13:20.250"),
    ("time_gmt", "14/Nov/2023:22:13:20 +0000"),
    ("epoch", "1700000000"),
    ("epoch_ms", "1700000000250"),
    ("worker", "3"),
    ("pid", str(os.getpid())),
    ("listener", "web"),
    ("client", "[2001:db8::1]:5000"),
    ("client_ip", "2001:db8::1"),
    ("client_port", "5000"),
    ("proxy", "10.0.0.1:4711"),
    ("destination", "192.0.2.7:443"),
    ("route", "api"),
    ("backend", "app"),
    ("endpoint", "127.0.0.1:9001"),
    ("endpoint_ip", "127.0.0.1"),
    ("endpoint_port", "9001"),
    ("method", "GET"),
    ("host", "example.com"),
    ("path", "/v1"),
    ("uri", "/v1?q=1"),
    ("query", "?q=1"),
    ("version", "HTTP/1.1"),
    ("request", "GET /v1?q=1 HTTP/1.1"),
    ("req.hdr(User-Agent)", r"curl \"8\""),
    ("sni", "a.example"),
    ("alpn", "h2,http/1.1"),
    ("protocol", "HTTP"),
    ("datapath", "sockmap"),
    ("head_ms", "1.750"),
    ("head_ms_int", "1"),
    ("dial_ms", "4.000"),
    ("connect_ms_int", "2"),
    ("first_byte_ms", "4.125"),
    ("splice_ms", "4.250"),
    ("total_ms", "2100.500"),
    ("total_ms_int", "2100"),
    ("total_us", "2100500"),
    ("total_s", "2"),
    ("bytes_in", "81"),
    ("bytes_out", str(2**40)),
    ("bytes_out_clf", str(2**40)),
    ("kernel_in", "1"),
    ("kernel_out", "2"),
    ("overflows", "4"),
    ("reused", "true"),
    ("status", "404"),
    ("reason", "backend_reset"),
    ("rule", "host"),
    ("state", "spliced"),
    ("rate", "0.01"),
    ("ident", "-"),
    ("user", "-"),
]


@pytest.mark.parametrize(("name", "value"), WHOLE)
def test_each_variable(name: str, value: str) -> None:
    assert line(f'"%[{name}]"') == f'"{value}"'


def test_the_tables_are_the_same_everywhere() -> None:
    """The words, what is made of them, JSON's keys, and the manual's table."""
    names = [one.name for one in VARIABLES]
    assert len(set(names)) == len(names)
    assert set(accessformat.VALUES) == set(names) - {HEADER}
    assert [re.sub(r"\(.*", "", name) for name, _ in WHOLE] == names
    assert set(json.loads(encode(record()))) <= set(names)
    rows = re.findall(r"^\| `%\[([^\]]*)\]` \| (.*) \| (.*) \| (.*) \|$", MANUAL.read_text(), re.M)
    told = [
        (name.removesuffix("(NAME)"), *(re.findall("`%([^`]*)`", words) for words in others), doc)
        for name, *others, doc in rows
    ]
    assert told == [(one.name, list(one.haproxy), list(one.apache), one.doc) for one in VARIABLES]


def test_words_of_others_are_the_same_variable() -> None:
    for one in VARIABLES:
        for word in (*one.haproxy, *one.apache):
            if one.name == HEADER:
                assert parse("%{X-Y}i") == parse("%[req.hdr(x-y)]")
            else:
                assert parse(f"%{word}") == (Part(one.name),), word


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (
            "combined",
            r'2001:db8::1 - - [14/Nov/2023:22:13:20 +0000] "GET /v1?q=1 HTTP/1.1" 404'
            r' 1099511627776 "http://x/" "curl \"8\""',
        ),
        (
            "common",
            '2001:db8::1 - - [14/Nov/2023:22:13:20 +0000] "GET /v1?q=1 HTTP/1.1" 404 1099511627776',
        ),
        (
            "%ci:%cp [%tr] %ft %Tq/%Tc/%Tt %ST %B %{+Q}r",
            "2001:db8::1:5000 [14/Nov/2023:22:13:20.250] web 1/2/2100 404 1099511627776"
            ' "GET /v1?q=1 HTTP/1.1"',
        ),
        ("100%% {%[worker]} é\t|", "100% {3} \\xc3\\xa9\t|"),
    ],
)
def test_formats(form: str, says: str) -> None:
    made = compiled(form)(record()).decode()
    assert made == says.replace("\\xc3\\xa9", "é") + "\n"


def test_what_is_not_there_is_a_dash_or_minus_one() -> None:
    bare = Record(0.0, 0, "raw", "unix:")
    made = compiled('%m "%r" %[status] %[bytes_out_clf] %[client_port] %{A}i %Tq %Tc %HQ')(bare)
    assert made == b'- "-" - - - - -1 -1 -\n'


WRONG = [
    ("%h %[endpoind]", "%[endpoind]", "unknown variable", "endpoint"),
    ("%Tx", "%Tx", "unknown variable", ""),
    ("%hello", "%hello", "unknown variable", ""),
    ("50% of", "%", "begins no variable", "%%"),
    ("100%", "%", "begins no variable", "%%"),
    ("%{User-Agent}o", "%{User-Agent}o", "headers of answers", "not read"),
    ("%{a}C", "%{a}C", "cookies", ""),
    ("%{+E}r", "%{+E}r", "flag", "{+Q}"),
    ("%!200h", "%", "begins no variable", "answers of backends are not read"),
    ("%{bad name}i", "%{bad name}i", "no name of a header", ""),
    ("%{us}Q", "%{us}Q", "unknown variable", ""),
    ("%ci %b", "%b", "one thing to Apache", "%[backend]"),
    ("%t %Tt", "%t", "one thing to Apache", "%[time_ms]"),
    ("%{+Q}r %s", "%s", "one thing to Apache", "%[endpoint]"),
    ("no variable", "no variable", "without a variable", ""),
    ("%h\n%u", "\n", "control characters", ""),
]


@pytest.mark.parametrize(("form", "part", "says", "hint"), WRONG, ids=[one[0] for one in WRONG])
def test_what_is_wrong_is_told_with_its_place(form: str, part: str, says: str, hint: str) -> None:
    with pytest.raises(BadFormat) as caught:
        parse(form)
    assert form[caught.value.part] == part
    assert says in caught.value.message
    assert hint in caught.value.hint or hint in caught.value.known


def test_a_policy_tells_line_and_column_and_what_was_meant() -> None:
    report = check_text(
        "listeners: {w: {address: 127.0.0.1:80}}\n"
        "routes: [{name: a, respond: {status: 200}}]\n"
        "accessLog:\n"
        "  format: '%h %[endpoind] x'\n",
        "p.yaml",
    )
    assert report.policy is None
    told = report.render()
    assert "p.yaml:4:15: error: unknown variable `%[endpoind]`" in told
    assert "^^^^^^^^^^^" in told
    assert "did you mean `endpoint`?" in told


HOSTILE = st.text(st.characters(max_codepoint=0x10FFFF), max_size=200)


@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_client_can_forge_a_line_or_a_field(method: str, path: str, agent: str) -> None:
    one = record(method=method, path=path, headers={"user-agent": agent})
    made = compiled('%h "%r" %m %HP "%{User-Agent}i" %{User-Agent}i %{+Q}HU end')(one)
    text = made.decode("ascii")
    assert text.count("\n") == 1
    assert all(" " <= char <= "~" for char in text[:-1])
    quoted = r'"(?:[^"\\]|\\.)*"'
    assert re.fullmatch(rf"\S+ {quoted} \S+ \S+ {quoted} \S+ {quoted} end\n", text)


def test_bytes_of_a_client_come_back() -> None:
    sent = bytes(range(256))
    made = line('"%{User-Agent}i"', headers={"user-agent": sent.decode("latin-1")})
    inner = re.sub(r"\\(x..|.)", lambda match: _unescaped(match[1]), made[1:-1])
    assert inner.encode("latin-1") == sent


def _unescaped(text: str) -> str:
    return chr(int(text[1:], 16)) if len(text) > 1 else text


def test_a_line_is_never_longer_than_a_chunk() -> None:
    made = compiled(" ".join(["%r"] * 20))(record(path="/" + "\x80" * 9000))
    assert len(made) == sink.CHUNK
    assert made.endswith(b"...\n")


def test_a_format_has_limits() -> None:
    with pytest.raises(BadFormat, match="longer"):
        parse("%h" + "x" * logformat.MAX_FORMAT)
    with pytest.raises(BadFormat, match="more than 16 headers"):
        parse(" ".join(f"%{{X-{number}}}i" for number in range(17)))
    assert logformat.headers(parse(PRESETS["combined"])) == {"referer", "user-agent"}
    assert "req.hdr" in NAMES
