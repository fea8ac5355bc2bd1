"""Names beside a picture."""

from __future__ import annotations

__all__ = ["shown"]

_LONGEST_SHOWN = 40


def shown(name: str) -> str:
    """A name that leaves room for the picture."""
    return name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}…"
