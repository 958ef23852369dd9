"""A document of sections, items and keys as YAML: a line for each key of an item.

Made by hand, for `yaml.dump` takes seconds for thousands of routes, and breaks lines where nobody
would. What is below a key is in flow style.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*\Z|[0-9]+(ms|s|m|h)\Z")
_WORDS = frozenset(("null", "true", "false", "yes", "no", "on", "off", "y", "n"))
_ODD = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def emit(sections: Mapping[str, Any]) -> str:
    """The YAML of a map of sections: maps or lists of items, which are maps; or values by keys."""
    return "\n".join(_lines(sections)) + "\n"


def _lines(policy: Mapping[str, Any]) -> Iterator[str]:
    for noun, items in policy.items():
        yield f"{noun}:"
        if isinstance(items, Mapping):
            for name, item in items.items():
                if not isinstance(item, Mapping):
                    yield f"  {_flow(name)}: {_flow(item)}"
                    continue
                yield f"  {_flow(name)}:"
                yield from (f"    {key}: {_flow(value)}" for key, value in item.items())
        else:
            for item in items:
                first = True
                for key, value in item.items():
                    yield f"  {'- ' if first else '  '}{key}: {_flow(value)}"
                    first = False


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_flow(key)}: {_flow(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _BARE.match(text) and text.lower() not in _WORDS:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + _ODD.sub(lambda odd: f"\\U{ord(odd[0]):08x}", escaped) + '"'
