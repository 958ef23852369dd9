"""What cannot go together, each rule with both places: of a listener, a route, a backend."""

from __future__ import annotations

from l7proxy.config.rules import backends, interception, listeners, routes

__all__ = ["backends", "interception", "listeners", "routes"]
