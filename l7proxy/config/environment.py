"""`${NAME}` and `${NAME:-default}` in values. Pure: the environment is handed in.

Values are replaced in the tree, after YAML was read: no value can open a list, close a quote or
become a key. `$${` is a `${` that is meant as it stands. A value that is made of variables alone
and stands without quotes is a number or `true` and `false` where it looks like one, so that
`weight: ${WEIGHT}` works; whatever else it holds is text, `null`, `no` and `12:30` included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Environment

from l7proxy.config.bad import Bad
from l7proxy.config.nodes import FORBIDDEN, Mapping, Node, Scalar, Sequence
from l7proxy.config.problems import Variable, quoted
from l7proxy.config.walker import Stop, Walker

MAX_CHARACTERS = 16 * 1024 * 1024  # security limit: of all values that hold a variable

_PIECE = re.compile(
    r"(?P<literal>\$\$\{)"
    r"|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>(?:[^${}]|\$(?!\{))*))?\}"
    r"|(?P<wrong>\$\{)"
)
_NOTHING_ELSE = re.compile(r"(?:\$\{[^{}]*\})+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_FORMS = "write ${NAME} or ${NAME:-default}; a `${` that is meant as it stands is written `$${`"


def substitute(
    walker: Walker, roots: list[Node], environment: Environment[str, str]
) -> tuple[Variable, ...]:
    """Replace the variables in all values of the trees; which ones, in the order of the files.

    A value is replaced once, however many aliases lead to it. Reports what is not set or misspelled
    as errors.
    """
    written = walker.source.text
    if "${" not in written and "\\" not in written:  # in double quotes `\x24` is a `$`
        return ()
    found: list[tuple[int, Variable]] = []
    left = MAX_CHARACTERS
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Sequence):
            waiting += node.items
        elif isinstance(node, Mapping):
            for key, value in node.pairs:
                waiting.append(value)
                if not isinstance(key, Scalar):
                    waiting.append(key)
                elif "${" in key.text:
                    _refuse_in_key(walker, key)
        elif isinstance(node, Scalar) and "${" in node.text:
            found += _replace(walker, node, environment)
            left -= len(node.text)
            if left < 0:
                walker.error(node, f"variables make more than {MAX_CHARACTERS:,} characters")
                raise Stop
    return tuple(variable for _, variable in sorted(found, key=lambda pair: pair[0]))


def _refuse_in_key(walker: Walker, key: Scalar) -> None:
    at = key.text.index("${")
    hint = "write the key out: variables are for values"
    walker.error(key, "a key cannot hold a variable", hint, part=slice(at, at + 2))


def _replace(
    walker: Walker, node: Scalar, environment: Environment[str, str]
) -> list[tuple[int, Variable]]:
    variables: list[tuple[int, Variable]] = []
    pieces: list[str] = []
    faults: list[Bad] = []
    end = 0
    for piece in _PIECE.finditer(node.text):
        pieces.append(node.text[end : piece.start()])
        end = piece.end()
        if piece["literal"]:
            pieces.append("${")
            continue
        try:
            value, default = _value(piece, environment)
        except Bad as bad:
            faults.append(bad)
            if piece["wrong"]:
                break  # where it was meant to end is a guess
            continue
        place = walker.place(node, slice(*piece.span()))
        variables.append((node.start, Variable(piece["name"], place, default)))
        pieces.append(value)
    if faults:
        for fault in faults:
            walker.error(node, fault.message, fault.hint, part=fault.part)
        walker.unknown(node)
        return variables
    typed = node.plain and _NOTHING_ELSE.fullmatch(node.text)
    node.text = "".join([*pieces, node.text[end:]])
    node.tag = _tag(node.text) if typed else "str"
    return variables


def _value(piece: re.Match[str], environment: Environment[str, str]) -> tuple[str, bool]:
    """The value, and whether it is the default. As in a shell, what is empty counts as unset."""
    name, default = piece["name"], piece["default"]
    if name is None:
        rest = piece.string[piece.start() :]
        shown = rest[: rest.find("}") + 1] or rest
        part = slice(piece.start(), piece.start() + len(shown))
        raise Bad(f"{quoted(shown)} is no variable", _FORMS, part)
    part = slice(*piece.span())
    value = environment.get(name)
    if default is not None and not value:
        return default, True
    if value is None:
        hint = f"set it, or give it a default: ${{{name}:-...}}"
        raise Bad(f"the variable `{name}` is not set", hint, part)
    if (bad := FORBIDDEN.search(value)) is not None:
        raise Bad(
            f"the value of `{name}` holds what cannot stand in a policy (U+{ord(bad[0]):04X})",
            "it has to be text in UTF-8 without control characters",
            part,
        )
    return value, False


def _tag(text: str) -> str:
    if _NUMBER.fullmatch(text):
        return "int"
    return "bool" if text in ("true", "false") else "str"
