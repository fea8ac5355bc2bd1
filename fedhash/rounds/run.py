"""A whole run: round after round over an engine, with a checkpoint after each.

A step of the margin schedule is in its audit log before the checkpoint that uses it is stored. The
checkpoint holds the log's newest hash, so a run goes on only from a log that holds it too.

>>> coordinator = coordinator_of(plan, agreement, state)
>>> vector = run_rounds(coordinator, InProcessEngine(agents), Checkpoints(folder))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from fedhash.agreement import Agreement
from fedhash.audit_log import AuditLog
from fedhash.errors import ProtocolError
from fedhash.rounds.aggregation import Aggregation, Answers, PlainAggregation, Stage
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import CoordinatorState, RoundCoordinator, RoundRecord
from fedhash.rounds.engine import Engine
from fedhash.rounds.training_messages import RunPlan
from fedhash.secagg.coordinator import SecureAggregation

__all__ = ["coordinator_of", "run_round", "run_rounds"]

_log = logging.getLogger(__name__)
# One failed round is a bad moment of the network; three in a row need a person.
_FAILED_ROUNDS_IN_A_ROW = 3


def coordinator_of(
    plan: RunPlan, agreement: Agreement, state: CoordinatorState
) -> RoundCoordinator:
    """The coordinator of a run, with the aggregation that its round file names."""
    aggregation: Aggregation = (
        SecureAggregation(agreement)
        if plan.settings.aggregation == "secure"
        else PlainAggregation()
    )
    return RoundCoordinator(plan, agreement, state, aggregation)


def run_rounds(
    coordinator: RoundCoordinator,
    engine: Engine,
    checkpoints: Checkpoints | None = None,
    on_round: Callable[[RoundRecord], None] | None = None,
    on_failures: Callable[[int], None] | None = None,
) -> Float32[np.ndarray, " d"]:
    """Run the rounds that are left.

    Args:
        coordinator: Fresh, or resumed from a checkpoint's state.
        engine: Reaches the sites.
        checkpoints: Where the state is saved after each round; None saves nothing.
        on_round: Called after each round, completed or failed, once it is saved.
        on_failures: Called before the next round with how many failed in a row, at least one; it
            may wait for sites to come back.

    Returns:
        The model vector after the last round.

    Raises:
        ProtocolError: Three rounds in a row failed (the last one's error), none of all rounds was
            completed, or the engine could not send at all.
        AuditError: The margin schedule's audit log was altered or cut short.
        StorageError: The operating system refuses the audit log, as a full disk does.
        CheckpointError: The state cannot be stored.
    """
    failed_in_a_row = 0
    while not coordinator.finished:
        error: ProtocolError | None = None
        ended = coordinator.state.round_number
        try:
            run_round(coordinator, engine)
        except ProtocolError as failure:
            if coordinator.state.round_number == ended:
                raise  # not the round failed but the engine or our own message
            error = failure
        if checkpoints is not None:
            _note_step(coordinator, checkpoints)
            checkpoints.save(coordinator.plan, coordinator.state)
        if on_round is not None:
            on_round(coordinator.state.records[-1])
        failed_in_a_row = 0 if error is None else failed_in_a_row + 1
        if error is not None and failed_in_a_row == _FAILED_ROUNDS_IN_A_ROW:
            raise error
        if failed_in_a_row and on_failures is not None and not coordinator.finished:
            on_failures(failed_in_a_row)
    records = coordinator.state.records
    if all(record.failure is not None for record in records):
        raise ProtocolError(
            f"none of the {len(records)} rounds was completed, so there is nothing but the first "
            f"model; the last round: {records[-1].failure}"
        )
    return coordinator.state.model


def _note_step(coordinator: RoundCoordinator, checkpoints: Checkpoints) -> None:
    """Write the round's step of the margin schedule into its audit log, if there was one."""
    step, state = coordinator.last_step, coordinator.state
    if step is not None:
        with AuditLog(checkpoints.margin_audit, noted=state.audit_head) as log:
            log.append(step.model_dump(mode="json"))
            coordinator.state = replace(state, audit_head=log.head)
        _log.info("round %d: head of the margin audit %s", step.round_number, log.head)


def run_round(coordinator: RoundCoordinator, engine: Engine) -> RoundRecord:
    """Run one round's exchanges over the engine.

    Raises:
        ProtocolError: As `RoundCoordinator.round`.
    """
    timeout_s = coordinator.plan.settings.timeout_s
    steps: Generator[Stage, Answers, RoundRecord] = coordinator.round(engine.sites)
    try:
        stage = next(steps)
        while True:
            stage = steps.send(engine.ask(stage.name, stage.requests, timeout_s))
    except StopIteration as done:
        record: RoundRecord = done.value
        return record
