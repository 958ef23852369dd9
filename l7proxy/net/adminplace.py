"""Where the admin server is. Small: a probe that runs each second needs no more of l7proxy."""

from __future__ import annotations

import os


def default_place() -> str | None:
    """Where it listens, and is asked, when nobody says where; None: there is no place for it."""
    place = os.environ.get("L7PROXY_ADMIN")
    if place:
        return place
    folder = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    return f"unix:{folder}/l7proxy.sock" if os.path.isdir(folder) else None


def is_unix(place: str) -> bool:
    """Whether it is the path of a unix socket."""
    return place.startswith(("unix:", "/"))
