# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Show text from untrusted files: in a terminal, and in Markdown."""

import html
import re
import reprlib
import unicodedata
from typing import Any

LONGEST = 80  # characters of a shown name or value
# characters that control a terminal, reorder text, are invisible, or cannot be encoded
_CATEGORIES = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|~])")
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, LONGEST, LONGEST, LONGEST


def printable(text: object, longest: int | None = LONGEST) -> str:
    """Return a text in one line for a terminal: control and invisible characters are escaped, long texts shortened.

    Args:
        text: the text; anything else is converted by `str`.
        longest: largest number of characters; None for any number.
    """
    whole = str(text)
    # an escaped character takes at most ten characters; a longer text need not be escaped whole
    shown = "".join(map(_escaped, whole if longest is None else whole[: longest + 1]))
    if longest is None or (len(whole) <= longest and len(shown) <= longest):
        return shown
    return shown[: max(longest - 3, 0)] + "..."


def short_repr(value: Any, longest: int = LONGEST) -> str:
    """Return the representation of a value for an error message, without walking all of a large or deep value."""
    try:
        return printable(_SHORT.repr(value), longest)
    except (RecursionError, ValueError):  # str() refuses integers of thousands of digits
        return f"a {type(value).__name__}"


def markdown(text: object) -> str:
    """Return a text in one line that Markdown and HTML show as it is."""
    return _MARKDOWN.sub(r"\\\1", html.escape(printable(text, None), quote=True).replace("&#x27;", "'"))


def _escaped(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) not in _CATEGORIES:
        return character
    return character.encode("unicode_escape").decode("ascii")
