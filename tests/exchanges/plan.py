"""What is to happen: exchanges on connections, each drawn from a seed.

A script is one client: exchanges in their order, on one connection as long as it lasts, and how the
client behaves. `draw(seed, number, features)` gives it, to the client and to every origin alike: an
origin that is told a script's and an exchange's number knows how to answer, and what has to come.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from peers import stretch

KIB, MIB = 1 << 10, 1 << 20
ORIGINS = ("a", "b", "c")
FEATURES = frozenset(
    [
        *("http10", "hop", "pipelined", "trailers", "interim", "expect", "early", "broken"),
        *("silent", "upgrade", "abort", "half-close", "slow", "until-close", "close"),
    ]
)
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
MOST = 16 * MIB


@dataclass(frozen=True, slots=True)
class Way:
    """How bytes are sent: at most `piece` at once, the first `drip` bytes one by one; and received:
    at most `sip` at once; `pause` seconds after each of both; SO_RCVBUF, if any."""

    piece: int
    drip: int
    sip: int
    pause: float
    buffer: int


@dataclass(frozen=True, slots=True)
class Body:
    """`framing`: none, length, chunked, close. `chunks`: no chunk is longer."""

    framing: str
    seed: int
    size: int
    chunks: int = 0
    extensions: bool = False
    trailers: tuple[tuple[str, str], ...] = ()

    def data(self) -> Iterator[memoryview]:
        """The bytes themselves."""
        at = 0
        while at < self.size:
            piece = stretch(self.seed, at, min(self.size - at, 1 << 18))
            at += len(piece)
            yield piece

    def framed(self) -> Iterator[bytes | memoryview]:
        """As they are sent, but for the last chunk."""
        if self.framing != "chunked":
            yield from self.data()
            return
        rng = random.Random(self.seed)
        at = 0
        while at < self.size:
            most = min(self.size - at, rng.randint(1, self.chunks))
            piece = stretch(self.seed, at, most)
            extension = b';a=b;c="d"' if self.extensions and rng.random() < 0.5 else b""
            yield b"%x%b\r\n%b\r\n" % (len(piece), extension, bytes(piece))
            at += len(piece)

    def end(self) -> bytes:
        """What tells that it is over."""
        if self.framing != "chunked":
            return b""
        fields = "".join(f"{name}: {value}\r\n" for name, value in self.trailers)
        return b"0\r\n" + fields.encode() + b"\r\n"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its response.

    `expect`: "", "continue" (100 comes), "skip" or "send" (a final answer comes instead, and the
    client leaves the body out, or sends it all the same). `early`: the answer comes once so many
    bytes of the body have come; -1: after it. `ending`: what the origin does with its connection
    afterwards: keep, close (and says so), silent (closes after `delay` seconds and does not say
    so). `breaks`: "" or the place at which the origin breaks its answer off (before, head, body),
    `broken_at`: after so many bytes of the body, `break_by`: reset or end. `abort`: "" or what the
    client breaks off (request, response) after `abort_at` bytes of the body, by `abort_by`.
    """

    script: int
    number: int
    hop: bool  # fields that belong to one connection are sent, at both ends
    origin: str
    method: str
    version: int
    keep_alive: str  # what the client says: "", "close", "keep-alive"
    padding: int  # bytes of the query
    request: Body
    response: Body
    status: int
    response_version: int
    expect: str = ""
    interims: tuple[int, ...] = ()
    early: int = -1
    ending: str = "keep"
    delay: float = 0.0
    breaks: str = ""
    broken_at: int = 0
    break_by: str = "reset"
    abort: str = ""
    abort_at: int = 0
    abort_by: str = "reset"
    upgrade: bool = False
    rude: bool = False  # the origin of an upgrade ends its stream before it has the other one
    origin_way: Way = Way(1 << 20, 0, 1 << 18, 0.0, 0)

    @property
    def name(self) -> str:
        return f"{self.script}.{self.number}"

    @property
    def bodiless(self) -> bool:
        """Whether the response has no body, whatever its head says."""
        return self.method == "HEAD" or self.status in (204, 304)

    @property
    def safe(self) -> bool:
        """Whether it can always be sent again: it changes nothing, and no body is lost."""
        return self.method in IDEMPOTENT and self.request.framing == "none" and not self.upgrade

    @property
    def repeatable(self) -> bool:
        """Whether it may come twice: it does the same then (RFC 9110 section 9.2.2)."""
        return self.method in IDEMPOTENT

    @property
    def request_may_be_cut(self) -> bool:
        """Whether the origin may see only a part of the request."""
        return bool(self.abort) or self.early >= 0 or self.expect in ("skip", "send")

    @property
    def closing(self) -> str:
        """What happens to the client's connection afterwards: must, may or no."""
        if self.keep_alive == "close" or self.upgrade:
            return "must"
        if self.version == 0:
            return "may" if self.keep_alive == "keep-alive" else "must"
        if self.response.framing == "close" and not self.bodiless:
            return "may"
        if self.early >= 0 or self.expect in ("skip", "send") or self.breaks or self.abort:
            return "may"
        return "no"


