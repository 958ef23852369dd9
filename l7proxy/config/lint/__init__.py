"""What is legal and surely wrong, or true and easily forgotten: warnings and notes of `check`.

A warning is never a guess: what it says holds for every request. What can only be seen by trying
all requests is left unsaid.
"""

from __future__ import annotations

from l7proxy.config.language import Draft
from l7proxy.config.lint import backends, hosts, listeners, routes, shadows, splicing
from l7proxy.config.walker import Walker
from l7proxy.model import Policy


def check(walker: Walker, draft: Draft, policy: Policy) -> None:
    """Reports warnings about a policy without errors; `draft` knows where everything stands."""
    listeners.check(walker, draft)
    routes.check(walker, draft, policy)
    backends.check(walker, draft, policy)
    hosts.check(walker, draft, policy)
    taken = shadows.check(walker, draft, policy)
    for some, written in zip(taken, draft.listeners or [], strict=True):
        if not some:
            listeners.without_route(walker, written)
    splicing.check(walker, draft, policy)
