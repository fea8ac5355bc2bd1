"""How far a run is: what its checkpoints say, so it is the same for whoever looks.

>>> read_progress(folder)["run-7"]
{'rounds': 12, 'of': 30, 'training': True, 'last_failure': None}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedhash.configuration import read_settings
from fedhash.errors import CheckpointError, ConfigurationError
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import CoordinatorState
from fedhash.rounds.settings import RoundSettings
from fedhash_server.coordinator_folder import CoordinatorFolder
from fedhash_server.run_lock import is_training

__all__ = ["newest_round", "newest_state", "read_progress"]


def read_progress(folder: CoordinatorFolder) -> dict[str, dict[str, Any]]:
    """Run to how far it is, as plain JSON.

    Raises:
        StorageError: The operating system refuses.
    """
    progress: dict[str, dict[str, Any]] = {}
    for place in sorted(folder.runs.glob("*")):
        try:
            newest = Checkpoints(place / "checkpoints").newest()
        except CheckpointError as error:
            progress[place.name] = {"fault": str(error)}
            continue
        rounds = newest[1].round_number if newest else 0
        of = newest[0].settings.rounds if newest else _rounds_of(place)
        failure = newest[1].records[-1].failure if newest and newest[1].records else None
        progress[place.name] = {
            "rounds": rounds,
            "of": of,
            "training": is_training(place),
            "last_failure": failure,
        }
    return progress


def _rounds_of(place: Path) -> int | None:
    try:
        return read_settings(place / "round.yaml", RoundSettings).rounds
    except ConfigurationError:
        return None  # a run that no 'train' began has no such file


def newest_state(place: Path) -> CoordinatorState | None:
    """The newest checkpoint's state; one that is replaced under our hands is read again.

    Raises:
        CheckpointError: It is damaged.
    """
    for attempt in range(5):
        try:
            newest = Checkpoints(place / "checkpoints").newest()
        except CheckpointError as error:
            # the third newest file goes when a new one comes
            if attempt == 4 or not isinstance(error.__cause__, FileNotFoundError):
                raise
            continue
        return newest[1] if newest else None
    return None


def newest_round(place: Path) -> int:
    """How many rounds have ended.

    Raises:
        CheckpointError: The newest checkpoint is damaged.
    """
    state = newest_state(place)
    return state.round_number if state else 0
