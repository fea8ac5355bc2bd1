"""The coordinator's half of a round, without any input or output of its own.

Rules:

1. A round asks the sites of the roster that can be reached; fewer than the smallest cohort of the
   agreement are not asked at all.
2. A site that fails, refuses, is late or sends nonsense is left out, with the reason in the record.
3. The round completes when at least the smallest cohort counts. The weighted mean of the updates
   goes through the coordinator's optimiser; the control variate c moves by the mean control delta
   times the share of the roster that counted (SCAFFOLD, arXiv 1910.06378, algorithm 1, line 17).
   Where the sites share their noise they send gradients: their sum times the round's learning rate,
   over the expected patients, takes the place of the mean update.
4. Otherwise the round fails: model, optimiser, control variate and the sites' counted rounds stay
   as they are, the failure stands in the record, and the next round may start.
5. The state changes in one assignment at the end, so an interrupted round leaves no trace.
6. After a completed round with margin statistics the margin schedule takes a step
   (fedhash.rounds.margin_schedule); `last_step` is what its audit log must hold.

Shape suffixes: d model parameters, K findings.

    >>> state = CoordinatorState.start(plan, agreement, vector)
    >>> coordinator = RoundCoordinator(plan, agreement, state, SecureAggregation(agreement))
    >>> steps = coordinator.round(engine.sites)
    >>> stage = next(steps)          # send stage.requests, resume with the answers
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32

from fedhash.agreement import Agreement
from fedhash.audit_log import START
from fedhash.errors import LEFT_FINITE_NUMBERS, CohortError, ProtocolError
from fedhash.learning.coordinator_optimisers import coordinator_optimiser
from fedhash.learning.local_training import learning_rate_of
from fedhash.learning.loss import Margins
from fedhash.privacy.settings import DistributedPrivacySettings
from fedhash.rounds.aggregation import Aggregate, Aggregation, Answers, Stage, SumRecord
from fedhash.rounds.engine import Answer
from fedhash.rounds.margin_audit import MarginEntry, statistics_noise_sd
from fedhash.rounds.messages import Message
from fedhash.rounds.settings import starting_margins
from fedhash.rounds.training_messages import RunPlan, TrainRequest, slices

__all__ = ["CoordinatorState", "Exchange", "RoundCoordinator", "RoundRecord"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request to one site, for the record.

    Attributes:
        stage: Name of the protocol's stage.
        site: Who was asked.
        outcome: Kind of the reply, or the reason why there is none.
        seconds: Until the reply, as the engine measured it.
        request_bytes: Size of the request.
        reply_bytes: Size of the reply.
    """

    stage: str
    site: str
    outcome: str
    seconds: float
    request_bytes: int
    reply_bytes: int


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What happened in one round.

    Attributes:
        round_number: From 1.
        failure: None for a completed round, otherwise why the model did not change.
        sites: Each site of the roster: ``ok``, ``not reachable`` or the reason it was left out;
            ``ok`` in a failed round is a site that did all it was asked for.
        weight: Sum of the counted sites' weights.
        mean_loss: Weighted mean of the sites' training losses; None for a failed round, and where
            privacy keeps the losses at the sites.
        seconds: Wall time of the round.
        aggregation: How the sum was made: graph, threshold, how many shared and survived; of a
            failed round, what was known when it failed.
        notes: What went wrong with sites that count nevertheless.
        exchanges: Each request with its outcome, size and time, in the order of the answers.
    """

    round_number: int
    failure: str | None
    sites: Mapping[str, str]
    weight: float
    mean_loss: float | None
    seconds: float
    aggregation: Mapping[str, str | int | float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    exchanges: tuple[Exchange, ...] = ()

    @property
    def diverged(self) -> bool:
        """Whether the round failed for trainings that left the finite numbers, and nothing else."""
        if self.failure is None:
            return False
        left_out = [reason for reason in self.sites.values() if reason != "ok"]
        return all(LEFT_FINITE_NUMBERS in reason for reason in left_out or [self.failure])


@dataclass(frozen=True, slots=True, eq=False)
class CoordinatorState:
    """Everything that a checkpoint must hold to go on with the next round.

    Attributes:
        round_number: The last round that ended, completed or failed.
        model: Model vector.
        optimiser: The coordinator optimiser's arrays.
        control: The control variate c; None in a run without.
        margins: mu and w of each finding.
        counted: Site to the last round that holds its reply.
        records: One record a round.
        drift: g of the margin schedule.
        audit_head: Hash of the newest entry of the margin schedule's audit log.
    """

    round_number: int
    model: Float32[np.ndarray, " d"]
    optimiser: Mapping[str, np.ndarray]
    control: Float32[np.ndarray, " d"] | None
    margins: Margins
    counted: Mapping[str, int] = field(default_factory=dict)
    records: tuple[RoundRecord, ...] = ()
    drift: float = 0.0
    audit_head: str = START

    @classmethod
    def start(
        cls, plan: RunPlan, agreement: Agreement, model: Float32[np.ndarray, " d"]
    ) -> CoordinatorState:
        """The state before round 1: the loss's margin for every finding, weights of one."""
        settings = plan.settings
        return cls(
            round_number=0,
            model=model,
            optimiser={},
            control=np.zeros_like(model) if settings.learning.control_variates else None,
            margins=starting_margins(settings.loss, agreement),
        )


