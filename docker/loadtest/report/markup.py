"""Elements of HTML and SVG. What they hold is escaped when it is written, so nothing that a run
says (a problem, a configuration, a command) can become markup."""

from __future__ import annotations

from xml.etree.ElementTree import Element, tostring

Child = Element | str


def node(tag: str, *children: Child, **attributes: str | float) -> Element:
    """An element. `class_` is class, `stroke_width` is stroke-width; of a float as many digits as a
    screen shows."""
    element = Element(
        tag,
        {
            name.rstrip("_").replace("_", "-"): value if isinstance(value, str) else f"{value:.6g}"
            for name, value in attributes.items()
        },
    )
    add(element, *children)
    return element


def add(element: Element, *children: Child) -> None:
    """Children at its end."""
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + child
        else:
            element.text = (element.text or "") + child


def document(root: Element) -> str:
    """The text of a page."""
    return "<!doctype html>\n" + tostring(root, encoding="unicode", method="html") + "\n"
