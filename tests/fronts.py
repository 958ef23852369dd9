"""A policy about the first bytes of connections, and what its tests do again and again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any

from peers import Backend, Peer, connect
from proxy import Proxy, until

POLICY = """\
listeners:
  web: {{address: 127.0.0.1:0}}
  accept:
    address: 127.0.0.1:0
    proxyProtocol: accept
    trustedProxies: [127.0.0.1]
    deny: [203.0.113.66]
  require:
    address: 127.0.0.1:0
    proxyProtocol: require
    trustedProxies: [127.0.0.1, 10.0.0.0/8]
    forwarded: {{xForwardedPort: append, xRealIp: append, forwarded: append}}
  require-soon:
    {{address: 127.0.0.1:0, proxyProtocol: require, trustedProxies: [127.0.0.1],
     timeouts: {{head: 500ms}}}}
  strange: {{address: 127.0.0.1:0, proxyProtocol: require, trustedProxies: [192.0.2.1]}}
  strange-accept: {{address: 127.0.0.1:0, proxyProtocol: accept, trustedProxies: [192.0.2.1]}}
  raw-accept:
    {{address: 127.0.0.1:0, protocol: TCP, proxyProtocol: accept, trustedProxies: [127.0.0.1]}}
  raw-accept-soon:
    {{address: 127.0.0.1:0, protocol: TCP, proxyProtocol: accept, trustedProxies: [127.0.0.1],
     timeouts: {{head: 500ms}}}}
  raw-require:
    {{address: 127.0.0.1:0, protocol: TCP, proxyProtocol: require, trustedProxies: [127.0.0.1]}}
  raw-require-soon:
    {{address: 127.0.0.1:0, protocol: TCP, proxyProtocol: require, trustedProxies: [127.0.0.1],
     timeouts: {{head: 500ms}}}}
  tls: {{address: 127.0.0.1:0, protocol: TLS}}
  tls-soon: {{address: 127.0.0.1:0, protocol: TLS, timeouts: {{head: 500ms}}}}
  tls-proxied:
    {{address: 127.0.0.1:0, protocol: TLS, proxyProtocol: require, trustedProxies: [127.0.0.1]}}
  behind: {{address: 127.0.0.1:0, trustedProxies: [127.0.0.1], allow: [203.0.113.0/24]}}
  few: {{address: 127.0.0.1:0, limits: {{clientConnections: 2}}}}
  few-behind:
    {{address: 127.0.0.1:0, protocol: TCP, proxyProtocol: require, trustedProxies: [127.0.0.1],
     limits: {{clientConnections: 1}}}}
  shut: {{address: 127.0.0.1:0, deny: [127.0.0.0/8]}}
  raw-shut: {{address: 127.0.0.1:0, protocol: TCP}}
