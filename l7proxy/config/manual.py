"""The reference manual (policies/README.md), made from the language's own tables.

What a key is stands in the tables, once, for editors and for the manual. Here stands what no single
key tells: the idea, which route wins, how values are written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from l7proxy.config import language
from l7proxy.config.jsonschema import default_value
from l7proxy.config.readers import Choice, Flag, OneOf, Text, Whole, alternatives
from l7proxy.config.schema import Kinds, ListOf, Made, MapOf, Record, Table
from l7proxy.logformat import HEADER, VARIABLES

INTRODUCTION = """\
# Policies

A policy is one YAML file that says what l7proxy listens on, and where it sends what it gets. There
are three nouns in it:

- **listeners**: the addresses that connections are accepted on, and what is read of a connection
  before it is routed;
- **routes**: which requests go where. Inside a route the words, and their meaning, are those of the
  Kubernetes Gateway API;
- **backends**: groups of endpoints that can stand in for each other.

```yaml
listeners:
  web: {address: 127.0.0.1:8080}

routes:
  - name: api
    hostnames: [api.example.com]
    matches: [{path: /v1}]
    backendRefs: [{name: api}]

  - name: everything-else
    backendRefs: [{name: app}]

backends:
  api: {endpoints: [127.0.0.1:9001, 127.0.0.1:9002]}
  app: {endpoints: [127.0.0.1:9003]}
```

The samples beside this file are worth copying. These commands look at a policy without running it:

| command | tells |
|---|---|
| `l7proxy check PATH` | everything that is wrong with it, with line, column and what to do about it |
| `l7proxy explain PATH GET http://api.example.com/v1/x` | which route wins, why the others do not, and what the backend gets |
| `l7proxy diff OLD NEW` | what a change means for requests |
| `l7proxy schema` | the JSON Schema that editors complete and check with |

With this first line, an editor that has a YAML language server knows every key:

```yaml
# yaml-language-server: $schema=schema.json
```

## Which route wins

Every route that takes part on the listener and matches the request is a candidate. Of them wins
the one with

1. the highest `priority`, which is 0 where nothing is said;
2. the most specific hostname: an exact one, then the wildcard with the most characters, then none;
3. an `Exact` path, then a `RegularExpression`, then the longest `PathPrefix`;
4. a `method` (on a TLS listener: `alpn`);
5. the most `headers`;
6. the most `queryParams`;
7. the most specific `destinations`: with a port, then the longest prefix;
8. the earlier place in the file, and of several files in the one whose name comes first.

A hostname whose routes all miss the request is no dead end: the routes of a less specific hostname
are candidates too. A request that nothing matches is answered with 404. A path that servers could
read in ways that lead to different routes (`/public/..%2fadmin`, `/admin;x`) is refused with 400.
`CONNECT` asks for a tunnel: only a match with `method: CONNECT` takes it (else 501), by the host
that it names; its path counts as `/`.

On a **TLS** listener the name in SNI is the hostname; a stream that no route takes ends with the
alert unrecognized_name. On a **TCP** listener nothing of what a client sends can be compared: the
first route takes it.

A **transparent** listener, of any protocol, gets connections that were going elsewhere, and
`destinations` compares where to. What no route matches goes on to there (`unmatched` says
otherwise), which counts as a route of the lowest priority, `(unmatched)` in logs and messages; the
backend `passthrough` is the same for a route of your own. `l7proxy sidecar` puts the rules in
place that bring connections to such listeners.

## How values are written

- **Durations** are whole numbers with units: `500ms`, `10s`, `5m`, `1h`, `1h30m`. A number alone
  is an error, since nobody could tell its unit.
- **Names** of listeners, routes and backends are letters, digits, `-`, `_` and `.`, at most 63.
- **Addresses** in brackets or with a star need quotes: `"[::1]:8080"`, `"*:80"`; so do wildcards:
  `"*.example.com"`. To YAML a bracket starts a list and a star an alias.
- **Client addresses** are CIDR blocks, `10.0.0.0/8` or `fd00::/8`; a single address is a block.
- **Numbers** are decimal. What YAML would turn into something else (`no`, `1_000`, `012`, `1:30`,
  dates) is an error that says so, and not a surprise.
- **Anchors** and merge keys (`&name`, `*name`, `<<: *name`) work, within one file.

### Variables

