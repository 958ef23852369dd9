"""`l7proxy explain`: where a request goes, and why it does not go elsewhere."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from l7proxy.commands import asking
from l7proxy.commands.common import PATH_HELP, Subparsers, print_json, told_if_unusable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from l7proxy.commands.asking import Asked
    from l7proxy.commands.outcome import Outcome
    from l7proxy.model import Location, Match

_EXAMPLES = """\
examples:
  l7proxy explain policy.yaml GET http://api.example.com/v1/x -H 'x-canary: 1'
  l7proxy explain policy.yaml GET /healthz --listener web -H 'Host: app'
  l7proxy explain policy.yaml GET https://db.example.com/       a TLS listener, by that name in SNI
  l7proxy explain policy.yaml tls secure --sni db.example.com --alpn h2
  l7proxy explain policy.yaml tcp postgres --client 10.1.2.3
  l7proxy explain policy.yaml tcp outbound --destination 10.1.2.3:5432

exit codes:
  0  explained, whatever the answer is
  1  the policy has errors, or it is not clear what is asked
  2  wrong usage
"""


_MOST = 20  # other routes that are shown of a kind


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    explain = commands.add_parser(
        "explain",
        help="tell where a request goes, and why",
        description="Tell which listener, route and match answer a request or a stream, why every"
        " other route loses, and what the backend gets. Nothing is sent.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("policy", metavar="PATH", help=PATH_HELP)
    explain.add_argument("what", metavar="METHOD", help="the method; or `tls` or `tcp`: a stream")
    explain.add_argument("target", metavar="URL", help="the URL or path; of a stream the listener")
    explain.add_argument(
        "-H",
        "--header",
        type=asking.header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="a header of the request; may be repeated",
    )
    explain.add_argument("--listener", metavar="NAME", help="the listener that is asked")
    explain.add_argument(
        "--client",
        type=asking.client_address,
        metavar="IP",
        help="whom the connection is from, or whom its PROXY header names (default:"
        f" {asking.CLIENT}; on a unix socket nobody's address)",
    )
    explain.add_argument(
        "--destination",
        type=asking.destination,
        metavar="IP:PORT",
        help="on a transparent listener: where the connection was going",
    )
    explain.add_argument("--sni", metavar="NAME", help="of a TLS stream: the name in SNI")
    explain.add_argument(
        "--alpn",
        action="append",
        default=[],
        metavar="PROTOCOL",
        help="of a TLS stream: a protocol that the client offers; may be repeated",
    )
    explain.add_argument("--json", action="store_true", help="as JSON")
    explain.set_defaults(command=_explain)


def _explain(options: argparse.Namespace) -> int:
    from l7proxy import config
    from l7proxy.commands import outcome

    report = config.check(options.policy)
    if told_if_unusable(report):
        return 1
    assert report.policy is not None
    asked = asking.read(report.policy, options)
    found = _as_dict(asked, outcome.find(report.policy, asked))
    if options.json:
        print_json(found)
    else:
        print("\n".join(_lines(found)))
    return 0


# ---- as data


def _as_dict(asked: Asked, outcome: Outcome) -> dict[str, Any]:
    listener = asked.listener
    found: dict[str, Any] = {
        "listener": {
            "name": listener.name,
            "address": str(listener.address),
            "protocol": str(listener.protocol),
            "at": _at(listener.location),
            "why": asked.chosen,
        },
        "asked": _asked(asked, outcome),
        "client": {"address": outcome.client, "fromTrustedProxy": outcome.trusted},
        "action": outcome.action,
        "answer": outcome.what,
        "status": outcome.status,
        "route": None,
        **outcome.details,
        "others": [],
        "readings": [],
    }
    why = outcome.explanation
    if why is None:
        return found
    if why.route is not None and why.match is not None:
        match = why.route.matches[why.match]
        found["route"] = {
            "name": why.route.name,
            "at": _at(why.route.location),
            "hostname": why.hostname,
            "match": _in_words(match, stream=listener.protocol != "HTTP"),
            "matchAt": _at(match.location),
        }
    found["others"] = [
        {
            "name": one.route.name,
            "at": _at(one.route.location),
            "matches": one.matched,
            "criterion": one.criterion,
            "why": one.why,
        }
        for one in why.others
    ]
    found["readings"] = [
        {"name": one.name, "path": one.path, "route": one.route} for one in why.readings
    ]
    return found


def _asked(asked: Asked, outcome: Outcome) -> dict[str, Any]:
    head = outcome.head
    if head is not None:
        return {"method": head.method, "host": head.host, "path": head.path, "query": head.query}
    if asked.hello is not None:
        return {"sni": asked.hello.sni, "alpn": list(asked.hello.alpn)}
    return {}


def _at(location: Location | None) -> str:
    return "" if location is None else str(location)


def _in_words(match: Match, *, stream: bool) -> str:
    """`stream`: nothing is there that could have a path."""
    parts = [] if stream else [f"{match.path.type} {match.path.value}"]
    if match.method is not None:
        parts.append(f"method {match.method}")
    parts += [f"header {one.name} {one.type} {one.value!r}" for one in match.headers]
    parts += [f"query parameter {one.name} {one.type} {one.value!r}" for one in match.query]
    if match.alpn:
        parts.append(f"ALPN {' or '.join(match.alpn)}")
    if match.destinations:
        parts.append(f"destination {' or '.join(map(str, match.destinations))}")
    return ", ".join(parts) or "everything"


# ---- for people


def _lines(found: dict[str, Any]) -> Iterator[str]:
    from l7proxy.routing.ways import lines

    listener, route = found["listener"], found["route"]
    client = found["client"]
    yield _row(
        "listener",
        f"{listener['name']} ({listener['protocol']}, {listener['address']}) at {listener['at']}:"
        f" {listener['why']}",
    )
    trusted = ", told by a trusted proxy" if client["fromTrustedProxy"] else ""
    yield _row("client", f"{client['address']}{trusted}")
    if route is not None:
        host = f" for {route['hostname']}" if route["hostname"] else ""
        place = f" at {route['at']}" if route["at"] else ", which comes with a transparent listener"
        yield _row("route", f"{route['name']}{place}{host}")
        place = f" at {route['matchAt']}" if route["matchAt"] else ""
        yield _row("match", f"{route['match']}{place}")
    if found["answer"]:
        yield _row("answer", found["answer"])
    for name, value in found.get("headers", []):
        yield _row("", f"{name}: {value}")
    if found.get("body"):
        yield from _block("body", found["body"])
    for at, backend in enumerate(found.get("backends", [])):
        yield _row("" if at else "goes to", _backend(backend))
    if "splice" in found:
        splice = found["splice"]
        by = "chosen by auto: " if splice["auto"] else ""
        yield _row("splice", f"{splice['mode']}, {by}{splice['why']}")
        for name, what in lines(splice["ways"]):
            yield _row("", f"{name}: {what}")
    if "head" in found:
        yield from _block("head", found["head"].replace("\r\n", "\n"))
    if found["readings"]:
        yield ""
        yield "the path can be read in several ways:"
        for one in found["readings"]:
            yield _row("", f"{one['name']}: {one['path']} leads to {one['route'] or 'no route'}")
    yield from _others(found["others"])


def _others(others: list[dict[str, Any]]) -> Iterator[str]:
    """Those that match and lose, and of the rest the first few."""
    matching = [one for one in others if one["matches"]]
    missing = [one for one in others if not one["matches"]]
    for state, some in (("match too", matching), ("do not match", missing)):
        if not some:
            continue
        yield ""
        yield f"other routes that {state}:"
        for one in some[:_MOST]:
            place = f" at {one['at']}" if one["at"] else ""
            yield _row("", f"{one['name']}{place}: {one['why']}")
        if len(some) > _MOST:
            yield _row("", f"and {len(some) - _MOST:,} more, which --json tells")


def _row(name: str, text: str) -> str:
    from l7proxy.config.problems import printable

    return printable(f"{name:9} {text}".rstrip())


def _block(name: str, text: str) -> Iterator[str]:
    for at, line in enumerate(text.rstrip("\n").split("\n")):
        yield _row("" if at else name, line)


def _backend(backend: dict[str, Any]) -> str:
    share = f"{backend['name']} {backend['percent']:g}%"
    if "status" in backend:
        return f"{share}: it is not there, and answered with {backend['status']}"
    endpoints = backend["endpoints"]
    shown = ", ".join(
        one["address"] + (f" {one['percent']:g}%" if len(endpoints) > 1 else "")
        for one in endpoints[:8]
    )
    more = f" and {len(endpoints) - 8} more" if len(endpoints) > 8 else ""
    how = [backend["balance"]] if len(endpoints) > 1 else []
    if "sticky" in backend:
        how.append(f"sticky by cookie {backend['sticky']}")
    if "proxyProtocol" in backend:
        how.append(f"PROXY protocol {backend['proxyProtocol']}")
    return f"{share}: {shown}{more}" + (f" ({', '.join(how)})" if how else "")
