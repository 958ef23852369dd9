"""`l7proxy explain`: who wins, why others lose, what the backend gets, to the letter."""

# ruff: noqa: E501 - output stands as it is printed

from __future__ import annotations

from typing import Any

import pytest
from verbs import Verbs

from l7proxy import cli

POLICY = """\
listeners:
  web:
    address: 127.0.0.1:8080
    trustedProxies: [10.0.0.0/8]
    deny: [203.0.113.0/24]
  strict: {address: 127.0.0.1:8081, hostnames: [only.test], limits: {headers: 3}}
  tls: {address: 127.0.0.1:8443, protocol: TLS}
  raw: {address: 127.0.0.1:9000, protocol: TCP, allow: [192.0.2.0/24]}
routes:
  - name: canary
    listeners: [web]
    hostnames: [shop.test]
    matches:
      - path: /cart
        method: GET
        headers: {x-canary: "1"}
    filters: {requestHeaders: {set: {X-Env: canary}, remove: [X-Debug]}, urlRewrite: {path: /new}}
    backendRefs: [{name: next, weight: 9}, {name: gone, optional: true}]
  - {name: cart, listeners: [web], hostnames: [shop.test], matches: [{path: /cart}], backendRefs: [{name: app}]}
  - {name: old, listeners: [web], hostnames: [old.test], redirect: {hostname: shop.test, status: 301}}
  - {name: teapot, listeners: [web], hostnames: [tea.test], respond: {status: 418, headers: {X-A: b}, body: "short\\nand stout"}}
  - {name: secret, listeners: [web], hostnames: [secret.test], deny: true}
  - {name: inside, listeners: [web], hostnames: [inside.test], allow: [10.0.0.0/8], backendRefs: [{name: app}]}
  - {name: only, listeners: [strict], backendRefs: [{name: app}]}
  - {name: h2, listeners: [tls], hostnames: [db.test], matches: [{alpn: [h2]}], backendRefs: [{name: app}]}
  - {name: db, listeners: [tls], hostnames: [db.test], deny: {sni: [db.test]}, backendRefs: [{name: app}]}
  - {name: stream, listeners: [raw], backendRefs: [{name: two}]}
backends:
  app: {endpoints: [127.0.0.1:9001]}
  next:
    endpoints: [127.0.0.1:9002, {address: 127.0.0.1:9003, weight: 3}, {address: 127.0.0.1:9004, weight: 0}]
    balance: {hash: {header: X-User}}
    sticky: session
  two: {endpoints: [127.0.0.1:9005], proxyProtocol: v2}
"""


@pytest.fixture(autouse=True)
def _policy(l7proxy: Verbs) -> None:
    l7proxy.write(POLICY)


def ask(l7proxy: Verbs, *arguments: str) -> Any:
    code, found = l7proxy.json("explain", "--json", "p.yaml", *arguments)
    assert code == 0
    return found


def web(l7proxy: Verbs, method: str, url: str, *arguments: str) -> Any:
    return ask(l7proxy, method, url, "--listener", "web", *arguments)


