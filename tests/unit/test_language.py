"""What a policy with everything in it comes to, and what is told of the defaults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from l7proxy.config import check_text, nodes
from l7proxy.config.language import POLICY
from l7proxy.config.language.backends import BACKEND
from l7proxy.config.language.listeners import LISTENER
from l7proxy.config.language.routes import ROUTE
from l7proxy.config.problems import Source
from l7proxy.config.schema import Kinds, ListOf, Made, MapOf, Record, Table, snake_case
from l7proxy.config.walker import Walker
from l7proxy.model import (
    Access,
    AccessLogRules,
    Address,
    Backend,
    BackendRef,
    Balance,
    BalanceType,
    Circuit,
    Destination,
    Ejection,
    Endpoint,
    FieldPolicy,
    Filters,
    ForwardedFields,
    HashOn,
    HeaderChanges,
    HealthCheck,
    Interception,
    LimitBy,
    Limits,
    Listener,
    Match,
    Mirror,
    NameAddress,
    PathMatch,
    PathModifier,
    PathModifierType,
    PathType,
    Policy,
    ProbeType,
    Protocol,
    ProxyHeader,
    ProxyVersion,
    RateLimit,
    RedirectTo,
    Resolving,
    Retries,
    Retry,
    Route,
    RouteTimeouts,
    Splice,
    StaticResponse,
    Sticky,
    Timeouts,
    Transparent,
    UnixAddress,
    Unmatched,
    UrlRewrite,
    ValueMatch,
    ValueType,
    Way,
)

EVERYTHING = (Path(__file__).resolve().parents[1] / "everything.yaml").read_text()


def without_places(value: Any) -> Any:
    """The same with every `location` None: test_config.py looks at some of them."""
    if isinstance(value, tuple):
        return tuple(map(without_places, value))
    if isinstance(value, dict):
        return {key: without_places(one) for key, one in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed = {
        field.name: None if field.name == "location" else without_places(getattr(value, field.name))
        for field in fields(value)
    }
    return replace(value, **changed)


def exact(path: str) -> PathMatch:
    return PathMatch(PathType.EXACT, path)


def prefix(path: str) -> PathMatch:
    return PathMatch(PathType.PATH_PREFIX, path)


EXPECTED = Policy(
    listeners={
        "web": Listener(
            "web",
            Address("*", 8080),
            hostnames=("*.example.com",),
            proxy_protocol=ProxyHeader.ACCEPT,
            trusted_proxies=("10.0.0.0/8", "192.0.2.1/32", "fd00::1/128"),
            forwarded=ForwardedFields(
                x_forwarded_for=FieldPolicy.SET,
                x_forwarded_proto=FieldPolicy.PASS,
                x_forwarded_host=FieldPolicy.REMOVE,
                x_forwarded_port=FieldPolicy.APPEND,
                x_real_ip=FieldPolicy.SET,
                forwarded=FieldPolicy.APPEND,
                via=FieldPolicy.REMOVE,
            ),
            allow=("0.0.0.0/0", "::/0"),
            deny=("198.51.100.7/32",),
            limits=Limits(8192, 50, 500, 5),
            timeouts=Timeouts(1.0, 0.25, 5400.0, 0.0, 75.0),
        ),
        "local": Listener("local", UnixAddress("/run/l7proxy.sock"), mode=0o660),
        "hidden": Listener("hidden", UnixAddress("@l7proxy")),
        "tls": Listener("tls", Address("::1", 8443), Protocol.TLS, hostnames=("shop.example.com",)),
        "raw": Listener(
            "raw",
            Address("127.0.0.1", 0),
            Protocol.TCP,
            proxy_protocol=ProxyHeader.REQUIRE,
            trusted_proxies=("127.0.0.1/32",),
        ),
        "taken": Listener(
            "taken",
            Address("*", 15001),
            Protocol.TCP,
            transparent=Transparent(
                Interception.TPROXY,
                Way.OUTBOUND,
                ports=(80, 443),
                except_ports=(22,),
                except_blocks=("10.0.0.0/8", "fd00::/8"),
                except_users=("postgres", "1000", "0"),
                unmatched=Unmatched.REFUSE,
                keep_client_address=True,
            ),
        ),
        "arriving": Listener(
            "arriving",
            Address("0.0.0.0", 15006),
            Protocol.TLS,
            transparent=Transparent(Interception.REDIRECT),
        ),
    },
    routes=(
        Route(
            name="api",
            listeners=("web", "local"),
            hostnames=("api.example.com",),
            priority=-7,
            matches=(
                Match(
                    prefix("/v1/"),
                    "GET",
                    (
                        ValueMatch("x-canary", "1"),
                        ValueMatch("x-team", "a|b", ValueType.REGULAR_EXPRESSION),
                    ),
                    (ValueMatch("V", "1"), ValueMatch("v", "2")),
                ),
                Match(
                    exact("/v2"),
                    headers=(ValueMatch("x-a", "a"),),
                    query=(ValueMatch("q", "[0-9]+", ValueType.REGULAR_EXPRESSION),),
                ),
                Match(prefix("/v3")),
                Match(prefix("/v4")),
                Match(method="POST"),
            ),
            filters=Filters(
                HeaderChanges(
                    set=(("X-Env", "prod"), ("X-Team", "7")),
                    add=(("X-Tag", "a"), ("X-Tag", "b")),
                    remove=("X-Debug",),
                ),
                UrlRewrite(
                    "internal.example.com", PathModifier(PathModifierType.REPLACE_FULL_PATH, "/in")
                ),
                HeaderChanges(
                    set=(("Cache-Control", "no-store"),),
                    add=(("X-By", "l7"),),
                    remove=("Server",),
                ),
                Mirror("new", 5),
            ),
            timeouts=RouteTimeouts(1.0, 0.0, 120.0, 30.0),
            splice=Splice.UPGRADE,
            retry=Retry((502, 503), 2, 0.1),
            rate_limit=RateLimit(600, 20, 60.0, LimitBy.CLIENT),
            access=Access(
                allow_clients=("10.0.0.0/8",), deny_clients=("10.1.0.0/16", "10.2.0.1/32")
            ),
            backend_refs=(
                BackendRef("app", 3),
                BackendRef("new", 0),
                BackendRef("gone", 1, optional=True),
            ),
        ),
        Route(
            "rewrite",
            (Match(prefix("/r")),),
            (BackendRef("app"),),
            listeners=("web",),
            filters=Filters(
                url_rewrite=UrlRewrite(
                    path=PathModifier(PathModifierType.REPLACE_PREFIX_MATCH, "/")
                )
            ),
            splice=Splice.NEVER,
        ),
        Route(
            "copied",
            (Match(prefix("/c")),),
            (BackendRef("app"),),
            listeners=("web",),
            filters=Filters(mirror=Mirror("app")),
            splice=Splice.REQUEST,
        ),
        Route(
            "old",
            (Match(prefix("/old")),),
            redirect=RedirectTo(
                "https",
                "www.example.com",
                PathModifier(PathModifierType.REPLACE_PREFIX_MATCH, "/new"),
                8443,
                308,
            ),
        ),
        Route(
            "away",
            (Match(prefix("/away")),),
            redirect=RedirectTo(path=PathModifier(PathModifierType.REPLACE_FULL_PATH, "/x")),
        ),
        Route(
            "down",
            (Match(prefix("/down")),),
            respond=StaticResponse(
                503, (("Retry-After", "60"), ("Content-Type", "text/plain")), "Back soon\n"
            ),
        ),
        Route(
            "tea",
            (Match(prefix("/tea")),),
            respond=StaticResponse(418),
            rate_limit=RateLimit(5, 5),
        ),
        Route("never", (Match(prefix("/.git")),), deny=True),
        Route(
            "names",
            (Match(alpn=("h2", "http/1.1")),),
            (BackendRef("new"),),
            hostnames=("*.example.com",),
            listeners=("tls",),
            splice=Splice.CONNECTION,
            access=Access(
                allow_clients=("fd00::/8",),
                allow_sni=("a.example.com",),
                deny_sni=("*.a.example.com",),
            ),
        ),
        Route(
            "intercepted",
            (
                Match(
                    destinations=(
                        Destination("10.0.0.0/8", 5432),
                        Destination("192.0.2.1/32"),
                        Destination(None, 6379),
                        Destination("fd00::/8", 53),
                        Destination("fd00::/9"),
                    )
                ),
            ),
            (BackendRef("passthrough"),),
            listeners=("taken", "arriving"),
        ),
        Route(
            "stream",
            (Match(),),
            (BackendRef("raw"),),
            listeners=("raw",),
            access=Access(deny_clients=("192.0.2.0/24",)),
        ),
        Route(  # what a transparent listener brings with it
            "(unmatched)",
            (Match(),),
            (BackendRef("passthrough"),),
            listeners=("arriving",),
            priority=-1_000_001,
        ),
    ),
    backends={
        "app": Backend(
            "app",
            (
                Endpoint(Address("127.0.0.1", 9001)),
                Endpoint(UnixAddress("/run/app.sock")),
                Endpoint(NameAddress("db.internal", 5432), 5),
                Endpoint(Address("::1", 9002), 0),
            ),
            balance=Balance(BalanceType.HASH, HashOn.HEADER, "x-user"),
            sticky=Sticky("__Host-srv", 3600.0, "/", True),
            health=HealthCheck(
                type=ProbeType.HTTP,
                path="/healthz?full=1",
                host="app.internal",
                statuses=((200, 299), (404, 404)),
                body="ok",
                interval=5.0,
                timeout=0.5,
                healthy=1,
                unhealthy=5,
            ),
            ejection=Ejection(5, 1.0, 10.0, 50),
            slow_start=30.0,
            retries=Retries(1, 10),
            circuit=Circuit(100, 10, 20),
            panic=40,
            resolving=Resolving(30.0),
            proxy_protocol=ProxyVersion.V2,
        ),
        "new": Backend(
            "new",
            (Endpoint(NameAddress("localhost", 9003)),),
            balance=Balance(BalanceType.HASH, HashOn.SNI),
            health=HealthCheck(),
            retries=Retries(attempts=0),
            resolving=Resolving(60.0),
        ),
        "raw": Backend(
            "raw",
            (Endpoint(UnixAddress("@raw")),),
            balance=Balance(BalanceType.LEAST_CONNECTIONS),
            proxy_protocol=ProxyVersion.V1,
        ),
        "passthrough": Backend("passthrough", (), original=True),
    },
    source="p.yaml",
    access_log=AccessLogRules('%h "%r" %[reason]', 0.125, 60.0),
)


def test_everything_comes_out_as_it_was_written() -> None:
    report = check_text(EVERYTHING, "p.yaml")
    assert [error.message for error in report.errors] == []
    assert report.policy is not None
    read = without_places(report.policy)
    assert read.listeners == EXPECTED.listeners
    assert read.routes == EXPECTED.routes
    assert read.backends == EXPECTED.backends
    assert read == EXPECTED


def test_every_key_of_the_language_is_in_it() -> None:
    """A key that is added later has to be added above as well."""
    missing = [
        f"{path}.{name}"
        for path, table in tables()
        for name in table.keys
        if f"{name}:" not in EVERYTHING
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("round_robin", Balance()),
        ("least_connections", Balance(BalanceType.LEAST_CONNECTIONS)),
        ("random", Balance(BalanceType.RANDOM)),
        ("{hash: client}", Balance(BalanceType.HASH, HashOn.CLIENT)),
        ("{hash: path}", Balance(BalanceType.HASH, HashOn.PATH)),
        ("{hash: {header: X-A}}", Balance(BalanceType.HASH, HashOn.HEADER, "x-a")),
        ("{hash: {cookie: A}}", Balance(BalanceType.HASH, HashOn.COOKIE, "A")),
    ],
)
def test_balance(text: str, expected: Balance) -> None:
    assert backend(f"balance: {text}").balance == expected


@pytest.mark.parametrize(
    ("short", "whole"),
    [
        ("sticky: srv", "sticky: {cookie: srv}"),
        ("healthCheck: HTTP", "healthCheck: {type: HTTP}"),
        ("retries: 7", "retries: {attempts: 7}"),
        ("endpoints: [a:1], resolve: 7s", "endpoints: [{address: a:1}], resolve: {interval: 7s}"),
    ],
)
def test_short_forms(short: str, whole: str) -> None:
    assert backend(short) == backend(whole)


def backend(text: str) -> Backend:
    endpoints = "" if "endpoints" in text else "endpoints: [127.0.0.1:9000], "
    report = check_text(
        "listeners: {web: {address: 127.0.0.1:8080}}\n"
        "routes: [{name: all, backendRefs: [{name: app}]}]\n"
        f"backends: {{app: {{{endpoints}{text}}}}}\n"
    )
    assert report.policy is not None, report.render()
    found: Backend = without_places(report.policy.backends["app"])
    return found


# What is told of the defaults.


def tables(reader: Any = POLICY, path: str = "") -> Iterator[tuple[str, Table]]:
    """Every table of the language, with the keys that lead to it."""
    if isinstance(reader, Table):
        yield path, reader
        for name, key in reader.keys.items():
            yield from tables(key.reader, f"{path}.{name}".lstrip("."))
    elif isinstance(reader, Made | Record):
        yield from tables(reader.reader, path)
    elif isinstance(reader, ListOf | MapOf):
        yield from tables(reader.item, path)
    elif isinstance(reader, Kinds):
        for part in (reader.scalar, reader.sequence, reader.mapping):
            if part is not None:
                yield from tables(part, path)


def records(reader: Any = POLICY) -> Iterator[Record[Any]]:
    if isinstance(reader, Record):
        yield reader
    if isinstance(reader, Made | Record):
        yield from records(reader.reader)
    elif isinstance(reader, Table):
        for key in reader.keys.values():
            yield from records(key.reader)
    elif isinstance(reader, ListOf | MapOf):
        yield from records(reader.item)
    elif isinstance(reader, Kinds):
        for part in (reader.scalar, reader.sequence, reader.mapping):
            yield from records(part)


MADE_OF = [(record.reader, record.make, record.names) for record in records()] + [
    (LISTENER, Listener, {}),
    (BACKEND, Backend, {"healthCheck": "health", "resolve": "resolving"}),
]


NOTHING = (None, (), "")


def default_of(made: Any, name: str) -> Any:
    """What the dataclass has where nothing is said."""
    (field,) = (one for one in fields(made) if one.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


@pytest.mark.parametrize(
    ("table", "made", "names"), MADE_OF, ids=[table.noun for table, _, _ in MADE_OF]
)
def test_the_default_that_is_told_is_the_one_that_holds(
    table: Table, made: Any, names: dict[str, str]
) -> None:
    for name, key in table.keys.items():
        if key.required:
            assert key.default == ""
            continue
        holds = default_of(made, names.get(name, snake_case(name)))
        source = Source("default", key.default.strip("`"))
        node = nodes.compose(source)
        walker = Walker(source)
        value = None if node is None else key.reader.read(walker, node, name)
        if node is None or walker.problems or holds in NOTHING:
            # In words, or not told because it is told key by key: nothing, or all defaults.
            assert holds in NOTHING or holds == type(holds)(), name
            continue
        plain = value if not isinstance(value, list) else tuple(at.value for at in value)
        assert plain == holds, name


def test_the_defaults_of_routes() -> None:
    """A route is put together by hand: what its table tells, read as if it were written."""
    told = {name: key.default for name, key in ROUTE.reader.keys.items()}
    assert (told["priority"], told["splice"]) == ("0", "auto")
    assert (Route("r", ()).priority, Route("r", ()).splice) == (0, Splice.AUTO)
    assert (BackendRef("a").weight, BackendRef("a").optional) == (1, False)
