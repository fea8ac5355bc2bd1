r"""Text of files and peers as it may be shown on a terminal.

>>> printable("\x1b[2Jgone")
'\\x1b[2Jgone'
"""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """`text` with escapes for control characters, which would move a cursor or hide a line.

    Line breaks stay.
    """
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )
