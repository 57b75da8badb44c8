"""HTML that cannot be written unescaped: text becomes markup only through `element`."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

__all__ = ["Content", "Markup", "element", "join"]

VOID_ELEMENTS = frozenset({"img", "input", "meta"})

# Control characters that HTML forbids; tab, line feed and carriage return are allowed.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Iterable["Content"] | None


def join(content: Content) -> Markup:
    """Turn text, markup, or any nesting of them into markup; text is escaped."""
    if content is None:
        return Markup()
    if isinstance(content, Markup):
        return content
    if isinstance(content, str):
        return Markup(html.escape(_FORBIDDEN.sub("\ufffd", content)))
    return Markup("".join(join(part) for part in content))


def element(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Markup:
    """Make an element.

    Parameters
    ----------
    name : str
        Tag name.
    *content : str, Markup or iterable of them
        What is in it; plain strings are escaped.
    **attributes : str, number, bool or None
        A trailing underscore is dropped (``class_``) and others become dashes (``aria_label``).
        None and False leave the attribute out, True gives it no value. Numbers are written short.
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            parts.append(key)
            continue
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        parts.append(f'{key}="{join(text)}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if name in VOID_ELEMENTS else f"{opening}{join(content)}</{name}>")
