"""What `fedhash-coordinator train` watches: a run to its end, whatever crashes on the way.

1. The run goes on from its last checkpoint: where Flower still trains it, this only watches; where
   Flower does not know it, or a process of it has died, it is started again.
2. What the run itself says is wrong - three failed rounds in a row, an altered log - ends the
   command with that error. So do three crashes without a round between them.

    >>> follow_run(folder, prepare_run(folder, Path("round.yaml")), print).round_number
    30
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fedhash.errors import ProtocolError
from fedhash.rounds.coordinator import CoordinatorState, RoundRecord
from fedhash_server.coordinator_folder import CoordinatorFolder
from fedhash_server.run_lock import is_training
from fedhash_server.run_progress import newest_round, newest_state
from fedhash_server.superlink import FlowerRun, SuperLink, SuperLinkSilentError, bundle_hash
from fedhash_server.training_run import PreparedRun

__all__ = ["follow_run"]

_POLL_S = 0.5  # of the checkpoints
_ASK_EVERY_S = 3.0  # the SuperLink, which logs each question
_LONGEST_SILENCE_S = 90.0  # of the SuperLink, which its supervisor starts again within a minute
_DEATH_S = 5.0  # so long after its process let go of the lock, Flower should know that a run ended
_START_S = 20.0  # and so long after we first saw one that another command started
_MOST_CRASHES = 3  # in a row, without a round between them
_OWN_ERROR = "ServerApp failed with exception: "  # flwr/superlink/runtime/run_serverapp.py


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
        state = newest_state(self._run.folder)
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
        if newest_round(self._run.folder) >= self._run.rounds:
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
        if newest_round(self._run.folder) >= self._run.rounds:
            return
        number = self._superlink.start_run(self._app, self._run.folder.parent)
        self._watched.add(number)
        self._was_training, self._dead_since = False, None
        self._on_event(f"Flower started the run as {number}")