@dataclass(frozen=True, slots=True)
class Script:
    """One client. `depth`: so many requests are sent before the answer to the first has come."""

    number: int
    exchanges: tuple[Exchange, ...]
    way: Way
    depth: int
    half_close: bool
    waits: float  # seconds between two exchanges


def _size(rng: random.Random, most: int) -> int:
    """Mostly small; sometimes exactly at, or beside, what buffers are large."""
    luck = rng.random()
    if luck < 0.12:
        return 0
    if luck < 0.22:
        return min(
            most,
            max(0, rng.choice([1, 512, 4096, 16384, 32768, 65536, 131072]) + rng.randint(-1, 1)),
        )
    if luck < 0.86:
        return min(most, int(2 ** rng.uniform(0, 16)))
    if luck < 0.97:
        return min(most, int(2 ** rng.uniform(16, 20)))
    return min(most, int(2 ** rng.uniform(20, 24)))


def _way(rng: random.Random, incoming: int, outgoing: int, slow: bool) -> Way:
    """Habits under which so many bytes take a second or two at most."""
    piece = max(int(2 ** rng.uniform(0, 20)), outgoing // 400)
    drip = rng.choice([0, 0, 0, 60, 400])
    sip = max(rng.choice([1, 1500, 1 << 16, 1 << 18, 1 << 18]), incoming // 400)
    buffer = rng.choice([0, 0, 0, 0, 4096]) if incoming < 16 * KIB else 0
    pause = 0.0
    if slow and rng.random() < 0.15:
        turns = outgoing / piece + drip + incoming / min(sip, buffer or sip) + 1
        pause = min(rng.choice([0.001, 0.01]), 0.6 / turns)
    return Way(piece, drip, sip, pause, buffer)


def _body(rng: random.Random, size: int, framing: str, trailers: bool) -> Body:
    chunks = max(int(2 ** rng.uniform(0, 20)), size // 300, 1)
    if framing != "chunked":
        return Body(framing, rng.getrandbits(48), size)
    fields: tuple[tuple[str, str], ...] = ()
    if trailers and rng.random() < 0.3:
        fields = (("X-Trailer", "one"), ("X-Trailer-Two", ""))
    return Body(framing, rng.getrandbits(48), size, chunks, rng.random() < 0.3, fields)


def _exchange(
    rng: random.Random, script: int, number: int, features: frozenset[str], most: int, slow: bool
) -> Exchange:
    def lucky(feature: str, chance: float) -> bool:
        drawn = rng.random() < chance  # drawn in any case: what follows stays the same
        return drawn and feature in features

    version = 0 if lucky("http10", 0.08) else 1
    method = rng.choice(
        ["GET"] * 5 + ["POST"] * 4 + ["PUT"] * 2 + ["HEAD", "DELETE", "OPTIONS", "PATCH"]
    )
    keep_alive = "close" if lucky("close", 0.06) else ""
    if version == 0 and rng.random() < 0.5 and not keep_alive:
        keep_alive = "keep-alive"
    # ---- the request's body
    size, framing = 0, "none"
    if method in ("POST", "PUT", "PATCH") or (method == "DELETE" and rng.random() < 0.3):
        size = _size(rng, most)
        framing = "chunked" if version == 1 and rng.random() < 0.35 else "length"
    if rng.random() < 0.15:
        size, framing = 0, "none"
    request = _body(rng, size, framing, "trailers" in features)
    # ---- the response
    status = rng.choice([200] * 8 + [201, 204, 304, 404, 500])
    size = _size(rng, most)
    framing = rng.choice(["length"] * 5 + ["chunked"] * 3 + ["close"])
    if framing == "close" and "until-close" not in features:
        framing = "chunked"
    response_version = 1
    if framing != "chunked" and lucky("http10", 0.05):
        response_version = 0
    if status == 204 or (status == 304 and framing != "length"):
        framing, size = "none", 0
    response = _body(rng, size, framing, "trailers" in features)
    ending, delay = "keep", 0.0
    if framing == "close" or response_version == 0 or lucky("close", 0.05):
        ending = "close"
    elif lucky("silent", 0.08):
        ending, delay = "silent", rng.choice([0.0, 0.0, 0.001, 0.02])
    more: dict[str, object] = {}
    if lucky("interim", 0.1):
        more["interims"] = tuple(rng.choice([102, 103]) for _ in range(rng.randint(1, 3)))
    if request.size and version == 1 and lucky("expect", 0.15):
        more["expect"] = rng.choice(["continue", "continue", "skip", "send"])
    elif request.framing != "none" and request.size and lucky("early", 0.12):
        more["early"] = rng.choice([0, rng.randrange(request.size)])
    # what has no body and must not be repeated looks as if it could be
    tempting = method in ("POST", "PATCH") and request.framing == "none"
    if lucky("broken", 0.3 if tempting else 0.05) and "expect" not in more and "early" not in more:
        more["breaks"] = "before" if tempting else rng.choice(["before", "head", "body"])
        more["broken_at"] = rng.randrange(size) if size else 0
        more["break_by"] = "reset" if framing in ("close", "none") else rng.choice(["reset", "end"])
        if more["breaks"] == "body" and (not size or method == "HEAD" or status in (204, 304)):
            more["breaks"] = "head"
    return Exchange(
        script=script,
        number=number,
        hop="hop" in features and script % 2 == 0,
        origin=rng.choice(ORIGINS),
        method=method,
        version=version,
        keep_alive=keep_alive,
        padding=int(2 ** rng.uniform(0, 11)),
        request=request,
        response=response,
        status=status,
        response_version=response_version,
        ending=ending,
        delay=delay,
        origin_way=_way(rng, request.size, response.size, slow),
        **more,  # type: ignore[arg-type]
    )


def _upgrade(
    rng: random.Random, script: int, number: int, features: frozenset[str], most: int
) -> Exchange:
    sent, came = _size(rng, most), _size(rng, most)
    return Exchange(
        script=script,
        number=number,
        hop=False,
        origin=rng.choice(ORIGINS),
        method="GET",
        version=1,
        keep_alive="",
        padding=int(2 ** rng.uniform(0, 8)),
        request=Body("none", rng.getrandbits(48), sent),
        response=Body("close", rng.getrandbits(48), came),
        status=101,
        response_version=1,
        ending="close",
        upgrade=True,
        rude="half-close" in features and rng.random() < 0.5,
        origin_way=_way(rng, sent, came, "slow" in features),
    )


@lru_cache(maxsize=256)
def draw(seed: int, number: int, features: frozenset[str] = FEATURES, most: int = MOST) -> Script:
    """Script `number` of the run `seed`: the same one whoever asks."""
    rng = random.Random(f"{seed} {number}")
    slow = "slow" in features
    count = rng.choice([1, 2, 4, 8, 16])
    exchanges = [_exchange(rng, number, i, features, most, slow) for i in range(count)]
    last = rng.random()
    if last < 0.12 and "upgrade" in features:
        exchanges.append(_upgrade(rng, number, count, features, most))
    elif last < 0.3 and "abort" in features:
        exchanges[-1] = _aborted(rng, exchanges[-1])
    depth = rng.choice([1, 1, 1, 2, 8]) if "pipelined" in features else 1
    if depth > 1:  # a reset that tells of one answer takes those before it with it
        exchanges = [replace(x, breaks="") if x.breaks == "body" else x for x in exchanges]
    incoming = max(exchange.response.size for exchange in exchanges)
    outgoing = max(exchange.request.size for exchange in exchanges)
    last_one = exchanges[-1]
    may_half_close = not (last_one.upgrade or last_one.abort or last_one.expect)
    return Script(
        number=number,
        exchanges=tuple(exchanges),
        way=_way(rng, incoming, outgoing, slow),
        depth=depth,
        half_close=rng.random() < 0.1 and may_half_close and "half-close" in features,
        waits=rng.choice([0.0, 0.0, 0.0, 0.002, 0.03]),
    )


def _aborted(rng: random.Random, one: Exchange) -> Exchange:
    """The same one, broken off by the client."""
    if one.breaks or one.expect or one.early >= 0:
        return one
    if one.request.size and rng.random() < 0.6:
        return replace(
            one,
            abort="request",
            abort_at=rng.randrange(one.request.size),
            abort_by=rng.choice(["reset", "end"]),
        )
    if one.response.size and not one.bodiless:
        return replace(one, abort="response", abort_at=rng.randrange(one.response.size))
    return one


# ---- what is in the heads beside that


def _fields(seed: int, names: tuple[str, ...]) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    values = ("", "x", 'a, b;c="d"', "~" * 200, "caf\u00e9".encode().decode("latin-1"), "0")
    return [(rng.choice(names), rng.choice(values)) for _ in range(rng.randint(0, 6))]


def request_fields(exchange: Exchange) -> list[tuple[str, str]]:
    """Fields that have to arrive at the origin as they are."""
    names = ("X-One", "x-two", "COOKIE", "User-Agent", "Accept", "X-Long-Name-" + "n" * 40)
    found = _fields(exchange.request.seed, names)
    return [(name, value) for name, value in found if value.isascii()]


def response_fields(exchange: Exchange) -> list[tuple[str, str]]:
    """Fields that have to arrive at the client as they are, those of one name in their order."""
    names = ("Set-Cookie", "Vary", "ETag", "X-Three", "WWW-Authenticate")
    found = _fields(exchange.response.seed, names)
    return [(name, value) for name, value in found if value.isascii()]
