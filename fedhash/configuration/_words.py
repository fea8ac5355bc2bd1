"""Plain words for keys and values, shared by every message about a configuration.

Example:
    dotted(("findings", 0))              # findings.0, as an override names it
    found("3")                           # text '3'
    did_you_mean("round", ["rounds"])    # did you mean "rounds"?
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["did_you_mean", "dotted", "found", "near_miss"]

_LONGEST_QUOTE = 60
_MOST_OPTIONS = 20


def dotted(path: Iterable[str | int]) -> str:
    """The key path as an override writes it."""
    return ".".join(map(str, path))


def found(value: Any) -> str:
    """Describe a plain value as the user wrote it."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return str(value).lower()
        case str():
            quote = value if len(value) <= _LONGEST_QUOTE else value[:_LONGEST_QUOTE] + "..."
            return f"text {quote!r}"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return f"a mapping of {len(value)}"
    return str(value)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Point from an unknown word to the nearest valid one, or else list the valid ones."""
    options = list(options)
    more = ", ..." if len(options) > _MOST_OPTIONS else ""
    listed = ", ".join(options[:_MOST_OPTIONS]) or "nothing"
    return near_miss(word, options).removeprefix("; ") or f"valid here: {listed}{more}"


def near_miss(value: Any, options: Iterable[Any]) -> str:
    """`; did you mean "x"?` for a text that resembles an option, and nothing otherwise."""
    texts = [option for option in options if isinstance(option, str)]
    nearest = difflib.get_close_matches(value, texts, n=1) if isinstance(value, str) else []
    return f'; did you mean "{nearest[0]}"?' if nearest else ""
