"""HTML as data: elements from a closed set, text that is always escaped, links that stay on the page.

There is no way to put markup in as text, so that nothing in evidence can become markup.
"""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Union

_HEAD = ("html", "head", "title", "meta", "link", "body")
_BLOCK = ("header", "main", "footer", "nav", "section", "h1", "h2", "p", "div")
_TABLE = ("table", "thead", "tbody", "tr", "th", "td")
_FORM = ("form", "label", "input", "button")
_INLINE = ("span", "code", "a", "time", "small", "strong")
_DRAWING = ("svg", "rect", "line", "text")
TAGS = frozenset((*_HEAD, *_BLOCK, *_TABLE, *_FORM, *_INLINE, *_DRAWING))
_VOID = frozenset({"meta", "link", "input"})
_ANY = ("class", "id", "role", "aria-label")
_OF_HEAD = ("lang", "charset", "name", "content", "rel", "href")
_OF_FORM = ("method", "action", "for", "type", "autocomplete", "required", "autofocus")
_OF_TEXT = ("scope", "datetime")
_OF_DRAWING = ("viewBox", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "text-anchor")
ATTRIBUTES = frozenset((*_ANY, *_OF_HEAD, *_OF_FORM, *_OF_TEXT, *_OF_DRAWING))
_LINKS = frozenset({"href", "action"})
_HOME = "/ui"

Node = Union[str, int, "Element", Iterable["Node"]]


@dataclass(frozen=True, slots=True)
class Element:
    """One element. Raises ValueError for a tag or attribute that this page has no use for."""

    tag: str
    attributes: tuple[tuple[str, str], ...]
    children: tuple[Node, ...]

    def __post_init__(self) -> None:
        if self.tag not in TAGS:
            raise ValueError(f"no such element here: {self.tag}")
        for name, value in self.attributes:
            if name not in ATTRIBUTES:
                raise ValueError(f"no such attribute here: {name}")
            if name in _LINKS and not (value == _HOME or value.startswith(("#", f"{_HOME}/"))):
                raise ValueError("links stay on the page")


def el(tag: str, *children: Node, **attributes: str | int) -> Element:
    """An element; `class_` is `class`, and underscores in other names are hyphens."""
    named = tuple((name.removesuffix("_").replace("_", "-"), str(value)) for name, value in attributes.items())
    return Element(tag, named, children)


def render(page: Element) -> bytes:
    """The document as UTF-8."""
    parts = ["<!doctype html>\n"]
    _render(page, parts)
    return "".join(parts).encode("utf-8", "backslashreplace")


def _render(node: Node, out: list[str]) -> None:
    if isinstance(node, str | int):
        out.append(html.escape(str(node)))
    elif isinstance(node, Element):
        out.append(f"<{node.tag}")
        out.extend(f' {name}="{html.escape(value)}"' for name, value in node.attributes)
        out.append(">")
        if node.tag not in _VOID:
            for child in node.children:
                _render(child, out)
            out.append(f"</{node.tag}>")
    else:
        for child in node:
            _render(child, out)
