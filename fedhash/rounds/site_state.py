"""What a site carries between rounds (control variate, moments), by the round that made it.

1. A coordinator may lose a round that a site has already trained (a crash, a late reply), so the
   site keeps two states of a run: that of the last round that counted and that of the last round it
   trained. A crash between two writes leaves one state more, never one less.
2. Nobody tells a site that a run has ended, so `FileSiteState` keeps the eight runs that were
   trained last and deletes the others. A paused run is lost only when eight others train meanwhile;
   where it carried something, the site then refuses it (``state_lost``).

The arrays are those of `fedhash.learning.local_training`, the margins that a round had and the
digest of its plan; here they are only stored.

    >>> state = FileSiteState(Path("/var/lib/fedhash/rounds"))
    >>> state.keep("run-7", 12, result.carried, counted_round=11)
    >>> state.carried("run-7", 11)
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from fedhash.rounds._files import read_stored, stored_names, write_stored
from fedhash.rounds.messages import Message

__all__ = ["FileSiteState", "MemorySiteState", "SiteState"]

_KEPT_RUNS = 8
_STATE_NAME = re.compile(r"round-([0-9]{6,})\.state")  # and no copies that a person made

_log = logging.getLogger(__name__)


@runtime_checkable  # the test suite checks types at run time
class SiteState(Protocol):
    """What one site carries."""

    def newest_round(self, run_id: str) -> int:
        """The last round of the run that this site trained, 0 for none."""
        ...

    def carried(self, run_id: str, round_number: int) -> Mapping[str, np.ndarray] | None:
        """The arrays after that round, or None when they are not kept."""
        ...

    def keep(
        self,
        run_id: str,
        round_number: int,
        carried: Mapping[str, np.ndarray],
        *,
        counted_round: int,
    ) -> None:
        """Store the arrays after `round_number`; of the others only `counted_round` stays."""
        ...


class MemorySiteState:
    """For simulations that are not resumed; a copy goes in, a copy comes out."""

    def __init__(self) -> None:
        self._runs: dict[str, dict[int, dict[str, np.ndarray]]] = {}

    def newest_round(self, run_id: str) -> int:
        """See :class:`SiteState`."""
        return max(self._runs.get(run_id, {}), default=0)

    def carried(self, run_id: str, round_number: int) -> Mapping[str, np.ndarray] | None:
        """See :class:`SiteState`."""
        carried = self._runs.get(run_id, {}).get(round_number)
        return None if carried is None else _copied(carried)

    def keep(
        self,
        run_id: str,
        round_number: int,
        carried: Mapping[str, np.ndarray],
        *,
        counted_round: int,
    ) -> None:
        """See :class:`SiteState`."""
        earlier = self._runs.get(run_id, {})
        kept = {number: earlier[number] for number in earlier if number == counted_round}
        self._runs[run_id] = kept | {round_number: _copied(carried)}


class FileSiteState:
    """One file a run and round under `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest_round(self, run_id: str) -> int:
        """See :class:`SiteState`.

        Raises:
            CheckpointError: The folder cannot be read.
        """
        return max(self._rounds(run_id), default=0)

    def carried(self, run_id: str, round_number: int) -> Mapping[str, np.ndarray] | None:
        """See :class:`SiteState`.

        Raises:
            CheckpointError: The stored file is damaged.
        """
        path = self._rounds(run_id).get(round_number)
        return None if path is None else read_stored(path, "site_state").arrays

    def keep(
        self,
        run_id: str,
        round_number: int,
        carried: Mapping[str, np.ndarray],
        *,
        counted_round: int,
    ) -> None:
        """See :class:`SiteState`."""
        path = self._folder / run_id / f"round-{round_number:06d}.state"
        write_stored(path, Message("site_state", {}, dict(carried)))
        try:
            self._tidy(path.parent, {round_number, counted_round})
        except OSError:  # what is left over takes room and does no harm
            _log.warning("old states under %s cannot be removed", self._folder, exc_info=True)

    def _tidy(self, this_run: Path, kept_rounds: Collection[int]) -> None:
        for number, earlier in self._rounds(this_run.name).items():
            if number not in kept_rounds:
                earlier.unlink()
        others = {state.parent for state in self._folder.glob("*/round-*.state")} - {this_run}
        by_last_round = sorted(others, key=lambda run: run.stat().st_mtime_ns, reverse=True)
        for ended in by_last_round[_KEPT_RUNS - 1 :]:
            shutil.rmtree(ended)

    def _rounds(self, run_id: str) -> dict[int, Path]:
        folder = self._folder / run_id
        names = (_STATE_NAME.fullmatch(name) for name in stored_names(folder))
        return {int(name[1]): folder / name[0] for name in names if name}


def _copied(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in arrays.items()}
