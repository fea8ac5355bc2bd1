"""Which sites' sum a site last helped to open: it must outlive a restart of the site.

A coordinator that lost a round asks for it again, and the sites answer with the same vectors. If
that sum were opened over other sites than the first time, the difference of the two sums would
be single sites' updates. So a round that was opened is opened again for the same sites only.

    >>> opened = FileOpenedRounds(Path("/var/lib/fedhash/opened"))
    >>> opened.keep("run-7", 12, ("hospital-a", "hospital-b", "hospital-c"))
    >>> opened.newest("run-7")
    (12, ('hospital-a', 'hospital-b', 'hospital-c'))
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from fedhash.rounds._files import read_stored, write_stored
from fedhash.rounds.messages import Message

__all__ = ["FileOpenedRounds", "MemoryOpenedRounds", "OpenedRounds"]


@runtime_checkable  # the test suite checks types at run time
class OpenedRounds(Protocol):
    """Remembers the newest opened round of each run."""

    def newest(self, run_id: str) -> tuple[int, tuple[str, ...]]:
        """The last round of the run that was opened, 0 for none, and the sites of its sum."""
        ...

    def keep(self, run_id: str, round_number: int, survivors: tuple[str, ...]) -> None:
        """Remember a newer round, or the same one again."""
        ...


class MemoryOpenedRounds:
    """For sites that never restart."""

    def __init__(self) -> None:
        self._opened: dict[str, tuple[int, tuple[str, ...]]] = {}

    def newest(self, run_id: str) -> tuple[int, tuple[str, ...]]:
        """See :class:`OpenedRounds`."""
        return self._opened.get(run_id, (0, ()))

    def keep(self, run_id: str, round_number: int, survivors: tuple[str, ...]) -> None:
        """See :class:`OpenedRounds`."""
        self._opened[run_id] = (round_number, survivors)


class FileOpenedRounds:
    """One small file a run under `folder`; they are never deleted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self, run_id: str) -> tuple[int, tuple[str, ...]]:
        """See :class:`OpenedRounds`.

        Raises:
            CheckpointError: The stored file is damaged.
        """
        path = self._folder / run_id
        if not path.is_file():
            return 0, ()
        header = read_stored(path, "opened_round").header
        return int(header["round_number"]), tuple(header["survivors"])

    def keep(self, run_id: str, round_number: int, survivors: tuple[str, ...]) -> None:
        """See :class:`OpenedRounds`."""
        header = {"round_number": round_number, "survivors": list(survivors)}
        write_stored(self._folder / run_id, Message("opened_round", header, {}))
