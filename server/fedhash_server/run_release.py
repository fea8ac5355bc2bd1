"""From a run's checkpoints to a release.

    runs/RUN_ID/
      checkpoints/                  what the run goes on from (`fedhash.rounds.checkpoint`)
      inputs.json                   agreement, parent, and what the parent states of privacy
      frozen-image.safetensors      the file of a frozen tower

1. A run writes down what it was made of before its first round, so that its release does not depend
   on files that somebody may have changed since.
2. A run that goes on with other inputs is refused.
3. The same checkpoint gives the same release, byte for byte.

    >>> keep_inputs(Path("runs/run-7"), agreement, first)
    >>> release_run(Path("runs/run-7"), Path("releases")).release_id
    '5a0c...'
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from fedhash.agreement import Agreement
from fedhash.configuration import Settings
from fedhash.durability import replace_file
from fedhash.errors import CheckpointError, ReleaseError, StorageError
from fedhash.models.frozen_features import FrozenFeatures, frozen_file
from fedhash.models.hash_model import frozen_modalities
from fedhash.registry.privacy_summary import TrainingPrivacy, summarised
from fedhash.registry.release import Release, save_release
from fedhash.registry.statement import ReleaseId
from fedhash.regular_file import read_regular_file
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import CoordinatorState
from fedhash.rounds.settings import check_release
from fedhash_server.first_model import FirstModel

__all__ = ["keep_inputs", "release_run", "run_ids"]

_INPUTS_FILE = "inputs.json"
_LARGEST_INPUTS_BYTES = 1 << 24


class _Inputs(Settings):
    """What a run was made of, beside its plan."""

    agreement: Agreement
    parent: ReleaseId | None
    trainings_before: tuple[TrainingPrivacy, ...]


def keep_inputs(run_folder: Path, agreement: Agreement, first: FirstModel) -> None:
    """Write down what a run starts from, or check that it goes on from the same.

    Raises:
        CheckpointError: The folder is of a run with other inputs.
        StorageError: The operating system refuses.
    """
    inputs = _Inputs(
        agreement=agreement,
        parent=None if first.parent is None else first.parent.release_id,
        trainings_before=_trainings(first.parent),
    )
    path = run_folder / _INPUTS_FILE
    try:
        if path.exists():
            if _read_inputs(run_folder) != inputs:
                raise CheckpointError(
                    f"{run_folder} is of a run with another agreement or another parent; go on "
                    "with those, or give the run a new run_id"
                )
            return
        run_folder.mkdir(parents=True, exist_ok=True)
        for modality, features in first.frozen.items():
            replace_file(run_folder / frozen_file(modality), features.to_bytes())
        replace_file(path, inputs.model_dump_json(indent=2).encode())  # last: then all is there
    except OSError as error:
        raise StorageError(error, run_folder) from error


def run_ids(runs: Path) -> list[str]:
    """Runs that have a folder, sorted.

    Raises:
        StorageError: The folder cannot be read.
    """
    try:
        return sorted(path.parent.name for path in runs.glob(f"*/{_INPUTS_FILE}"))
    except OSError as error:
        raise StorageError(error, runs) from error


def release_run(run_folder: Path, releases: Path, *, unfinished_too: bool = False) -> Release:
    """Make the release of a run, in a folder that its id names.

    Args:
        run_folder: The run's.
        releases: Where releases stand.
        unfinished_too: Also of a run that has rounds left.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, or the run is not finished.
        ReleaseError: No release can be made of it.
        ModelError: A file of frozen features is damaged.
        StorageError: The operating system refuses.
    """
    found = Checkpoints(run_folder / "checkpoints").newest()
    if found is None:
        raise CheckpointError(
            f"{run_folder} has no checkpoint of a round; name the folder of a run that has trained"
        )
    plan, state = found
    settings = plan.settings
    if problems := check_release(settings):
        raise ReleaseError(f"{run_folder}: {problems[0][1]}")
    if state.round_number < settings.rounds and not unfinished_too:
        raise CheckpointError(
            f"{run_folder} has trained {state.round_number} of {settings.rounds} rounds; let it "
            "finish, or release it as it is with --unfinished"
        )
    inputs = _read_inputs(run_folder)
    if inputs.agreement.digest() != plan.agreement_digest:
        raise CheckpointError(
            f"{run_folder / _INPUTS_FILE} names another agreement than the run's checkpoint; "
            "restore it from a copy"
        )
    return save_release(
        releases,
        agreement=inputs.agreement,
        model_settings=settings.model,
        vector=state.model,
        margins=state.margins,
        metrics=_metrics(state),
        run_id=plan.run_id,
        parent=inputs.parent,
        frozen={
            modality: FrozenFeatures.load(run_folder / frozen_file(modality))
            for modality in frozen_modalities(settings.model)
        },
        privacy=summarised(
            settings,
            plan.run_id,
            rounds=state.round_number,
            terms=inputs.agreement.privacy,
            before=inputs.trainings_before,
        ),
        named_by_id=True,
    )


def _metrics(state: CoordinatorState) -> dict[str, float]:
    completed = [record for record in state.records if record.failure is None]
    metrics = {"rounds_completed": float(len(completed))}
    if completed and completed[-1].mean_loss is not None:
        metrics["last_mean_loss"] = completed[-1].mean_loss
    return metrics


def _trainings(parent: Release | None) -> tuple[TrainingPrivacy, ...]:
    if parent is None:
        return ()
    if parent.privacy is None:
        return (TrainingPrivacy(run_id=parent.run_id, mode="unstated"),)
    return parent.privacy.trainings


def _read_inputs(run_folder: Path) -> _Inputs:
    path = run_folder / _INPUTS_FILE
    try:
        return _Inputs.model_validate_json(read_regular_file(path, _LARGEST_INPUTS_BYTES))
    except OSError as error:
        raise StorageError(error, path) from error
    except ValidationError as error:
        raise ReleaseError(f"{path} is damaged ({error}); restore it from a copy") from error
