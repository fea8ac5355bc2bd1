"""The coordinator's state after each round, stored so that a killed run goes on exactly.

1. A checkpoint file is whole or absent, and carries its own hash.
2. It belongs to one plan; another plan's checkpoint is an error, never a starting point.
3. The last two are kept. The sites keep two states as well (fedhash.rounds.site_state), so going
   on from either of them gives the same model as a run that was never stopped.

    >>> checkpoints = Checkpoints(Path("run/checkpoints"))
    >>> state = checkpoints.load(plan) or CoordinatorState.start(plan, agreement, vector)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import ValidationError

from fedhash.audit_log import START
from fedhash.configuration import Settings
from fedhash.errors import CheckpointError
from fedhash.learning.loss import Margins
from fedhash.rounds._files import read_stored, write_stored
from fedhash.rounds.coordinator import CoordinatorState, RoundRecord
from fedhash.rounds.messages import Message
from fedhash.rounds.training_messages import RunPlan

__all__ = ["Checkpoints"]

_KEPT = 2
_OPTIMISER = "optimiser."


class _Facts(Settings):
    """All of a state that is not an array, and the plan that it belongs to."""

    plan: RunPlan
    round_number: int
    counted: dict[str, int]
    records: tuple[RoundRecord, ...]
    # of a run without a margin schedule, as all older runs are
    drift: float = 0.0
    audit_head: str = START


class Checkpoints:
    """One file a round under `folder`; the margin schedule's audit log stands beside them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.margin_audit = folder / "margin_audit.jsonl"

    def save(self, plan: RunPlan, state: CoordinatorState) -> None:
        """Store the state after `state.round_number`."""
        facts = _Facts(
            plan=plan,
            round_number=state.round_number,
            counted=dict(state.counted),
            records=state.records,
            drift=state.drift,
            audit_head=state.audit_head,
        )
        arrays = {
            "model": state.model,
            "margin": state.margins.mu,
            "margin_weight": state.margins.w,
            # as an array: the records of a long run outgrow a header
            "facts": np.frombuffer(facts.model_dump_json().encode(), dtype=np.uint8),
        }
        if state.control is not None:
            arrays["control"] = state.control
        arrays |= {_OPTIMISER + name: array for name, array in state.optimiser.items()}
        path = self._folder / f"round-{state.round_number:06d}.checkpoint"
        write_stored(path, Message("checkpoint", {}, arrays))
        for path in self._paths()[:-_KEPT]:
            path.unlink()

    def load(self, plan: RunPlan) -> CoordinatorState | None:
        """The newest stored state, or None when there is none.

        Raises:
            CheckpointError: The newest file is damaged or belongs to another plan.
        """
        newest = self.newest()
        if newest is None:
            return None
        if newest[0] != plan:
            raise CheckpointError(
                f"{self._paths()[-1]} belongs to another run or to other settings; "
                f"resume with the settings of that run, or choose a new folder"
            )
        return newest[1]

    def newest(self) -> tuple[RunPlan, CoordinatorState] | None:
        """The newest stored state and the plan that it belongs to, for whoever does not know it.

        Raises:
            CheckpointError: The newest file is damaged.
        """
        paths = self._paths()
        if not paths:
            return None
        remedy = "delete it to go on from the round before"
        arrays = read_stored(paths[-1], "checkpoint", remedy).arrays
        try:
            facts = _Facts.model_validate_json(arrays["facts"].tobytes())
        except ValidationError as error:
            raise CheckpointError(f"{paths[-1]} was written by another version: {error}") from error
        state = CoordinatorState(
            round_number=facts.round_number,
            model=arrays["model"],
            optimiser={
                name.removeprefix(_OPTIMISER): array
                for name, array in arrays.items()
                if name.startswith(_OPTIMISER)
            },
            control=arrays.get("control"),
            margins=Margins(arrays["margin"], arrays["margin_weight"]),
            counted=facts.counted,
            records=facts.records,
            drift=facts.drift,
            audit_head=facts.audit_head,
        )
        return facts.plan, state

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.checkpoint"))