def test_all_of_it_for_people(l7proxy: Verbs) -> None:
    arguments = ["-H", "x-canary: 1", "-H", "X-Debug: yes", "--listener", "web"]
    code, out, err = l7proxy("explain", "p.yaml", "GET", "http://Shop.test/cart/1?a=b", *arguments)
    assert (code, err) == (0, "")
    assert (
        out
        == """\
listener  web (HTTP, 127.0.0.1:8080) at p.yaml:2:3: it was named
client    192.0.2.1
route     canary at p.yaml:10:11 for shop.test
match     PathPrefix /cart, method GET, header x-canary Exact '1' at p.yaml:14:9
goes to   next 90%: 127.0.0.1:9002 25%, 127.0.0.1:9003 75% (hash on header x-user, sticky by cookie session)
          gone 10%: it is not there, and answered with 500
splice    request, chosen by auto: later requests of a connection may match `canary`, `cart`, `old`, one of 3 more or no route (404)
          heads: each one is parsed, routed and written anew, of requests and of responses
          small bodies: user space relays them
          large bodies: the kernel moves those of 256 KiB and more, if their length is known; user space relays the others
          upgrades: after 101, or 2xx to CONNECT, the kernel moves everything
head      GET /new/1?a=b HTTP/1.1
          Host: Shop.test
          x-canary: 1
          X-Forwarded-For: 192.0.2.1
          X-Forwarded-Proto: http
          X-Forwarded-Host: Shop.test
          Via: 1.1 l7proxy
          X-Env: canary

other routes that match too:
          cart at p.yaml:19:12: the winner asks for the method GET too

other routes that do not match:
          old at p.yaml:20:12: its hostname is old.test, not shop.test
          teapot at p.yaml:21:12: its hostname is tea.test, not shop.test
          secret at p.yaml:22:12: its hostname is secret.test, not shop.test
          inside at p.yaml:23:12: its hostname is inside.test, not shop.test
"""
    )


def test_the_same_as_json(l7proxy: Verbs) -> None:
    found = web(l7proxy, "GET", "http://shop.test/cart", "-H", "X-Canary: 1")
    assert found["listener"] == {
        "name": "web",
        "address": "127.0.0.1:8080",
        "protocol": "HTTP",
        "at": "p.yaml:2:3",
        "why": "it was named",
    }
    assert found["asked"] == {"method": "GET", "host": "shop.test", "path": "/cart", "query": None}
    assert found["route"]["name"] == "canary"
    assert found["route"]["matchAt"] == "p.yaml:14:9"
    assert (found["action"], found["status"]) == ("forward", None)
    assert found["backends"][0]["endpoints"] == [
        {"address": "127.0.0.1:9002", "percent": 25.0},
        {"address": "127.0.0.1:9003", "percent": 75.0},
    ]
    assert found["backends"][1] == {"name": "gone", "percent": 10.0, "status": 500}
    assert found["head"].endswith("X-Env: canary\r\n\r\n")
    assert [one["name"] for one in found["others"] if one["matches"]] == ["cart"]


def test_a_header_decides(l7proxy: Verbs) -> None:
    found = web(l7proxy, "GET", "http://shop.test/cart", "-H", "x-canary: 2")
    assert found["route"]["name"] == "cart"
    (canary, *_) = found["others"]
    assert (canary["name"], canary["matches"], canary["criterion"]) == ("canary", False, "headers")
    assert canary["why"] == "its header 'x-canary' is '1', the request's '2'"


def test_redirect(l7proxy: Verbs) -> None:
    found = web(l7proxy, "GET", "http://old.test/a?b=c")
    assert (found["action"], found["status"]) == ("redirect", 301)
    assert found["location"] == "http://shop.test:8080/a?b=c"
    assert found["answer"] == "301 to http://shop.test:8080/a?b=c"


def test_a_redirect_leads_where_the_client_came_from(l7proxy: Verbs) -> None:
    """Behind a proxy that ends TLS the client used https: http would send it in circles."""
    told = ["-H", "X-Forwarded-Proto: https"]
    found = web(l7proxy, "GET", "http://old.test/a", *told, "--client", "10.0.0.1")
    assert found["location"] == "https://shop.test/a"
    port = [*told, "-H", "X-Forwarded-Port: 8443"]
    found = web(l7proxy, "GET", "http://old.test/a", *port, "--client", "10.0.0.1")
    assert found["location"] == "https://shop.test:8443/a"
    found = web(l7proxy, "GET", "http://old.test/a", *port)  # not from a trusted proxy
    assert found["location"] == "http://shop.test:8080/a"


def test_what_is_not_believed_does_not_route(l7proxy: Verbs) -> None:
    match = "hostnames: [claim.test], matches: [{headers: {x-forwarded-proto: https}}]"
    l7proxy.write(
        POLICY.replace("backends:\n", f"  - {{name: claim, {match}, respond: 200}}\nbackends:\n")
    )
    asked = ["GET", "http://claim.test/", "-H", "X-Forwarded-Proto: https"]
    assert web(l7proxy, *asked)["status"] == 404
    assert web(l7proxy, *asked, "--client", "10.0.0.1")["route"]["name"] == "claim"


