# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Show text from untrusted files: in a terminal, in Markdown, and on a page."""

import html
import re
import reprlib
import unicodedata
from typing import Any

LONGEST = 80  # characters of a shown name or value
LONGEST_MESSAGE = 600
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


def one_line(message: object, longest: int = LONGEST_MESSAGE) -> str:
    """Return a message of several lines as one line for a terminal. White space becomes single spaces.

    The middle of a long message is left out, because the end often says what to do.
    """
    words = " ".join(str(message).split())
    if len(words) > longest:
        tail = longest // 3
        words = f"{words[: longest - tail - 5]} ... {words[len(words) - tail :]}"
    return printable(words, 2 * longest)


def short_repr(value: Any, longest: int = LONGEST) -> str:
    """Return the representation of a value for an error message, without walking all of a large or deep value."""
    try:
        return printable(_SHORT.repr(value), longest)
    except (RecursionError, ValueError):  # str() refuses integers of thousands of digits
        return f"a {type(value).__name__}"


def markdown(text: object) -> str:
    """Return a text in one line that Markdown and HTML show as it is."""
    shown = _MARKDOWN.sub(r"\\\1", html.escape(printable(text, None), quote=True).replace("&#x27;", "'"))
    return shown.replace("://", "\\://")  # else GitHub and the Hub make links of addresses


def markdown_code(text: object) -> str:
    """Return a text in one line for a code span outside tables; its own backticks become `'`."""
    return printable(text, None).replace("`", "'")


def html_text(text: object) -> str:
    """Return a text in one line for HTML, outside tags and in quoted attributes."""
    return html.escape(printable(text, None), quote=True)


def _escaped(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) not in _CATEGORIES:
        return character
    return character.encode("unicode_escape").decode("ascii")
