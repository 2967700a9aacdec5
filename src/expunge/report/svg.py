"""A matplotlib figure as inline SVG that belongs to its page.

The library's file is made for a folder, not for a page: its `style` attributes need a lax content
security policy, its style sheet and its ids leak into the document, its colours know no dark mode. Here
styles become presentation attributes, ids carry the figure's name, and every colour of `PALETTE` becomes
a class that the page's style sheet can restate.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import AbstractContextManager
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

PALETTE = {
    "ink": "#22262b",
    "muted": "#6a717a",
    "rule": "#c9ced4",
    "shade": "#e9ecef",
    "forget": "#b5420d",
    "retain": "#1f5ea8",
    "reference": "#0b7a69",
    "control": "#75489b",
    "extra": "#8a6d00",
    "target": "#dcefe6",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "expunge",
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
    "axes.edgecolor": PALETTE["rule"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "xtick.color": PALETTE["rule"],
    "ytick.color": PALETTE["rule"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
    "text.color": PALETTE["ink"],
    "lines.linewidth": 1.5,
    "legend.frameon": False,
}
_ROLES = {colour: role for role, colour in PALETTE.items()}
_KEPT_STYLES = re.compile(r"(fill|stroke|opacity|font-size|font-weight|text-anchor)(-[a-z]+)*")
_FONT = re.compile(r"(?:(?P<weight>\d00|bold) )?.*?(?P<size>[\d.]+px)")
_LONG_FRACTION = re.compile(r"(\.\d\d)\d+")
_NAMESPACE = re.compile(r"^\{.*\}")


def draw(width: int, height: int, rows: int = 1) -> Figure:
    """An empty figure of `rows` plots under each other, measured in the units of its SVG view box."""
    figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
    figure.patch.set_visible(False)
    for axes in figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]:
        axes.patch.set_visible(False)
    return figure


def to_svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as one `<svg>` element for inlining.

    Args:
        figure: Drawn with the colours of `PALETTE`.
        name: Unique on the page; prefixes every id.
        title: Read out by screen readers, with `description`.
        description: What the picture shows, in one or two sentences.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # glyphs that the layout font lacks; the reader's fonts draw them
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _plain(root)
    _drop(root, {"metadata", "style"})
    _own_ids(root, name)
    for element in root.iter():
        _restyle(element)
    _introduce(root, name, title, description)
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=True))


def styled() -> AbstractContextManager[None]:
    """The context that every figure is built and written in."""
    return matplotlib.rc_context(STYLE)


def _plain(root: ElementTree.Element) -> None:
    """Take away the namespaces: inside HTML they are known."""
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        element.attrib = {_NAMESPACE.sub("", key): value for key, value in element.attrib.items()}
        element.tail = None
        if element.tag != "text":
            element.text = None


def _drop(root: ElementTree.Element, tags: set[str]) -> None:
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in tags]:
            parent.remove(child)


def _own_ids(root: ElementTree.Element, name: str) -> None:
    """Prefix the ids that something refers to, and remove the others."""
    used = {
        match for element in root.iter() for value in element.attrib.values() for match in _references(value)
    }
    numbers = {found: f"{name}-{index}" for index, found in enumerate(sorted(used))}
    for element in root.iter():
        attributes = {key: _renamed(value, numbers) for key, value in element.attrib.items() if key != "id"}
        found = element.get("id")
        element.attrib = attributes | ({"id": numbers[found]} if found in numbers else {})


_REFERENCE = re.compile(r"^(?:url\()?#([^)]+)\)?$")


def _references(value: str) -> list[str]:
    return _REFERENCE.findall(value)


def _renamed(value: str, numbers: dict[str, str]) -> str:
    found = _REFERENCE.match(value)
    return value.replace(found.group(1), numbers[found.group(1)]) if found else value


def _restyle(element: ElementTree.Element) -> None:
    """Turn `style` into presentation attributes and known colours into classes; shorten numbers."""
    for declaration in element.attrib.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if _KEPT_STYLES.fullmatch(key):
            element.set(key, value)
        if key == "font" and (found := _FONT.match(value)):  # the shorthand of older releases
            element.set("font-size", found["size"])
            element.set("font-weight", found["weight"] or "400")
    roles = [
        f"{key}-{_ROLES[colour]}" for key in ("fill", "stroke") if (colour := element.get(key)) in _ROLES
    ]
    if element.tag == "text" and not element.get("fill"):
        roles.append("fill-black")
    if roles:
        element.set("class", " ".join(roles))
    for key in {"d", "x", "y", "width", "height", "transform"} & element.attrib.keys():
        element.set(key, _LONG_FRACTION.sub(r"\1", " ".join(element.attrib[key].split())))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]


def _introduce(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    root.attrib = {
        "class": "plot",
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-text",
    }
    for position, (tag, part, text) in enumerate((("title", "title", title), ("desc", "text", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{part}"})
        element.text = text
        root.insert(position, element)
