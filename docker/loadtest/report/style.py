"""How each contender looks in charts: a colour and a mark for each family, dashes within it.

Colour is never alone: families differ by the shape of their marks, members by their dashes and by
what is cut out of the mark. The colours are in style.css, by the classes f0 (direct), f1 (l7proxy),
f2, f3, f4 (the others). They are told apart with each kind of colour blindness, by Machado's
matrices, at a distance of 15 or more in CIELAB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .goals import SUBJECT
from .statistics import DIRECT

OURS = "l7proxy"
FAMILIES = 5  # that style.css has colours for
DASHES = 4  # and dashes


@dataclass(frozen=True, slots=True)
class Style:
    """`family` and `member` count from 0; `rank`: drawn later, so above those with a lower one."""

    name: str
    family: int
    member: int
    rank: int

    @property
    def key(self) -> str:
        """Its name as a class."""
        return "c-" + re.sub(r"[^a-zA-Z0-9-]", "-", self.name)

    @property
    def classes(self) -> str:
        """For everything of it."""
        emphasis = ("", " ours", " ours subject")[self.rank]
        family = self.family if self.family < 2 else 2 + (self.family - 2) % (FAMILIES - 2)
        return f"{self.key} f{family} m{self.member % DASHES}{emphasis}"

    def marker(self, x: float, y: float) -> str:
        """The path of its mark around a point: the shape is its family's, what is cut out of it
        (nothing, a dot, a bar across or upright) its own."""
        holes = (
            "",
            f"M{x - 1.7:.1f},{y:.1f}a1.7,1.7 0 1 0 3.4,0a1.7,1.7 0 1 0 -3.4,0z",
            f"M{x - 2.6:.1f},{y - 0.8:.1f}h5.2v1.6h-5.2z",
            f"M{x - 0.8:.1f},{y - 2.6:.1f}v5.2h1.6v-5.2z",
        )
        return self._shape(x, y) + holes[self.member % DASHES]

    def _shape(self, x: float, y: float) -> str:
        r = 4.6
        match self.family % 5:
            case 0:  # a cross
                return f"M{x - r:.1f},{y - r:.1f}l{2 * r},{2 * r}m{-2 * r},0l{2 * r},{-2 * r}"
            case 1:  # a disc
                return f"M{x - r:.1f},{y:.1f}a{r},{r} 0 1 0 {2 * r},0a{r},{r} 0 1 0 {-2 * r},0z"
            case 2:  # a square
                return f"M{x - r:.1f},{y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z"
            case 3:  # a triangle
                return f"M{x:.1f},{y - r - 0.6:.1f}l{r + 0.6},{2 * r}h{-2 * r - 1.2}z"
            case _:  # a diamond
                side = r + 0.9
                return f"M{x:.1f},{y - side:.1f}l{side},{side}l{-side},{side}l{-side},{-side}z"


def styles(names: Sequence[str]) -> dict[str, Style]:
    """One for each contender, in their order."""
    families = [DIRECT, OURS]
    members: dict[str, int] = {}
    found = {}
    for name in names:
        family = name.split("-")[0]
        if family not in families:
            families.append(family)
        member = members.get(family, 0)
        members[family] = member + 1
        rank = 2 if name == SUBJECT else int(family == OURS)
        found[name] = Style(name, families.index(family), member, rank)
    return found