`${NAME}` in a value is replaced from the environment, `${NAME:-default}` where that is unset or
empty. It is an error when there is neither. Values are replaced after YAML has been read, so they
cannot change the structure. A value that is a variable alone, without quotes, may be a number or
`true` or `false`; a key cannot hold a variable, and `$${` is a `${` that is meant as it stands.

```yaml
listeners:
  web:
    address: ${HOST:-127.0.0.1}:${PORT:-8080}
    limits:
      connections: ${CONNECTIONS:-10000}
```

Inside of `[...]` and `{...}` a variable needs quotes: `endpoints: ["${BACKEND:-127.0.0.1:9000}"]`.

### Several files

Every command that takes a policy takes a folder as well. Its `*.yaml` and `*.yml` are one policy,
in the order of their names; each may hold any of the three sections, and names are unique across
all of them. Sub-folders and hidden files are left alone, so a Kubernetes ConfigMap can be mounted
as it is.
"""  # noqa: E501 - rows of a table are one line


def variables() -> str:
    """The table of what a format string may have."""
    rows = [
        "### Format strings\n",
        "A format may mix the words of HAProxy, of Apache, and ours, which are there for all.",
        "A value is `-` where there is none. Control characters, bytes beyond ASCII, quotes,",
        "backslashes and, outside of double quotes, spaces are escaped (`\\x20`): no client can",
        "forge a line or a field. `%%` is a percent sign, `%{+Q}r` puts quotes around.\n",
        "`%b %s %t %T %U %H` are something else to HAProxy. They are Apache's here, and an error",
        "in a format that has words which only HAProxy knows. Times are UTC.\n",
        "| ours | HAProxy | Apache | |",
        "|---|---|---|---|",
    ]
    for one in VARIABLES:
        haproxy, apache = (
            " ".join(f"`%{word}`" for word in words) for words in (one.haproxy, one.apache)
        )
        name = f"{one.name}(NAME)" if one.name == HEADER else one.name
        rows.append(f"| `%[{name}]` | {haproxy} | {apache} | {one.doc} |")
    return "\n".join(rows) + "\n"


@dataclass(frozen=True, slots=True)
class _Section:
    """What stands above the table of one object, and behind it."""

    prose: str
    example: str = ""
    behind: str = ""


_SECTIONS = {
    "listeners": _Section(
        "Listeners stand in a map, each under its name.",
        """\
listeners:
  web:
    address: "*:80"
    trustedProxies: [10.0.0.0/8]
    limits: {connections: 5000}
  postgres: {address: 127.0.0.1:5432, protocol: TCP}
""",
    ),
    "routes": _Section(
        "Routes stand in a list. A route does exactly one thing with what it matched:"
        " `backendRefs` forwards it, `respond` and `redirect` answer it, `deny: true` refuses it.",
        """\
routes:
  - name: canary
    hostnames: [shop.example.com]
    matches:
      - path: /cart
        headers: {x-canary: "1"}
    backendRefs: [{name: app, weight: 9}, {name: app-next, weight: 1}]

  - name: old-address
    hostnames: [www.example.com]
    redirect: {hostname: shop.example.com, status: 301}

  - name: app
    backendRefs: [{name: app}]

backends:
  app: {endpoints: [127.0.0.1:9000]}
  app-next: {endpoints: [127.0.0.1:9001]}
""",
    ),
    "backends": _Section(
        "Backends stand in a map, each under its name.",
        """\
backends:
  app:
    endpoints: [127.0.0.1:9000, {address: app.internal:9000, weight: 2}]
    balance: least_connections
    healthCheck: {type: HTTP, path: /healthz, interval: 5s}
    circuit: {connections: 2000}
""",
    ),
    "accessLog": _Section(
        "A folder's files say it once.",
        """\
accessLog:
  format: '%h - %u %t "%r" %>s %b "%{User-Agent}i" %[endpoint] %[reason]'
  sample: 10%
  liveEvery: 10m