def test_respond(l7proxy: Verbs) -> None:
    found = web(l7proxy, "GET", "http://tea.test/")
    assert (found["action"], found["status"], found["answer"]) == ("respond", 418, "418")
    assert (found["headers"], found["body"]) == ([["X-A", "b"]], "short\nand stout")
    _, out, _ = l7proxy("explain", "p.yaml", "GET", "http://tea.test:8080/")
    assert "\nanswer    418\n          X-A: b\nbody      short\n          and stout\n" in out


@pytest.mark.parametrize(
    ("url", "client", "answer"),
    [
        ("http://secret.test/", "192.0.2.1", "403: the route denies it"),
        ("http://inside.test/", "192.0.2.1", "403: route `inside` does not let 192.0.2.1 in"),
        ("http://any/", "203.0.113.9", "a reset: listener `web` does not let 203.0.113.9 in"),
    ],
)
def test_denied(l7proxy: Verbs, url: str, client: str, answer: str) -> None:
    found = web(l7proxy, "GET", url, "--client", client)
    assert (found["action"], found["answer"]) == ("deny", answer)


def test_a_trusted_proxy_says_who_the_client_is(l7proxy: Verbs) -> None:
    arguments = ["--client", "10.0.0.1", "-H"]
    inside = web(l7proxy, "GET", "http://inside.test/", *arguments, "X-Forwarded-For: 10.9.9.9")
    assert inside["client"] == {"address": "10.9.9.9", "fromTrustedProxy": True}
    assert inside["action"] == "forward"
    assert "X-Forwarded-For: 10.9.9.9, 10.0.0.1\r\n" in inside["head"]
    outside = web(l7proxy, "GET", "http://inside.test/", *arguments, "X-Forwarded-For: 8.8.8.8")
    assert outside["answer"] == "403: route `inside` does not let 8.8.8.8 in"
    barred = web(l7proxy, "GET", "http://inside.test/", *arguments, "X-Forwarded-For: 203.0.113.1")
    assert barred["answer"] == "a reset: listener `web` does not let 203.0.113.1 in"
    stranger = web(l7proxy, "GET", "http://inside.test/", "-H", "X-Forwarded-For: 10.9.9.9")
    assert stranger["action"] == "deny"


@pytest.mark.parametrize(
    ("arguments", "status", "why"),
    [
        (["-H", "Transfer-Encoding: chunked", "-H", "Content-Length: 1"], 400, "both "),
        (["-H", "Host: a", "-H", "Host: b"], 400, ""),
        (["-H", "a b: c"], 400, ""),
        (["-H", "x: \x01"], 400, ""),
        (["-H", "a: 1", "-H", "b: 1", "-H", "c: 1"], 431, ""),
    ],
)
def test_what_is_no_request(l7proxy: Verbs, arguments: list[str], status: int, why: str) -> None:
    found = ask(l7proxy, "GET", "http://only.test:8081/", *arguments)
    assert (found["action"], found["status"], found["route"]) == ("refuse", status, None)
    assert found["answer"].startswith(f"{status}: refused before any route is looked at: {why}")
    assert found["rule"]
    assert found["others"] == []


