"""Which route answers: the routes of a listener, compiled. Pure.

The words are those of the Kubernetes Gateway API v1, HTTPRoute, and so is the precedence. Of all
matches of all routes that hold for a request the winner has, in this order,

1. the highest `priority` of its route, which is l7proxy's own;
2. the most specific hostname: an exact one, then the longest wildcard, then none at all
   ("Characters in a matching non-wildcard hostname", then "Characters in a matching hostname");
3. an `Exact` path, then a `RegularExpression`, then the longest `PathPrefix`;
4. a method (on TLS listeners: ALPN);
5. the most headers;
6. the most query parameters;
7. the earliest place in the file.

The place of regular expressions is "implementation-specific". They stand before prefixes as in
Envoy Gateway and Contour: behind them none could win beside a `PathPrefix /`. Among themselves they
tie, however long they are, since length says nothing about what a pattern matches.

The specification ranks *matches*. A hostname whose routes all miss the path is therefore no dead
end: the request falls through to the routes of a less specific hostname, and gets 404 only when
nothing at all matches. (Envoy picks a virtual host by name first and does not fall through; who
wants that writes a `PathPrefix /` route for the hostname.)

`PathPrefix` compares by path element: `/abc` matches `/abc`, `/abc/` and `/abc/x`, not `/abcd`; a
trailing slash in the pattern says nothing. A regular expression has to match the whole path.

The hostnames of a listener restrict which hosts it answers at all; a route's own hostnames say how
specific it is there.

    readings     the ways to read a path, and when two of them are a 400
    hosts        hostnames: exact ones, wildcards, and where they meet
    conditions   method, headers, query parameters, ALPN
    claims       which requests a route asks for, and on which listeners
    rules        one match of one route: rank and decision
    tables       where rules are looked up
    router       a listener's rules; compiling a policy, in slices
    splice       what `splice: auto` comes to, and why
    ways         which way its bytes go then
    explain      why a request goes where it goes
    difference   what another policy would change
    probes       the requests that tell it
"""

from __future__ import annotations

from l7proxy.routing.claims import (
    EVERY_PATH,
    EVERYTHING,
    Claim,
    applies,
    claims,
    takes_everything,
)
from l7proxy.routing.readings import equivalent, readings
from l7proxy.routing.router import (
    AMBIGUOUS,
    NO_STREAM_ROUTE,
    NO_TUNNEL,
    NOT_FOUND,
    SLICE,
    Router,
    compile_routers,
    compile_slices,
)
from l7proxy.routing.rules import NO_BACKEND, NO_WEIGHT
from l7proxy.routing.splice import SpliceChoice, chosen

__all__ = [
    "AMBIGUOUS",
    "EVERYTHING",
    "EVERY_PATH",
    "NOT_FOUND",
    "NO_BACKEND",
    "NO_STREAM_ROUTE",
    "NO_TUNNEL",
    "NO_WEIGHT",
    "SLICE",
    "Claim",
    "Router",
    "SpliceChoice",
    "applies",
    "chosen",
    "claims",
    "compile_routers",
    "compile_slices",
    "equivalent",
    "readings",
    "takes_everything",
]
