"""`l7proxy diff`: what another policy would change."""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from l7proxy.commands.common import PATH_HELP, Subparsers, print_json, told_if_unusable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from l7proxy.routing.difference import Change, Difference

_EXIT_CODES = """\
exit codes:
  0  the two mean the same
  1  they differ
  2  wrong usage, or one of them has errors
"""
_SHOWN = 60  # characters of a value


def add(commands: Subparsers) -> None:
    """Tell argparse about it."""
    diff = commands.add_parser(
        "diff",
        help="tell what another policy would change",
        description="Tell what would change in routing terms: what was added, removed, moved or"
        " given another value, and which requests would get another answer. Places in the files,"
        " comments and spelling do not count.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    diff.add_argument("old", metavar="OLD", help=PATH_HELP)
    diff.add_argument("new", metavar="NEW", help="the other one")
    diff.add_argument("--json", action="store_true", help="as JSON")
    diff.set_defaults(command=_diff)


def _diff(options: argparse.Namespace) -> int:
    from l7proxy import config
    from l7proxy.routing.difference import difference

    old, new = config.check(options.old), config.check(options.new)
    unusable = [told_if_unusable(report) for report in (old, new)]
    if any(unusable):
        return 2
    assert old.policy is not None
    assert new.policy is not None
    found = difference(old.policy, new.policy)
    if options.json:
        print_json(_as_dict(found))
    else:
        print("\n".join(_lines(found)))
        if not found.complete:
            print(
                f"l7proxy: only {found.probes:,} made-up requests were tried; more may differ",
                file=sys.stderr,
            )
    return 1 if found else 0


def _as_dict(found: Difference) -> dict[str, Any]:
    from l7proxy.routing.probes import shown

    return {
        "same": not found,
        "changes": [
            {
                "noun": one.noun,
                "name": one.name,
                "what": one.what,
                "fields": [
                    {"name": _key(field.name), "old": plain(field.old), "new": plain(field.new)}
                    for field in one.fields
                ],
            }
            for one in found.changes
        ],
        "effects": [
            {
                "listener": one.listener,
                "old": one.old,
                "new": one.new,
                "examples": [shown(asked) for asked in one.asked],
                "count": one.count,
            }
            for one in found.effects
        ],
        "probes": found.probes,
        "complete": found.complete,
    }


def plain(value: object) -> Any:
    """A value of the model as a policy writes it: by its keys, without what is left out as well."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        if type(value).__str__ is not object.__str__:
            return str(value)
        return {
            _key(one.name): plain(getattr(value, one.name))
            for one in fields(value)
            if one.name != "location" and getattr(value, one.name) != _default(one)
        }
    return value


def _default(one: Field[Any]) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


# Where a key of a policy is not the name in the model with a capital for each underscore.
_KEYS = {
    "access.allow_clients": "allow.clients",
    "access.allow_sni": "allow.sni",
    "access.deny_clients": "deny.clients",
    "access.deny_sni": "deny.sni",
    "balance.hash_on": "balance.hash",
    "ejection.most": "ejection.max",
    "filters.mirror.backend": "filters.mirror.backendRef",
    "health": "healthCheck",
    "query": "queryParams",
    "resolving": "resolve",
}


def _key(name: str) -> str:
    """The key of a policy that a name in the model stands for; both may have dots."""
    for model, key in _KEYS.items():
        if name == model or name.startswith(f"{model}."):
            name = key + name[len(model) :]
            break
    first, *rest = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in rest)


_MARKS = {"added": "+", "removed": "-", "moved": "~", "changed": "~"}


def _lines(found: Difference) -> Iterator[str]:
    from l7proxy.config.problems import printable
    from l7proxy.routing.probes import shown

    if not found:
        yield "no difference"
        return
    for one in found.changes:
        yield from map(printable, _change(one))
    if found.changes and found.effects:
        yield ""
    for effect in found.effects:
        yield printable(f"listener {effect.listener}: {effect.old} -> {effect.new}")
        for asked in effect.asked:
            yield printable(f"    {shown(asked)}")
        if effect.count > len(effect.asked):
            yield f"    and {effect.count - len(effect.asked):,} more like these"


def _change(one: Change) -> Iterator[str]:
    what = " (moved)" if one.what == "moved" else ""
    yield f"{_MARKS[one.what]} {one.noun} {one.name}{what}"
    for field in one.fields:
        yield f"    {_key(field.name)}: {_short(field.old)} -> {_short(field.new)}"


def _short(value: object) -> str:
    text = "(nothing)" if value is None else _written(plain(value))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        said = (f"{name}: {_written(one)}" for name, one in value.items() if one not in (None, []))
        return f"{{{', '.join(said)}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return "(nothing)" if value is None else str(value)