routes:
  - name: respond
    listeners: [web]
    matches: [{{path: /respond}}]
    respond: {{status: 503, headers: {{Retry-After: "60"}}, body: "later\\n"}}
  - name: redirect
    listeners: [web]
    matches: [{{path: /old}}]
    redirect:
      scheme: https
      hostname: new.test
      path: {{type: ReplacePrefixMatch, value: /new}}
      status: 301
  - name: deny
    listeners: [web]
    matches: [{{path: /deny}}]
    deny: true
  - name: closed
    listeners: [web]
    matches: [{{path: /closed}}]
    allow: [10.0.0.0/8]
    backendRefs: [{{name: app}}]
  - name: closed-answer
    listeners: [web]
    matches: [{{path: /closed-answer}}]
    deny: [127.0.0.1]
    respond: {{status: 200, body: secret}}
  - name: filtered
    listeners: [web]
    matches: [{{path: /filtered}}]
    filters:
      requestHeaders: {{set: {{X-Set: "1"}}, add: {{X-Add: "2"}}, remove: [X-Gone, Via]}}
      urlRewrite: {{hostname: inner.test, path: /inner}}
    backendRefs: [{{name: app}}]
  - name: quick
    listeners: [web]
    matches: [{{path: /quick}}]
    splice: connection
    timeouts: {{idle: 1s}}
    backendRefs: [{{name: app}}]
  - name: upgrade
    listeners: [web]
    matches: [{{path: /upgrade}}]
    splice: upgrade
    backendRefs: [{{name: app}}]
  - name: never
    listeners: [web]
    matches: [{{path: /never}}]
    splice: never
    backendRefs: [{{name: app}}]
  - name: pinned
    listeners: [web]
    matches: [{{path: /pinned}}]
    splice: connection
    backendRefs: [{{name: app}}]
  - name: sticky
    listeners: [web]
    matches: [{{path: /sticky}}]
    splice: connection
    backendRefs: [{{name: sticky}}]
  - name: claimed
    listeners: [web, require]
    matches: [{{headers: {{x-forwarded-proto: https}}}}]
    redirect: {{path: /claimed, status: 303}}
  - name: tell-v1
    listeners: [web, require]
    matches: [{{path: /v1}}]
    backendRefs: [{{name: tell-v1}}]
  - name: tell-v2
    listeners: [web, require]
    matches: [{{path: /v2}}]
    backendRefs: [{{name: tell-v2}}]
  - name: rest
    listeners: [web, accept, require, require-soon, strange, strange-accept, behind, few, shut]
    backendRefs: [{{name: app}}]
  - name: raw
    listeners: [raw-accept, raw-accept-soon, raw-require, raw-require-soon, few-behind]
    backendRefs: [{{name: app}}]
  - name: raw-shut
    listeners: [raw-shut]
    deny: [127.0.0.0/8]
    backendRefs: [{{name: app}}]
  - name: tls-app
    listeners: [tls, tls-soon, tls-proxied]
    hostnames: [app.test]
    backendRefs: [{{name: app}}]
  - name: tls-h2
    listeners: [tls]
    hostnames: ["*.alpn.test"]
    matches: [{{alpn: [h2]}}]
    backendRefs: [{{name: app}}]
  - name: tls-denied
    listeners: [tls]
    hostnames: [denied.test]
    deny: true
  - name: tls-closed
    listeners: [tls]
    hostnames: ["*.closed.test"]
    deny: {{sni: [a.closed.test]}}
    backendRefs: [{{name: app}}]
  - name: tls-told
    listeners: [tls]
    hostnames: [told.test]
    backendRefs: [{{name: tell-v2}}]
backends:
  app: {{endpoints: ["127.0.0.1:{app}"]}}
  sticky: {{endpoints: ["127.0.0.1:{app}"], sticky: {{cookie: l7}}}}
  tell-v1: {{endpoints: ["127.0.0.1:{app}"], proxyProtocol: v1}}
  tell-v2: {{endpoints: ["127.0.0.1:{app}"], proxyProtocol: v2}}
"""


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def answer_once(backend: Backend) -> None:
    """Tell the head, answer, and close."""

    def script(peer: Peer) -> None:
        backend.tell(peer.head())
        peer.send(OK)

    backend.play(script)


def get(path: bytes = b"/", host: bytes = b"app.test", fields: bytes = b"") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + fields + b"\r\n"


def fields_of(head: bytes) -> dict[str, str]:
    """The fields of a head, names in lower case."""
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}


def is_reset(address: tuple[str, int]) -> bool:
    """Whether a connection is reset at once, perhaps before connect(2) has returned."""
    try:
        with connect(address) as client:
            return client.ending() == "reset"
    except ConnectionResetError:
        return True


def say_too_little(proxy: Proxy, begun: Iterable[tuple[str, bytes]]) -> None:
    """Clients that begin, each with these bytes on this listener, and do not go on: all reset."""
    with contextlib.ExitStack() as stack:
        waiting = [
            stack.enter_context(connect(proxy.address(listener))).send(sent)
            for listener, sent in begun
        ]
        for client in waiting:
            assert client.ending() == "reset"
            assert proxy.record(client.port)["reason"] == "head_timeout"


LEAVING = {"half-close": "client_closed", "reset": "client_reset"}
"""How a client may leave, and the reason that is logged then."""


def leave_in_the_middle(proxy: Proxy, listener: str, sent: bytes, way: str) -> None:
    """A client that begins with these bytes and goes, one of the ways of `LEAVING`."""
    with connect(proxy.address(listener)) as client:
        client.send(sent)
        time.sleep(0.05)
        port = client.port
        if way == "reset":
            client.reset()
        else:
            assert client.half_close().ending() == "end"
    assert proxy.record(port)["reason"] == LEAVING[way]


def record_on(proxy: Proxy, listener: str) -> dict[str, Any]:
    """The record of this test's only connection on a listener, once it is over."""

    def found() -> list[dict[str, Any]]:
        return [r for r in proxy.records()[proxy._old :] if r["listener"] == listener]

    records = until(found, f"a record on listener {listener}")
    assert len(records) == 1
    one: dict[str, Any] = records[0]
    return one
