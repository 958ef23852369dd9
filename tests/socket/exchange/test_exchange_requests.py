"""Request after request on one connection: each has its own route, its answer, and its record."""

from __future__ import annotations

import pytest
from exchanging import Message, ask, echo, get, ok, post, read_message, record, serve
from peers import Backend, Peer, connect
from proxy import Proxy, until
from scrapes import Scrape

pytestmark = pytest.mark.net


def test_each_request_has_its_own_route(proxy: Proxy, one: Backend, two: Backend) -> None:
    serve(one, echo)
    serve(two, lambda _, request: ok(b"two " + request.path))
    with connect(proxy.address("web")) as client:
        for number in range(3):
            assert ask(client, get(b"/one/%d" % number)).body == b"/one/%d " % number
            assert ask(client, get(b"/two/%d" % number)).body == b"two /two/%d" % number
            assert ask(client, post(b"/one/x", b"abc")).body == b"/one/x abc"
    assert (one.accepted, two.accepted) == (1, 1)
    _, request = one.heard()
    assert b"connection" not in request.fields
    assert request.line == b"GET /one/0 HTTP/1.1"


def test_clients_share_what_is_kept(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    before = proxy.stats()["requests"]
    for _ in range(4):
        with connect(proxy.address("web")) as client:
            assert ask(client, get(b"/one")).body == b"/one "
    assert one.accepted == 1
    stats = until(
        lambda: (now := proxy.stats()["requests"])["total"] == before["total"] + 4 and now,
        "four requests are counted",
    )
    assert stats["reused"] == before["reused"] + 3
    assert stats["pooled"] == 1


def test_two_at_a_time_have_a_connection_each(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    with connect(proxy.address("web")) as first, connect(proxy.address("web")) as second:
        first.send(post(b"/one/first", b"ab")[:-1])
        assert ask(second, get(b"/one/second")).body == b"/one/second "
        first.send(b"b")
        assert read_message(first).body == b"/one/first ab"
    assert one.accepted == 2


def test_pipelined_requests_are_answered_in_their_order(
    proxy: Proxy, one: Backend, two: Backend
) -> None:
    serve(one, echo)
    serve(two, echo)
    with connect(proxy.address("web")) as client:
        pieces = [
            get(b"/one/1"),
            get(b"/nowhere"),
            post(b"/two/2", b"body"),
            get(b"/one/3"),
            get(b"/two/4", b"Connection: close\r\n"),
            get(b"/one/never"),
        ]
        client.send(b"".join(pieces))
        found = [read_message(client) for _ in range(5)]
        assert client.rest() == b""
    assert [one.status for one in found] == [200, 404, 200, 200, 200]
    assert [one.body for one in found if one.status == 200] == [
        b"/one/1 ",
        b"/two/2 body",
        b"/one/3 ",
        b"/two/4 ",
    ]


def test_many_requests_in_one_segment(proxy: Proxy, one: Backend) -> None:
    """None of them is answered within another one: the stack does not grow."""
    with connect(proxy.address("web")) as client:
        client.send(get(b"/") * 1200)
        for _ in range(1200):
            assert read_message(client).status == 404


def test_every_cut_of_two_requests(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    data = post(b"/one/1", b"abc") + get(b"/one/2")
    with connect(proxy.address("web")) as client:
        for at in range(1, len(data), 7):
            client.send(data[:at])
            client.send(data[at:])
            assert read_message(client).body == b"/one/1 abc"
            assert read_message(client).body == b"/one/2 "
        client.drip(data)
        assert read_message(client).body == b"/one/1 abc"
        assert read_message(client).body == b"/one/2 "


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("fields", [b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n"])
def test_the_client_says_whether_it_goes_on(
    proxy: Proxy, one: Backend, version: bytes, fields: bytes
) -> None:
    """And the backend is kept in any case, for whoever comes next."""
    serve(one, echo)
    keeps = b"keep-alive" in fields or (version == b"1.1" and not fields)
    with connect(proxy.address("web")) as client:
        answer = ask(client, get(b"/one", fields, version=version))
        assert answer.line == b"HTTP/1.1 200 OK"
        assert (answer.fields.get(b"connection") != b"close") is keeps
        if keeps:
            assert ask(client, get(b"/one/2")).body == b"/one/2 "
        else:
            assert client.rest() == b""
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/one/3")).body == b"/one/3 "
    assert one.accepted == 1
    _, request = one.heard()
    assert request.line == b"GET /one HTTP/1.1"
    assert b"connection" not in request.fields


def test_a_backend_that_closes_is_not_kept(proxy: Proxy, one: Backend) -> None:
    def once(peer: Peer, request: Message) -> bytes | None:
        peer.send(ok(request.path, b"Connection: close\r\n"))
        return None

    serve(one, once)
    with connect(proxy.address("web")) as client:
        for number in range(3):
            answer = ask(client, get(b"/one/%d" % number))
            assert answer.body == b"/one/%d" % number
            assert b"connection" not in answer.fields
    assert one.accepted == 3


def test_answers_of_our_own_keep_the_connection(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/nowhere")).status == 404
        assert ask(client, get(b"/one")).body == b"/one "
        assert ask(client, get(b"/down")).status == 503
        assert ask(client, get(b"/one/2")).body == b"/one/2 "
        # a body that nobody reads would be taken for the next request
        answer = ask(client, post(b"/nowhere", b"GET /one/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"))
        assert (answer.status, answer.fields[b"connection"]) == (404, b"close")
        assert client.rest() == b""
    assert one.accepted == 1
    assert [one.heard()[1].path for _ in range(2)] == [b"/one", b"/one/2"]


def test_a_bad_request_ends_the_connection(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/one")).status == 200
        answer = ask(client, get(b"/one/2", b"Content-Length: 1\r\nContent-Length: 2\r\n"))
        assert (answer.status, answer.fields[b"connection"]) == (400, b"close")
        assert client.rest() == b""
        port = client.port
    record(proxy, port, b"/one", reason="done")
    until(
        lambda: (
            [r["reason"] for r in proxy.records() if r["client"].endswith(f":{port}")][-1:]
            == ["bad_request"]
        ),
        "the record of what was no request",
    )


def test_a_later_request_of_a_route_that_is_spliced_whole(
    proxy: Proxy, one: Backend, two: Backend
) -> None:
    """A connection that has begun request by request goes on so."""
    serve(one, echo)
    serve(two, echo)
    with connect(proxy.address("web")) as client:
        assert ask(client, get(b"/two")).body == b"/two "
        assert ask(client, get(b"/whole")).body == b"/whole "
        assert ask(client, get(b"/two/2")).body == b"/two/2 "


def test_a_record_for_each_request(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    with connect(proxy.address("web")) as client:
        ask(client, get(b"/one/a"))
        ask(client, post(b"/one/b", b"12345"))
        ask(client, get(b"/nowhere"))
        name = f"127.0.0.1:{client.port}"

    def mine() -> list[dict[str, object]]:
        found = [record for record in proxy.records() if record["client"] == name]
        return found if len(found) == 3 else []

    first, second, third = until(mine, "three records")
    assert [one["path"] for one in (first, second, third)] == ["/one/a", "/one/b", "/nowhere"]
    assert [one["status"] for one in (first, second, third)] == [200, 200, 404]
    assert [one["reused"] for one in (first, second, third)] == [False, True, False]
    assert [one["reason"] for one in (first, second, third)] == ["done", "done", "local_reply"]
    assert second["bytes_in"] == len(post(b"/one/b", b"12345"))
    assert second["bytes_out"] == len(ok(b"/one/b 12345"))
    assert {one["route"] for one in (first, second)} == {"one"}
    proxy.settled()
    assert len(mine()) == 3  # the end of the connection is no request


def test_requests_are_counted_by_where_they_went(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)

    def counted(route: str, code: str) -> float:
        found = [
            sample.value
            for sample in Scrape(proxy).find("l7proxy_requests_total")
            if (sample.labels["route"], sample.labels["code"]) == (route, code)
        ]
        return sum(found)

    before = counted("one", "2xx"), counted("", "4xx")
    with connect(proxy.address("web")) as client:
        for _ in range(3):
            ask(client, get(b"/one"))
        ask(client, get(b"/nowhere"))
    proxy.settled()
    assert counted("one", "2xx") == before[0] + 3
    assert counted("", "4xx") == before[1] + 1


def test_a_connection_that_waits_is_told_as_idle(proxy: Proxy, one: Backend) -> None:
    serve(one, echo)
    with connect(proxy.address("web")) as client:
        ask(client, get(b"/one"))
        (row,) = until(lambda: proxy.connections("state=idle"), "an idle connection")
        assert row["client"] == f"127.0.0.1:{client.port}"
        assert row["way"] is None
        client.send(post(b"/one", b"ab")[:-1])
        (row,) = until(lambda: proxy.connections("state=exchange"), "an exchange")
        assert row["way"] == "relay"
        client.send(b"b")
        assert read_message(client).status == 200
