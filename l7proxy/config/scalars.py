"""What YAML makes of a value, in words: the traps of YAML 1.1 named as what they are."""

from __future__ import annotations

import re

from l7proxy.config.nodes import Node, Scalar, Sequence

_WORDS = {
    "null": "nothing (null)",
    "float": "a number",
    "timestamp": "a date",
    "merge": "a merge key",
    "value": "a default key",
    "str": "text",
}
_SEXAGESIMAL = re.compile(r"[-+]?[0-9_]+(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_SHORT = 20  # digits; a number as long as the file is not worked out


def meaning(node: Node) -> str:
    """`no` -> "the boolean false", `12:30:00` -> "the number 45000 (base 60)", [..] -> "a list"."""
    if isinstance(node, Sequence):
        return "a list"
    if not isinstance(node, Scalar):
        return "a map"
    if node.tag == "bool":
        return f"the boolean {str(node.text.lower() in ('yes', 'true', 'on')).lower()}"
    if node.tag == "int" and len(node.text) <= _SHORT:
        try:
            return _number(node.text.replace("_", ""))
        except ValueError:  # `0b_` is an int to YAML 1.1, and no number to anybody
            return "a number"
    if node.tag == "float" and _SEXAGESIMAL.fullmatch(node.text):
        return "a number (base 60)"
    return _WORDS.get(node.tag, "a number")


def _number(text: str) -> str:
    sign, digits = ("-", text[1:]) if text[0] == "-" else ("", text.removeprefix("+"))
    if ":" in digits:
        value = 0
        for part in digits.split(":"):
            value = value * 60 + int(part)
        return f"the number {sign}{value} (base 60)"
    for prefix, base, name in (("0x", 16, "hexadecimal"), ("0b", 2, "binary"), ("0", 8, "octal")):
        rest = digits.removeprefix(prefix)
        if rest != digits and rest:
            return f"the number {sign}{int(rest, base)} ({name})"
    return f"the number {sign}{int(digits)}"