class RoundCoordinator:
    """Runs the rounds of one run; see the module's rules.

    Attributes:
        plan: The run's plan.
        state: After the last round that ended.
        last_step: The margin schedule's step of that round, or None.
    """

    def __init__(
        self,
        plan: RunPlan,
        agreement: Agreement,
        state: CoordinatorState,
        aggregation: Aggregation,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if aggregation.name != plan.settings.aggregation:
            raise ProtocolError(
                f"the plan asks for {plan.settings.aggregation!r} aggregation, this coordinator "
                f"was given {aggregation.name!r}"
            )
        self.plan = plan
        self.state = state
        self.last_step: MarginEntry | None = None
        self._smallest_cohort = agreement.smallest_cohort
        self._margin_range = agreement.margin_range
        self._aggregation = aggregation
        self._optimiser = coordinator_optimiser(plan.settings.coordinator_optimiser)
        self._clock = clock

    @property
    def finished(self) -> bool:
        """Whether the plan's last round has ended."""
        return self.state.round_number >= self.plan.settings.rounds

    def round(self, reachable: Sequence[str]) -> Generator[Stage, Answers, RoundRecord]:
        """One round as a generator: yields stages, takes answers, returns the record.

        Args:
            reachable: Sites that can be asked; those outside the roster are not.

        Raises:
            CohortError: Fewer sites than the smallest cohort can be asked or count.
            ProtocolError: The run is over, or the aggregate is not finite.
        """
        if self.finished:
            raise ProtocolError(f"all {self.plan.settings.rounds} rounds have ended; start a run")
        started = self._clock()
        present = set(reachable)
        cohort = tuple(sorted(present & set(self.plan.sites)))
        sites = {site: "ok" if site in present else "not reachable" for site in self.plan.sites}
        number = self.state.round_number + 1
        exchanges: list[Exchange] = []
        of_sum = SumRecord()
        request, self.last_step = self._request(cohort), None
        try:
            self._check_cohort(cohort, sites)
            aggregate = yield from self._noted(
                self._aggregation.aggregate(request, of_sum), exchanges
            )
            sites |= of_sum.left_out
            counted = [site for site in cohort if sites[site] == "ok"]
            self._check_cohort(counted, sites)
            following, mean_loss = self._following(request, aggregate, counted)
        except ProtocolError as error:
            record = RoundRecord(
                number,
                str(error),
                sites | of_sum.left_out,
                0.0,
                None,
                self._clock() - started,
                of_sum.facts,
                of_sum.notes,
                tuple(exchanges),
            )
            self._end(self.state, record)
            raise
        record = RoundRecord(
            number,
            None,
            sites,
            aggregate.weight,
            mean_loss,
            self._clock() - started,
            of_sum.facts,
            of_sum.notes,
            tuple(exchanges),
        )
        self._end(following, record)
        return record

    @staticmethod
    def _noted(
        steps: Generator[Stage, Answers, Aggregate], exchanges: list[Exchange]
    ) -> Generator[Stage, Answers, Aggregate]:
        """The same steps; each answer is noted when it is consumed."""

        def noted(stage: str, answers: Answers) -> Iterator[Answer]:
            for answer in answers:
                outcome = answer.outcome
                exchanges.append(
                    Exchange(
                        stage,
                        answer.site,
                        outcome.kind if isinstance(outcome, Message) else outcome.reason,
                        answer.seconds,
                        answer.request_bytes,
                        answer.reply_bytes,
                    )
                )
                yield answer
                del answer, outcome  # a vector, which the next one would find in memory

        try:
            stage = next(steps)
            while True:
                stage = steps.send(noted(stage.name, (yield stage)))
        except StopIteration as done:
            aggregate: Aggregate = done.value
            return aggregate

    def _request(self, cohort: tuple[str, ...]) -> TrainRequest:
        state = self.state
        return TrainRequest(
            plan=self.plan,
            round_number=state.round_number + 1,
            cohort=cohort,
            counted=state.counted,
            model=state.model,
            margins=state.margins,
            control=state.control,
            drift=state.drift,
        )

    def _check_cohort(self, counted: Sequence[str], sites: Mapping[str, str]) -> None:
        if len(counted) < self._smallest_cohort:
            reasons = "; ".join(f"{site}: {why}" for site, why in sites.items() if why != "ok")
            raise CohortError(
                f"{len(counted)} of {len(sites)} sites count in round "
                f"{self.state.round_number + 1}, the agreement asks for "
                f"{self._smallest_cohort}; left out: {reasons or 'none, the roster is too small'}"
            )

    def _following(
        self, request: TrainRequest, aggregate: Aggregate, counted: Sequence[str]
    ) -> tuple[CoordinatorState, float | None]:
        """The state after a completed round, and the round's mean loss if the sites tell it."""
        state = self.state
        parts, mean = slices(request.blocks), aggregate.total / aggregate.weight
        update, loss, control = mean[parts["update"]], mean[parts["loss"]], state.control
        privacy = self.plan.settings.privacy
        if isinstance(privacy, DistributedPrivacySettings):  # a sum of gradients, and no mean
            rate = learning_rate_of(
                self.plan.settings.learning, state.round_number + 1, self.plan.settings.rounds
            )
            update *= aggregate.weight * rate / privacy.expected_patients
        with np.errstate(over="ignore", invalid="ignore"):  # looked for right below
            model, optimiser = self._optimiser.step(state.model, update, state.optimiser)
            if control is not None:
                share = len(counted) / len(self.plan.sites)
                control = np.asarray(control + share * mean[parts["control"]], np.float32)
        for vector in (model, control, loss):
            if vector is not None and not np.isfinite(vector).all():
                raise ProtocolError(
                    f"the sites' mean {LEFT_FINITE_NUMBERS}, so the model stays; lower "
                    "learning_rate or set gradient_clip_norm"
                )
        this_round = dict.fromkeys(counted, state.round_number + 1)
        following = replace(
            state,
            model=model,
            optimiser=optimiser,
            control=control,
            counted={**state.counted, **this_round},
        )
        if "statistics" in parts:
            following = self._scheduled(following, aggregate, parts["statistics"], counted)
        return following, float(loss[0]) if self.plan.settings.privacy.tells_loss else None

    def _scheduled(
        self,
        following: CoordinatorState,
        aggregate: Aggregate,
        statistics: slice,
        counted: Sequence[str],
    ) -> CoordinatorState:
        """The state after the schedule's step, which `last_step` then holds."""
        settings, before = self.plan.settings, self.state
        schedule = settings.margin_schedule
        if schedule is None:
            return following
        sums = aggregate.total[statistics].reshape(4, -1).tolist()
        rounding_sd = aggregate.rounding_sd.get("statistics", 0.0)
        kept = MarginEntry(
            run_id=self.plan.run_id,
            agreement_digest=self.plan.agreement_digest,
            round_number=before.round_number + 1,
            sites=tuple(counted),
            noise_sd=statistics_noise_sd(schedule, len(counted), rounding_sd),
            patients=tuple(sums[0]),
            slack=tuple(sums[1]),
            squared_slack=tuple(sums[2]),
            site_means=tuple(sums[3]),
            schedule=schedule,
            start=settings.loss.value("margin"),
            margin_range=self._margin_range,
            margins_before=tuple(before.margins.mu.tolist()),
            margins=tuple(before.margins.mu.tolist()),
            drift_before=before.drift,
            drift=before.drift,
        )
        step = kept.step()
        self.last_step = kept.model_copy(
            update={"margins": tuple(step.mu.tolist()), "drift": step.drift}
        )
        return replace(following, margins=Margins(step.mu, before.margins.w), drift=step.drift)

    def _end(self, state: CoordinatorState, record: RoundRecord) -> None:
        self.state = replace(
            state, round_number=record.round_number, records=(*state.records, record)
        )