def test_a_unix_socket(l7proxy: Verbs) -> None:
    """Who may connect to its file is trusted; an abstract one is open to everybody."""
    arguments = [
        "GET",
        "/cart",
        "--listener",
        "web",
        "-H",
        "Host: shop.test",
        "-H",
        "X-Real-IP: 9.9.9.9",
    ]
    trust = "address: 127.0.0.1:8080\n    trustedProxies: [10.0.0.0/8]"
    l7proxy.write(POLICY.replace(trust, "address: unix:/run/web.sock"))
    found = ask(l7proxy, *arguments)
    assert found["client"] == {"address": "unix:", "fromTrustedProxy": True}
    assert "X-Real-IP: 9.9.9.9\r\n" in found["head"]
    without = POLICY.replace("    deny: [203.0.113.0/24]\n", "")
    l7proxy.write(without.replace(trust, "address: unix:@web"))
    found = ask(l7proxy, *arguments)
    assert found["client"] == {"address": "unix:", "fromTrustedProxy": False}
    assert "X-Real-IP" not in found["head"]
    l7proxy.write(without.replace(trust, "address: unix:/x\n    proxyProtocol: require"))
    assert ask(l7proxy, *arguments)["client"]["address"] == "192.0.2.1"


def test_no_route(l7proxy: Verbs) -> None:
    found = web(l7proxy, "GET", "http://nobody.test/")
    assert (found["action"], found["answer"]) == ("refuse", "404: no route matches")
    assert len(found["others"]) == 6
    stranger = ask(l7proxy, "GET", "http://nobody.test:8081/")
    assert stranger["answer"] == "404: no route matches"
    assert stranger["others"][0]["criterion"] == "listener"


def test_a_path_that_can_be_read_in_two_ways(l7proxy: Verbs) -> None:
    found = web(l7proxy, "GET", "http://shop.test/cart/..%2fx")
    assert (found["status"], found["action"]) == (400, "refuse")
    assert [one["route"] for one in found["readings"]] == ["cart", "cart", None]
    _, out, _ = l7proxy("explain", "p.yaml", "GET", "http://shop.test:8080/cart/..%2fx")
    assert "          lenient: /x leads to no route\n" in out


def test_a_request_about_the_whole_server(l7proxy: Verbs) -> None:
    found = web(l7proxy, "OPTIONS", "*", "-H", "Host: shop.test")
    assert found["asked"] == {"method": "OPTIONS", "host": "shop.test", "path": "/", "query": None}


@pytest.mark.parametrize("port", ["", ":8080"])
def test_a_tunnel(l7proxy: Verbs, port: str) -> None:
    found = ask(l7proxy, "CONNECT", f"http://shop.test{port}", "--listener", "web")
    assert (found["action"], found["status"]) == ("refuse", 501)
    l7proxy.write(
        POLICY.replace('method: GET\n        headers: {x-canary: "1"}', "method: CONNECT").replace(
            "path: /cart\n", "path: /\n"
        )
    )
    found = ask(l7proxy, "CONNECT", f"http://shop.test{port}", "--listener", "web")
    assert found["route"]["name"] == "canary"
    assert found["head"].startswith(f"CONNECT shop.test{port or ':80'} HTTP/1.1\r\n")


def test_streams(l7proxy: Verbs) -> None:
    found = ask(l7proxy, "tcp", "raw")
    assert (found["asked"], found["route"]["name"]) == ({}, "stream")
    assert found["backends"][0]["proxyProtocol"] == "v2"
    assert found["splice"]["mode"] == "connection"
    assert "head" not in found
    found = ask(l7proxy, "tcp", "raw", "--client", "::1")
    assert found["answer"] == "a reset: listener `raw` does not let ::1 in"


def test_tls(l7proxy: Verbs) -> None:
    found = ask(l7proxy, "tls", "tls", "--sni", "DB.test", "--alpn", "h2", "--alpn", "http/1.1")
    assert found["asked"] == {"sni": "db.test", "alpn": ["h2", "http/1.1"]}
    assert found["route"]["name"] == "h2"
    assert found["route"]["match"] == "ALPN h2"
    found = ask(l7proxy, "GET", "https://db.test/x")
    assert found["listener"]["why"] == "it is the only one that speaks TLS"
    assert found["answer"] == "the alert access_denied: route `db` does not let the name db.test in"
    assert found["status"] is None
    found = ask(l7proxy, "tls", "tls")
    assert found["answer"] == "the alert unrecognized_name: no route matches"


