"""Several files, one policy: the sections of all files, put together.

Each file may hold any of the three sections; their lists go one behind the other in the order of
the files' names, which is also the order that decides between routes that tie. A name that two
files give is found as a key written twice, or as a second route of that name.
"""

from __future__ import annotations

from l7proxy.config import language
from l7proxy.config.nodes import Mapping, Node, Scalar, Sequence
from l7proxy.config.walker import Walker

_KINDS: dict[str, type[Mapping] | type[Sequence]] = {
    "listeners": Mapping,
    "routes": Sequence,
    "backends": Mapping,
}


def merge(walker: Walker, roots: list[Node]) -> Mapping | None:
    """One tree for all files; None after reporting what is no map.

    The tree stands at offset 0: what the whole lacks is said about the folder.
    """
    sections: dict[str, list[tuple[Scalar, Node]]] = {}
    whole = Mapping(0, 0)
    sound = True
    for root in roots:
        if isinstance(root, Mapping):
            for text, pair in walker.entries(root).items():
                if text in _KINDS:
                    sections.setdefault(text, []).append(pair)
                else:
                    whole.pairs.append(pair)
        else:
            sound = language.POLICY.read(walker, root, "a policy") is not None
    whole.pairs += [_section(walker, text, pairs) for text, pairs in sections.items()]
    return whole if sound else None


def _section(walker: Walker, text: str, pairs: list[tuple[Scalar, Node]]) -> tuple[Scalar, Node]:
    """One section of all files.

    Where one of them is of the wrong kind, that one stands for all: then nobody knows which names
    there are, and nothing is said about references to them.
    """
    kind = _KINDS[text]
    wrong = [pair for pair in pairs if not isinstance(pair[1], kind)]
    if wrong:
        for _, value in pairs:
            language.POLICY.keys[text].reader.read(walker, value, f"`{text}`")
        return wrong[0]
    key, first = pairs[0]
    whole = kind(first.start, first.end)
    for _, value in pairs:
        if isinstance(value, Sequence) and isinstance(whole, Sequence):
            whole.items += value.items
        elif isinstance(value, Mapping) and isinstance(whole, Mapping):
            whole.pairs += walker.entries(value).values()
    return key, whole
