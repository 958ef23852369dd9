"""What `l7proxy top` shows, once: as text, and as JSON for scripts. Pure.

The JSON is stable: keys are added, never renamed or taken away. `format` would tell if that could
not be kept.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from l7proxy.top.figures import clean, count, duration, flow, often, share
from l7proxy.top.reading import Picture
from l7proxy.top.views import CONNECTIONS, VIEWS, View, arranged, laid_out

FORMAT = 1
_WIDE = 160  # columns of a table that goes into a file or a pipe


def as_document(picture: Picture, limit: int, text: str = "") -> dict[str, Any]:
    """Seconds, bytes and rates in bytes or events a second; null where a rate is not known.

    `text` chooses connections, `limit` is how many are told at most, those with the largest rate
    first.
    """
    stats, rates = picture.stats, picture.rates
    connections = arranged(CONNECTIONS, picture, CONNECTIONS.sort, True, text)[:limit]
    return {
        "format": FORMAT,
        "version": stats["version"],
        "seconds": round(picture.seconds, 3),
        "uptime_seconds": stats["uptime_seconds"],
        "condition": stats["condition"],
        "datapath": stats["datapath"],
        "workers": stats["workers"],
        "policy": {name: stats["policy"][name] for name in ("generation", "source")},
        "live": {
            "connections": stats["connections"]["active"],
            "spliced": stats["pairs"]["spliced"],
            "relayed": stats["pairs"]["relayed"],
        },
        "rates": {
            "to_client": _known(rates.to_client),
            "to_backend": _known(rates.to_backend),
            "kernel": _known(rates.kernel),
            "user": _known(rates.user),
            "kernel_share": _known(rates.share, 6),
            "accepted": _known(rates.accepted),
            "errors": _known(rates.errors),
        },
        "listeners": [_row(row) for row in picture.listeners],
        "routes": [_row(row) for row in picture.routes],
        "backends": [_row(row) for row in picture.backends],
        "errors": [_row(row) for row in picture.errors],
        "connections": [_row(row) for row in connections],
        "connections_total": picture.total,
    }


def _known(value: Any, digits: int = 3) -> Any:
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    return value


def _row(row: Any) -> dict[str, Any]:
    found = {name: _known(value) for name, value in asdict(row).items()}
    if "age" in found:  # a connection; `id` is how DELETE /connections/{id} knows it
        found = {"id": found.pop("name"), **found}
    return found


def as_text(picture: Picture, limit: int, text: str = "") -> str:
    """The summary, the backends and the connections as one plain text."""
    stats, rates = picture.stats, picture.rates
    condition = stats["condition"]
    lines = [
        f"l7proxy {stats['version']}  {condition['is']}  up {duration(stats['uptime_seconds'])}"
        f"  {stats['workers']['running']}/{stats['workers']['configured']} workers"
        f"  {stats['datapath']}"
        f"  policy {stats['policy']['generation']}: {clean(stats['policy']['source'])}",
        f"to clients {flow(rates.to_client)}  to backends {flow(rates.to_backend)}"
        f"  kernel {share(rates.share)}  new {often(rates.accepted)}"
        f"  errors {often(rates.errors)}",
        f"live {count(stats['connections']['active'])}"
        f"  spliced {count(stats['pairs']['spliced'])}"
        f"  relayed {count(stats['pairs']['relayed'])}",
    ]
    for problem in condition["problems"]:
        why = f" ({problem['why']})" if problem["why"] else ""
        lines.append(f"! {clean(problem['what'] + why)}")
    for view in VIEWS:
        only = text if view is CONNECTIONS else ""
        rows = arranged(view, picture, view.sort, view.descends(view.sort), only)
        if view is CONNECTIONS:
            rows = rows[:limit]
        if rows:
            lines += ["", *_table(view, rows)]
        if view is CONNECTIONS and picture.total > len(rows):
            lines.append(f"{len(rows)} of {picture.total:,} connections")
    return "\n".join(lines)


def _table(view: View, rows: list[Any]) -> list[str]:
    widths, cells = laid_out(view, rows, _WIDE)
    head = []
    for number, wide in widths:
        column = view.columns[number]
        head.append(f"{column.title:>{wide}}" if column.number else f"{column.title:<{wide}}")
    return [" ".join(cells_of).rstrip() for cells_of in [head, *cells]]
