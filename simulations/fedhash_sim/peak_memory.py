"""The most memory that this process has held since a moment. Linux only: proc(5), VmHWM.

It is the resident set of the whole process, with Python and all its libraries. Processes that this
one starts, such as Flower's, are not in it.

    >>> memory = PeakMemory()
    >>> train()
    >>> memory.peak_bytes()
    611319808
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["PeakMemory"]

_OWN = Path("/proc/self")
_FORGET_THE_PEAK = "5"  # proc(5), /proc/pid/clear_refs


class PeakMemory:
    """Counts from its making."""

    def __init__(self) -> None:
        try:
            (_OWN / "clear_refs").write_text(_FORGET_THE_PEAK, encoding="ascii")
        except OSError:
            self._counts = False  # the peak of the whole process is not that of this work
        else:
            self._counts = True

    def peak_bytes(self) -> int | None:
        """The peak so far; None where the system does not tell."""
        if not self._counts:
            return None
        found = re.search(r"^VmHWM:\s+(\d+) kB", (_OWN / "status").read_text(), re.MULTILINE)
        return 1024 * int(found[1]) if found else None