""",
        behind=variables(),
    ),
}


def text() -> str:
    """The manual in Markdown."""
    parts = [INTRODUCTION]
    for name, key in language.POLICY.keys.items():
        section = _SECTIONS[name]
        parts.append(f"## {_capital(name)}\n")
        parts.append(f"{key.doc} {section.prose}\n")
        if section.example:
            parts.append(f"```yaml\n{section.example}```\n")
        (noun,) = [table for table, _ in _tables(key.reader)]
        parts += _objects(noun, level=3, heading=_capital(noun.noun))
        if section.behind:
            parts.append(section.behind)
    return "\n".join(parts).rstrip("\n") + "\n"


def _objects(table: Table, level: int, heading: str) -> Iterator[str]:
    """The section of one object, then those of the objects inside of it."""
    yield f"{'#' * level} {heading}\n"
    yield "\n".join(_rows(table)) + "\n"
    yield from _words(table)
    for name, key in table.keys.items():
        for inner, several in _tables(key.reader):
            yield from _objects(
                inner, min(level + 1, 5), _inner_heading(name, inner, table, several)
            )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _inner_heading(key: str, inner: Table, outer: Table, several: bool) -> str:
    """ "`limits` of a listener"; "A header in `headers` of a match"."""
    noun = f"`{key}`"
    if several or inner.noun.strip("`") != key:
        noun = f"{_capital(inner.noun)} in `{key}`"
    return f"{noun} of {outer.noun}"


def _rows(table: Table) -> Iterator[str]:
    yield "| key | holds | left out | |"
    yield "|---|---|---|---|"
    for name, key in table.keys.items():
        left_out = "**required**" if key.required else _default(key.default)
        if not left_out and _tables(key.reader):
            left_out = "see below"
        yield f"| `{name}` | {_cell(_holds(key.reader, name))} | {left_out} | {_cell(key.doc)} |"


def _default(default: str) -> str:
    return f"`{default}`" if default and default_value(default) is not None else _cell(default)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _words(table: Table) -> Iterator[str]:
    """What each word means that keys may hold; keys with the same words together."""
    keys: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, key in table.keys.items():
        choice = _below(key.reader)
        if isinstance(choice, Kinds):
            choice = _below(choice.scalar)
        if isinstance(choice, Choice) and choice.docs:
            words = tuple((word, choice.docs[word]) for word in choice.known)
            keys.setdefault(words, []).append(f"`{name}`")
    for words, names in keys.items():
        few = len(names) == 1
        yield f"{names[0] if few else 'Each of them'} is one of\n"
        yield "\n".join(f"- `{word}`: {doc}" for word, doc in words) + "\n"


def _below(reader: Any) -> Any:
    """The reader that looks at the node itself."""
    while isinstance(reader, Made | Record):
        reader = reader.reader
    return reader


def _tables(reader: Any) -> list[tuple[Table, bool]]:
    """The tables that a reader leads to directly, and whether there are several entries of it.

    The same keys in a list and in a map are one table, told by the one with more keys.
    """
    reader = _below(reader)
    if isinstance(reader, Table):
        return [(reader, False)]
    if isinstance(reader, ListOf | MapOf):
        return [(table, True) for table, _ in _tables(reader.item)]
    if isinstance(reader, Kinds):
        kinds = [kind for kind in (reader.scalar, reader.mapping, reader.sequence) if kind]
        found = [one for kind in kinds for one in _tables(kind)]
        return sorted(found, key=lambda one: -len(one[0].keys))[:1]
    return []


def _holds(reader: Any, key: str) -> str:
    """What may stand there, in a few words."""
    reader = _below(reader)
    if isinstance(reader, Table):
        short = f"{_holds(reader.keys[reader.short].reader, key)}; or " if reader.short else ""
        return f"{short}a map with {_listed(reader)}"
    if isinstance(reader, ListOf):
        return f"a list, each {reader.noun}"
    if isinstance(reader, MapOf):
        return f"a map, `{reader.shown}`"
    if isinstance(reader, Kinds):
        kinds = [kind for kind in (reader.scalar, reader.sequence, reader.mapping) if kind]
        return "; or ".join(dict.fromkeys(_holds(kind, key) for kind in kinds))
    if isinstance(reader, Whole):
        unit = f" {reader.unit}" if reader.unit else ""
        return f"a number from {reader.least:,} to {reader.most:,}{unit}"
    if isinstance(reader, Flag):
        return "`true` or `false`"
    if isinstance(reader, OneOf):
        return alternatives(map(str, reader.numbers))
    if isinstance(reader, Choice):
        return alternatives(f"`{word}`" for word in reader.known)
    if isinstance(reader, Text):
        shown = ", ".join(f"`{example}`" for example in reader.examples[:3])
        return f"{reader.kind or 'text'}{f': {shown}' if shown else ''}"
    raise TypeError(f"nothing in the manual tells of {type(reader).__name__}")


def _listed(table: Table) -> str:
    return re.sub(r", (`\w+`)$", r" and \1", ", ".join(f"`{key}`" for key in table.keys))