def test_a_route_that_lets_names_and_clients_in(l7proxy: Verbs) -> None:
    rules = "allow: {clients: [192.0.2.0/24], sni: [in.test]}"
    route = f"  - {{name: sni, listeners: [tls], {rules}, backendRefs: [{{name: app}}]}}\n"
    l7proxy.write(POLICY.replace("backends:\n", f"{route}backends:\n"))
    refusal = "the alert access_denied: route `sni` does not let {} in"
    asked = ["tls", "tls", "--sni"]
    assert ask(l7proxy, *asked, "in.test")["action"] == "forward"
    assert ask(l7proxy, *asked, "out.test")["answer"] == refusal.format("the name out.test")
    assert ask(l7proxy, "tls", "tls")["answer"] == refusal.format("who gives no name")
    outside = ask(l7proxy, *asked, "out.test", "--client", "8.8.8.8")
    assert outside["answer"] == refusal.format("8.8.8.8")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ["GET", "http://shop.test/"],
            "several listeners speak HTTP: choose one with --listener (web, strict)",
        ),
        (["GET", "/", "--listener", "raw"], "listener raw speaks TCP, and this is a request of"),
        (["GET", "/", "--listener", "wbe"], "no listener has the name 'wbe': there are web,"),
        (["GET", "shop.test/"], "'shop.test/' is no URL: write http://HOST/PATH, or tcp or tls"),
        (["GET", "ftp://shop.test/"], "'ftp://shop.test/' is no URL"),
        (["GET", "http://[::1/"], "'http://[::1/' is no URL: Invalid IPv6 URL"),
        (["GET", "http://shop.test:x/"], "the port of 'http://shop.test:x/' is no number"),
        (["GET", "http://shop.test:8080/", "--sni", "x"], "an HTTP request has no ClientHello"),
        (["tcp", "web"], "listener web speaks HTTP, not TCP"),
        (["tcp", "raw", "--alpn", "h2"], "a stream of TCP has no ClientHello"),
        (["tls", "tls", "-H", "a: b"], "a stream of TLS has no headers: leave -H out"),
    ],
)
def test_unclear(l7proxy: Verbs, arguments: list[str], why: str) -> None:
    code, out, err = l7proxy("explain", "p.yaml", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"l7proxy: error: {why}")


def test_a_policy_with_errors(l7proxy: Verbs) -> None:
    l7proxy.write("listeners: {}\n")
    code, out, err = l7proxy("explain", "p.yaml", "GET", "http://a/")
    assert (code, out) == (1, "")
    assert "p.yaml:1:12: error: `listeners` is empty" in err


def test_no_tls_listener(l7proxy: Verbs) -> None:
    l7proxy.write(
        "listeners: {web: {address: 127.0.0.1:1}}\nroutes: [{name: a, respond: 404}]\n"
        "backends: {app: {endpoints: [127.0.0.1:2]}}\n"
    )
    _, _, err = l7proxy("explain", "p.yaml", "GET", "https://a/")
    assert err == "l7proxy: error: no listener speaks TLS\n"


def test_many_other_routes_are_cut_for_people(l7proxy: Verbs) -> None:
    more = "".join(
        f"  - {{name: r{at}, hostnames: [h{at}.test], backendRefs: [{{name: app}}]}}\n"
        for at in range(30)
    )
    l7proxy.write(POLICY.replace("backends:\n", f"{more}backends:\n"))
    _, out, _ = l7proxy("explain", "p.yaml", "GET", "http://tea.test:8080/")
    assert out.endswith("          and 15 more, which --json tells\n")
    assert len(web(l7proxy, "GET", "http://tea.test/")["others"]) == 35


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--client", "10.0.0"], "argument --client: '10.0.0' is no IP address"),
        (["-H", "no colon"], "'no colon' is no header: write 'name: value'"),
        (["-H", ": x"], "': x' is no header: write 'name: value'"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], why: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["explain", "p.yaml", "GET", "http://shop.test/", *arguments])
    assert caught.value.code == 2
    assert why in capsys.readouterr().err
