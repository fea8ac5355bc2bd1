"""Which sum a site last helped to open: it must outlive a restart of the site.

A coordinator that lost a round asks for it again, and the sites answer with the same vectors. If
that sum were opened over other sites than the first time, for another request, or after a site's
data changed, the difference of the two sums would be single sites' updates. So a round that was
opened is opened again for the same task and sites and with the same vector only.

    >>> opened = FileOpenedRounds(Path("/var/lib/fedhash/opened"))
    >>> opened.keep("run-7", OpenedRound(12, ("hospital-a", "hospital-b"), task, vector))
    >>> opened.newest("run-7").round_number
    12
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from fedhash.errors import CheckpointError
from fedhash.rounds._files import is_stored, read_stored, write_stored
from fedhash.rounds.messages import Message

__all__ = ["FileOpenedRounds", "MemoryOpenedRounds", "OpenedRound", "OpenedRounds"]


@dataclass(frozen=True)
class OpenedRound:
    """A sum that was opened.

    Attributes:
        round_number: From 1.
        survivors: The sites in the sum, sorted.
        task: `Digests.task` of the request.
        vector: Fingerprint of the site's own vector before it was masked, hexadecimal. It finds a
            change of the site's data; nobody else has a hand in the vector.
    """

    round_number: int
    survivors: tuple[str, ...]
    task: str
    vector: str


@runtime_checkable  # the test suite checks types at run time
class OpenedRounds(Protocol):
    """Remembers the newest opened round of each run."""

    def newest(self, run_id: str) -> OpenedRound | None:
        """The last round of the run that was opened, or None."""
        ...

    def keep(self, run_id: str, opened: OpenedRound) -> None:
        """Remember a newer round, or the same one again."""
        ...


class MemoryOpenedRounds:
    """For sites that never restart."""

    def __init__(self) -> None:
        self._opened: dict[str, OpenedRound] = {}

    def newest(self, run_id: str) -> OpenedRound | None:
        """See :class:`OpenedRounds`."""
        return self._opened.get(run_id)

    def keep(self, run_id: str, opened: OpenedRound) -> None:
        """See :class:`OpenedRounds`."""
        self._opened[run_id] = opened


class FileOpenedRounds:
    """One small file a run under `folder`; they are never deleted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self, run_id: str) -> OpenedRound | None:
        """See :class:`OpenedRounds`.

        Raises:
            CheckpointError: The stored file is damaged or cannot be read.
        """
        path = self._folder / run_id
        if not is_stored(path):
            return None
        header = read_stored(path, "opened_round").header
        try:
            return OpenedRound(
                int(header["round_number"]),
                tuple(header["survivors"]),
                str(header["task"]),
                str(header["vector"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} was written by another version ({error!r}); start a new run"
            ) from error

    def keep(self, run_id: str, opened: OpenedRound) -> None:
        """See :class:`OpenedRounds`."""
        header = {
            "round_number": opened.round_number,
            "survivors": list(opened.survivors),
            "task": opened.task,
            "vector": opened.vector,
        }
        write_stored(self._folder / run_id, Message("opened_round", header, {}))
