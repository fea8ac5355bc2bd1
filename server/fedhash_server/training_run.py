"""What `fedhash-coordinator train` begins: from a round file to the folder of a run.

    runs/RUN_ID/
      agreement.yaml round.yaml run.yaml    what the run was begun with
      app/                                  the bundle that Flower carries to the sites
      checkpoints/                          after each round, by the ServerApp

1. A run's folder comes into being by one rename, with all its files. A name that is taken goes on,
   and only with the settings that it was begun with.
2. All is checked before anything is made, and a dry run makes nothing.

    >>> prepare_run(folder, Path("round.yaml"), run_id="run-7").goes_on
    False
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash.durability import replace_file, sync_folder
from fedhash.errors import ConfigurationError, Problem, ReleaseError, StorageError
from fedhash.rounds.settings import RoundSettings
from fedhash.rounds.training_messages import RunId
from fedhash_server.coordinator_folder import CoordinatorFolder
from fedhash_server.flower import write_app_folder
from fedhash_server.roster import read_roster
from fedhash_server.run_progress import newest_state
from fedhash_server.settings import RunSettings

__all__ = ["PreparedRun", "prepare_run"]


@dataclass(frozen=True)
class PreparedRun:
    """A run that can be started or goes on.

    Attributes:
        run: Its name, sites and seed.
        rounds: How many it has.
        folder: Of the run.
        goes_on: Whether it was begun before.
        rounds_done: So many have ended.
        warnings: What works, and worse than was perhaps meant.
    """

    run: RunSettings
    rounds: int
    folder: Path
    goes_on: bool
    rounds_done: int
    warnings: tuple[str, ...]


def prepare_run(
    folder: CoordinatorFolder,
    round_file: Path,
    *,
    run_id: str | None = None,
    sites: Sequence[str] = (),
    seed: int | None = None,
    parent: str | None = None,
    frozen: Mapping[str, Path] = MappingProxyType({}),
    dry_run: bool = False,
) -> PreparedRun:
    """Check everything, and make the run's folder where there is none.

    Args:
        folder: The coordinator's.
        round_file: How to train.
        run_id: The run's name; default: that of the round file.
        sites: Names of enrolled sites; default: all, or those that the run was begun with.
        seed: Of the first model; default: 0, or that of the run.
        parent: Id of the release to start from.
        frozen: Modality to the file of its frozen tower, where the parent does not hold it.
        dry_run: Make nothing.

    Raises:
        CheckpointError: The run's checkpoints are damaged.
        ConfigurationError: A file is wrong, the files do not fit each other, a site is not
            enrolled, or the run was begun with other settings.
        ModelError: The first model cannot be made.
        ReleaseError: The release to start from has no such id, or does not verify.
        StorageError: The operating system refuses.
    """
    folder.settings()
    settings = read_settings(round_file, RoundSettings)
    name = run_id or re.sub(r"[^a-z0-9_-]+", "-", round_file.stem.lower()).strip("-_")
    _check_run_id(name, folder.runs)
    place = folder.runs / name
    start: dict[str, Any] = {}  # absolute, because the file is read at other places too
    if parent is not None:
        if not re.fullmatch("[0-9a-f]{64}", parent):  # before it becomes a path
            raise ReleaseError(
                f"--parent is {parent!r}, and the id of a release has 64 hex digits; give the "
                "whole one, as 'fedhash-coordinator release list' prints it"
            )
        start["parent"] = str((folder.releases / parent).resolve())
    if frozen:
        start["frozen"] = {modality: str(path.resolve()) for modality, path in frozen.items()}
    if (place / "run.yaml").exists():
        run = _begun(folder, place, round_file, settings, sites, seed, start)
        app_warnings = write_app_folder(place / "app", *_files(place))
        done = newest_state(place)
        return PreparedRun(
            run, settings.rounds, place, True, done.round_number if done else 0, app_warnings
        )
    enrolled = read_roster(folder)
    names = tuple(sites) or tuple(enrolled)
    if strangers := [site for site in names if site not in enrolled]:
        raise _wrong(
            folder.sites,
            f"not enrolled: {', '.join(strangers)}; the sites are {', '.join(enrolled) or 'none'}",
        )
    unfinished = folder.path / f".preparing-{name}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # what a crash left
        unfinished.mkdir(mode=0o700)
        contents = {"run_id": name, "sites": list(names), "seed": seed or 0} | start
        replace_file(unfinished / "agreement.yaml", folder.agreement_file.read_bytes())
        replace_file(unfinished / "round.yaml", round_file.read_bytes())
        replace_file(
            unfinished / "run.yaml",
            yaml.safe_dump(contents, sort_keys=False, allow_unicode=True).encode(),
        )
        app_warnings = write_app_folder(unfinished / "app", *_files(unfinished))
        run = read_settings(unfinished / "run.yaml", RunSettings)
        if not dry_run:
            unfinished.rename(place)
            sync_folder(folder.runs)
    except OSError as error:
        raise StorageError(error, place) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return PreparedRun(run, settings.rounds, place, False, 0, app_warnings)


def _begun(
    folder: CoordinatorFolder,
    place: Path,
    round_file: Path,
    settings: RoundSettings,
    sites: Sequence[str],
    seed: int | None,
    start: Mapping[str, Any],
) -> RunSettings:
    """The settings that a run was begun with, if these are the same."""
    agreement, rounds, run_file = _files(place)
    run = read_settings(run_file, RunSettings)
    differing = [
        name
        for name, differs in (
            ("round file", read_settings(rounds, RoundSettings) != settings),
            ("agreement", read_settings(agreement, Agreement) != folder.agreement()),
            ("sites", bool(sites) and set(sites) != set(run.sites)),
            ("seed", seed is not None and seed != run.seed),
            *((name, run.model_dump(mode="json")[name] != value) for name, value in start.items()),
        )
        if differs
    ]
    if differing:
        raise _wrong(
            round_file,
            f"the run {run.run_id!r} was begun with another {' and another '.join(differing)}; "
            "name a new run with --run, or go on with the settings of this one",
        )
    return run


def _files(place: Path) -> tuple[Path, Path, Path]:
    return place / "agreement.yaml", place / "round.yaml", place / "run.yaml"


def _check_run_id(name: str, runs: Path) -> None:
    try:
        TypeAdapter(RunId).validate_python(name)
    except ValidationError as error:
        raise _wrong(
            runs,
            f"{name!r} is no name of a run; give --run lowercase letters, digits, '-' and '_', at "
            "most 64, the first a letter or digit",
        ) from error


def _wrong(path: Path, message: str) -> ConfigurationError:
    return ConfigurationError([Problem(path, None, message)])
