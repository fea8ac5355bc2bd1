"""`fedhash-coordinator train`: from a round file to a finished run, whatever crashes on the way.

    runs/RUN_ID/
      agreement.yaml round.yaml run.yaml    what the run was begun with
      app/                                  the bundle that Flower carries to the sites
      checkpoints/                          after each round, by the ServerApp

1. A run's folder comes into being by one rename, with all its files. A name that is taken goes on,
   and only with the settings that it was begun with.
2. The run goes on from its last checkpoint: where Flower still trains it, this only watches; where
   Flower does not know it, or a process of it has died, it is started again.
3. What the run itself says is wrong - three failed rounds in a row, an altered log - ends the
   command with that error. So do three crashes without a round between them.
4. Progress is what the checkpoints say, so it is the same for whoever looks.

    >>> prepared = prepare_run(folder, Path("round.yaml"), run_id="run-7")
    >>> follow_run(folder, prepared, print).rounds
    30
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash.durability import replace_file, sync_folder
from fedhash.errors import (
    CheckpointError,
    ConfigurationError,
    Problem,
    ProtocolError,
    ReleaseError,
    StorageError,
)
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import CoordinatorState, RoundRecord
from fedhash.rounds.settings import RoundSettings
from fedhash.rounds.training_messages import RunId
from fedhash_server.coordinator_folder import CoordinatorFolder
from fedhash_server.flower import write_app_folder
from fedhash_server.roster import read_roster
from fedhash_server.run_lock import is_training
from fedhash_server.settings import RunSettings
from fedhash_server.superlink import FlowerRun, SuperLink, SuperLinkSilentError, bundle_hash

__all__ = ["PreparedRun", "follow_run", "prepare_run", "read_progress"]

_POLL_S = 0.5  # of the checkpoints
_ASK_EVERY_S = 3.0  # the SuperLink, which logs each question
_LONGEST_SILENCE_S = 90.0  # of the SuperLink, which its supervisor starts again within a minute
_DEATH_S = 5.0  # so long after its process let go of the lock, Flower should know that a run ended
_START_S = 20.0  # and so long after we first saw one that another command started
_MOST_CRASHES = 3  # in a row, without a round between them
_OWN_ERROR = "ServerApp failed with exception: "  # flwr/superlink/runtime/run_serverapp.py


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
        done = _newest(place)
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


def follow_run(
    folder: CoordinatorFolder,
    prepared: PreparedRun,
    on_round: Callable[[RoundRecord], None],
    on_event: Callable[[str], None] = lambda _: None,
    pause: Callable[[float], None] = time.sleep,
) -> CoordinatorState:
    """Start the run or go on with it, and wait for its end.

    Args:
        folder: The coordinator's.
        prepared: By `prepare_run`, not in a dry run.
        on_round: Called with each round that ends from now on.
        on_event: Called with what else happens, a sentence each.
        pause: Sleeps so many seconds; may raise to stop watching, which ends no run.

    Returns:
        The state after the last round.

    Raises:
        CheckpointError: A checkpoint is damaged.
        ProtocolError: The run ended with an error of its own, crashed three times without a round,
            or the SuperLink does not answer.
        StorageError: The operating system refuses.
    """
    with SuperLink(folder, folder.settings()) as superlink:
        follower = _Follower(prepared, superlink, on_round, on_event)
        while (state := follower.step()) is None:
            pause(_POLL_S)
    return state


class _Follower:
    """Looks at one run again and again, and starts it where it is not being trained."""

    def __init__(
        self,
        prepared: PreparedRun,
        superlink: SuperLink,
        on_round: Callable[[RoundRecord], None],
        on_event: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = prepared
        self._app = prepared.folder / "app"
        self._bundle = bundle_hash(self._app)
        self._superlink = superlink
        self._on_round = on_round
        self._on_event = on_event
        self._clock = clock
        self._told = prepared.rounds_done
        self._crashes = 0
        self._watched: set[int] = set()  # runs of Flower whose end is news to us
        self._was_training = False
        self._dead_since: float | None = None
        self._silent_since: float | None = None
        self._next_question = 0.0
        self._names: list[str] = []
        self._state: CoordinatorState | None = None

    def step(self) -> CoordinatorState | None:
        """Look once; the state after the last round, or None before."""
        state = self._tell_rounds()
        if state is not None and state.round_number >= self._run.rounds:
            return state
        if self._clock() < self._next_question:
            return None
        self._next_question = self._clock() + _ASK_EVERY_S
        try:
            self._keep_training()
            self._silent_since = None
        except SuperLinkSilentError:
            # a crashed SuperLink comes back, with its database
            now = self._clock()
            if self._silent_since is None:
                self._silent_since = now
                self._on_event("the SuperLink does not answer; waiting for it")
            elif now - self._silent_since > _LONGEST_SILENCE_S:
                raise
        return None

    def _tell_rounds(self) -> CoordinatorState | None:
        names = sorted(each.name for each in (self._run.folder / "checkpoints").glob("round-*"))
        if names == self._names:
            return self._state  # a checkpoint holds the model: it is not read twice
        state = _newest(self._run.folder)
        self._names, self._state = names, state
        if state is not None and len(state.records) > self._told:
            for record in state.records[self._told :]:
                self._on_round(record)
            self._told, self._crashes = len(state.records), 0
        return state

    def _keep_training(self) -> None:
        runs = self._superlink.runs(self._bundle)
        living = [run for run in runs if not run.finished]
        if not living:
            for run in runs:
                if run.number in self._watched:
                    self._ended(run)
            self._start()
        elif is_training(self._run.folder):
            self._watched |= {run.number for run in living}
            self._was_training, self._dead_since = True, None
        elif self._was_training or not self._watched:
            # one that we started and never saw training is still loading its libraries
            now = self._clock()
            if self._dead_since is None:
                self._dead_since = now
            elif now - self._dead_since > (_DEATH_S if self._was_training else _START_S):
                # Flower itself finds out after a minute, by a missing heartbeat
                for run in living:
                    self._watched.discard(run.number)
                    self._superlink.stop_run(run.number)
                self._crashed("its process died")

    def _ended(self, run: FlowerRun) -> None:
        """What the end of a run means, of which there are rounds left."""
        self._watched.discard(run.number)
        if _newest_round(self._run.folder) >= self._run.rounds:
            return  # it ended between two looks
        if run.details.startswith(_OWN_ERROR):
            raise ProtocolError(
                f"the run {self._run.run.run_id} ended with an error: "
                f"{run.details.removeprefix(_OWN_ERROR)}"
            )
        if run.outcome == "stopped":
            raise ProtocolError(
                f"the run {self._run.run.run_id} was stopped by another command; the same command "
                "goes on with it"
            )
        self._crashed(run.details or f"Flower says {run.outcome!r} and nothing else")

    def _crashed(self, why: str) -> None:
        self._crashes += 1
        if self._crashes >= _MOST_CRASHES:
            raise ProtocolError(
                f"the run {self._run.run.run_id} crashed {self._crashes} times without a round "
                f"between them ({why}); the log of 'fedhash-coordinator run' says more"
            )
        self._was_training, self._dead_since = False, None
        self._on_event(f"the run crashed ({why}); it goes on from its last checkpoint")

    def _start(self) -> None:
        if _newest_round(self._run.folder) >= self._run.rounds:
            return
        number = self._superlink.start_run(self._app, self._run.folder.parent)
        self._watched.add(number)
        self._was_training, self._dead_since = False, None
        self._on_event(f"Flower started the run as {number}")


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


def _newest(place: Path) -> CoordinatorState | None:
    """The newest checkpoint's state; one that is replaced under our hands is read again."""
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


def _newest_round(place: Path) -> int:
    state = _newest(place)
    return state.round_number if state else 0


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
