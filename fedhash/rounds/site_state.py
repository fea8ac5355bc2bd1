"""What a site remembers between rounds: its control variate, by the round that made it.

A coordinator may lose a round that a site has already trained (a crash, a late reply), so the site
keeps two states: that of the last round that counted and that of the last round it trained. A
crash between two writes leaves one state more, never one less.

Shape suffix: d model parameters.

    >>> state = FileSiteState(Path("/var/lib/fedhash/rounds"))
    >>> state.keep("run-7", 12, control, counted_round=11)
    >>> state.control("run-7", 11)
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from fedhash.rounds._files import read_stored, write_stored
from fedhash.rounds.messages import Message

__all__ = ["FileSiteState", "MemorySiteState", "SiteState"]


@runtime_checkable  # the test suite checks types at run time
class SiteState(Protocol):
    """Stored control variates of one site; empty vectors in runs that do without."""

    def newest_round(self, run_id: str) -> int:
        """The last round of the run that this site trained, 0 for none."""
        ...

    def control(self, run_id: str, round_number: int) -> Float32[np.ndarray, " d"] | None:
        """The variate after that round, or None when it is not kept."""
        ...

    def keep(
        self,
        run_id: str,
        round_number: int,
        control: Float32[np.ndarray, " d"],
        *,
        counted_round: int,
    ) -> None:
        """Store the variate after `round_number`; of the others only `counted_round` stays."""
        ...


class MemorySiteState:
    """For simulations that are not resumed; a copy goes in, a copy comes out."""

    def __init__(self) -> None:
        self._controls: dict[str, dict[int, np.ndarray]] = {}

    def newest_round(self, run_id: str) -> int:
        """See :class:`SiteState`."""
        return max(self._controls.get(run_id, {}), default=0)

    def control(self, run_id: str, round_number: int) -> Float32[np.ndarray, " d"] | None:
        """See :class:`SiteState`."""
        control = self._controls.get(run_id, {}).get(round_number)
        return None if control is None else control.copy()

    def keep(
        self,
        run_id: str,
        round_number: int,
        control: Float32[np.ndarray, " d"],
        *,
        counted_round: int,
    ) -> None:
        """See :class:`SiteState`."""
        earlier = self._controls.get(run_id, {})
        kept = {number: earlier[number] for number in earlier if number == counted_round}
        self._controls[run_id] = kept | {round_number: control.copy()}


class FileSiteState:
    """One file a run and round under `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest_round(self, run_id: str) -> int:
        """See :class:`SiteState`."""
        return max(self._rounds(run_id), default=0)

    def control(self, run_id: str, round_number: int) -> Float32[np.ndarray, " d"] | None:
        """See :class:`SiteState`.

        Raises:
            CheckpointError: The stored file is damaged.
        """
        path = self._rounds(run_id).get(round_number)
        return None if path is None else read_stored(path, "site_state").arrays["control"]

    def keep(
        self,
        run_id: str,
        round_number: int,
        control: Float32[np.ndarray, " d"],
        *,
        counted_round: int,
    ) -> None:
        """See :class:`SiteState`."""
        path = self._folder / run_id / f"round-{round_number:06d}.state"
        write_stored(path, Message("site_state", {}, {"control": control}))
        for number, earlier in self._rounds(run_id).items():
            if number not in (round_number, counted_round):
                earlier.unlink()

    def _rounds(self, run_id: str) -> dict[int, Path]:
        paths = (self._folder / run_id).glob("round-*.state")
        return {int(path.stem.removeprefix("round-")): path for path in paths}
