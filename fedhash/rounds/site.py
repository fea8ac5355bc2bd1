"""The site's half of a round: every limit of the agreement is checked before any work.

The coordinator is trusted with scheduling and with nothing else. In this order, a request is
refused, by a typed reply that names the rule, unless:

1. it is a well-formed message of a kind that the site's aggregation knows   ``bad_message``
2. it names the site's own agreement                                        ``other_agreement``
3. it names the site's own aggregation, so no coordinator can lower it      ``other_aggregation``
4. it names the site's own model settings and layout                        ``other_model``
5. its cohort is part of the roster, holds this site and is large enough    ``bad_cohort``
6. its round is within the run and not older than one already trained       ``stale_round``
7. its margins fit the findings and lie in the agreed range                 ``margin_out_of_range``
   and moved no further than the steps that the run's schedule allows         ``margin_jump``
   and without drift control it tells no drift                                ``unscheduled_drift``
8. its local steps are within the agreed cap                                ``too_much_work``
9. its privacy guarantees what it says (`check_privacy`)                    ``unsound_privacy``
10. what it carries from the counted round is still there                   ``state_lost``
   and was made under the same plan: no private round starts from what a
   round without noise has left

Then the site trains, stores what its next round needs and only then replies. A private training
begins with its steps in the site's ledger, and where a cap forbids them it does not begin
(``epsilon_cap``); a training that fails is a refusal as well (``training_failed``), and says if it
left the finite numbers. What went wrong with which study stands in the site's own log: a refusal
never says anything about the data. Rule 8 therefore judges the request alone; epochs, whose steps
would tell the number of patients, are cut at the cap without a word.

Messages are answered one at a time. A round may be asked for again, because a
coordinator that crashed has forgotten the reply: the site goes on from what it carried after the
round that last counted and gives the same answer; under privacy, an answer with new noise, which is
accounted for as well. Under noise that the sites share the step needs to know the sum's cohort,
which the site's aggregation tells; a mode that the site does not allow is ``mode_not_allowed``.

Shape suffixes: d model parameters, K findings.

    >>> agent = SiteAgent("hospital-a", agreement, trainer, FileSiteState(folder), aggregation)
    >>> agent.handle(message).kind
    'train_reply'
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from fedhash.agreement import Agreement
from fedhash.errors import (
    LEFT_FINITE_NUMBERS,
    DivergedError,
    FedhashError,
    ProtocolError,
    RefusedError,
)
from fedhash.learning.local_training import LocalResult, carried_names
from fedhash.models.settings import ModelSettings
from fedhash.privacy.public_count import published_patients
from fedhash.rounds.aggregation import Contribution, SiteAggregation
from fedhash.rounds.messages import Message
from fedhash.rounds.settings import RoundSettings, check_privacy, starting_margins
from fedhash.rounds.site_state import SiteState
from fedhash.rounds.training_messages import Refusal, RunPlan, TrainRequest, largest_message_bytes
from fedhash.secagg.floors import SecureCohort

__all__ = ["MARGIN_WEIGHT_RANGE", "SiteAgent", "Trainer", "answer_or_refuse", "weight_of"]

MARGIN_WEIGHT_RANGE = (0.5, 2.0)  # w_k of the loss; its gradient bound holds up to w_max = 2
_MARGIN = "margin"  # kept beside what is carried
_PLAN = "plan"  # likewise, the digest of the plan under which it was made
_TOLERANCE = 1e-6  # margins travel as float32: an agreed end of a range may round past itself

_log = logging.getLogger(__name__)


@runtime_checkable  # the test suite checks types at run time
class Trainer(Protocol):
    """The site's data and model, as the agent sees them."""

    @property
    def model_settings(self) -> ModelSettings:
        """The model that this site trains."""
        ...

    @property
    def layout_digest(self) -> str:
        """`Layout.digest()` of that model."""
        ...

    @property
    def model_size(self) -> int:
        """Its number of parameters."""
        ...

    @property
    def patients(self) -> int:
        """Patients that train."""
        ...

    def train(self, request: TrainRequest, carried: Mapping[str, np.ndarray]) -> LocalResult:
        """Train one round from the request's model and what the site carries."""
        ...

    def shared_step(
        self, request: TrainRequest, cohort: SecureCohort | None
    ) -> tuple[LocalResult, Int64[np.ndarray, " d"]]:
        """The sum of one step at the request's model, and the site's share of the round's noise."""
        ...


class SiteAgent:
    """Answers the coordinator's messages; see the module's rules."""

    def __init__(
        self,
        site: str,
        agreement: Agreement,
        trainer: Trainer,
        state: SiteState,
        aggregation: SiteAggregation,
    ) -> None:
        self.site = site
        self._agreement = agreement
        self._trainer = trainer
        self._state = state
        self._aggregation = aggregation
        self._one_at_a_time = Lock()  # model, memory and round secrets are one state

    @property
    def max_message_bytes(self) -> int:
        """Longer messages need not be decoded at all."""
        return largest_message_bytes(self._trainer.model_size)

    def handle(self, message: Message) -> Message:
        """Answer a message; whatever a peer sends, the answer is a message too."""
        with self._one_at_a_time:
            return answer_or_refuse(
                self.site, lambda: self._aggregation.answer(message, self.contribute)
            )

    def contribute(self, request: TrainRequest, cohort: SecureCohort | None) -> Contribution:
        """Check a request against all rules, train, and store what the next round needs.

        Args:
            request: Well-formed, and nothing more.
            cohort: See `SiteAggregation.answer`.

        Raises:
            RefusedError: A rule forbids it.
            FedhashError: The training failed.
        """
        self._check_plan(request)
        self._check_round(request)
        self._check_margins(request)
        plan = request.plan
        newest = self._state.newest_round(plan.run_id)
        last = self._state.carried(plan.run_id, newest)  # several times the model: read once
        self._check_margin_step(request, newest, last)
        self._check_drift(request)
        self._check_work(request)
        self._check_privacy(request)
        noise = None
        if plan.settings.privacy.shares_noise:
            result, noise = self._trainer.shared_step(request, cohort)
        else:
            result = self._trainer.train(request, self._carried(request, newest, last))
        blocks = [result.update]
        if result.control_delta is not None:
            blocks.append(result.control_delta)
        if result.statistics is not None:
            blocks.append(result.statistics)
        told_loss = 0.0 if result.mean_loss is None else result.mean_loss
        blocks.append(np.array([told_loss], dtype=np.float32))
        vector = np.concatenate(blocks)
        if not all(np.isfinite(array).all() for array in (vector, *result.carried.values())):
            raise DivergedError(f"the reply of round {request.round_number} is not finite")
        self._state.keep(
            plan.run_id,
            request.round_number,
            {**result.carried, _MARGIN: request.margins.mu, _PLAN: _digest(plan)},
            counted_round=request.counted.get(self.site, 0),
        )
        return Contribution(vector, weight_of(plan.settings, self._trainer.patients), noise)

    def _check_plan(self, request: TrainRequest) -> None:
        plan, agreement = request.plan, self._agreement
        if plan.agreement_digest != agreement.digest():
            raise RefusedError(
                "other_agreement",
                f"the request names the agreement {plan.agreement_digest[:12]}, this site signed "
                f"{agreement.digest()[:12]} ({agreement.name!r}); use the same file on both sides",
            )
        if plan.settings.aggregation != self._aggregation.name:
            raise RefusedError(
                "other_aggregation",
                f"the request asks for {plan.settings.aggregation!r} aggregation, this site takes "
                f"part in {self._aggregation.name!r} only",
            )
        own_layout = self._trainer.layout_digest
        if (
            plan.settings.model != self._trainer.model_settings
            or plan.layout_digest != own_layout
            or request.model.size != self._trainer.model_size
        ):
            raise RefusedError(
                "other_model",
                f"the request is for a model of {request.model.size} parameters with the layout "
                f"{plan.layout_digest[:12]}, this site trains one of {self._trainer.model_size} "
                f"with {own_layout[:12]}; use the same model settings on both sides",
            )

    def _check_round(self, request: TrainRequest) -> None:
        plan, cohort = request.plan, request.cohort
        if (
            list(cohort) != sorted(set(cohort))
            or not set(cohort) <= set(plan.sites)
            or self.site not in cohort
            or len(cohort) < self._agreement.smallest_cohort
        ):
            raise RefusedError(
                "bad_cohort",
                f"the cohort names {len(cohort)} sites; it must be sorted, be part of the run's "
                f"roster, hold {self.site!r} and have at least "
                f"{self._agreement.smallest_cohort} sites",
            )
        newest = self._state.newest_round(plan.run_id)
        number, counted = request.round_number, request.counted.get(self.site, 0)
        if not (counted < number <= plan.settings.rounds and newest <= number):
            raise RefusedError(
                "stale_round",
                f"round {number} was asked for after round {counted} counted, but this site has "
                f"trained up to round {newest} of {plan.settings.rounds}; a coordinator restored "
                f"from an old copy must start a new run",
            )

    def _check_margins(self, request: TrainRequest) -> None:
        findings = len(self._agreement.findings)
        for what, values, (low, high) in (
            ("margin", request.margins.mu, self._agreement.margin_range),
            ("margin weight", request.margins.w, MARGIN_WEIGHT_RANGE),
        ):
            inside = (low - _TOLERANCE <= values) & (values <= high + _TOLERANCE)
            if values.size != findings or not inside.all():
                raise RefusedError(
                    "margin_out_of_range",
                    f"the request has {values.size} values of the {what}, {(~inside).sum()} of "
                    f"them outside {low}..{high}; expected {findings} values inside",
                )

    def _check_margin_step(
        self, request: TrainRequest, newest: int, last: Mapping[str, np.ndarray] | None
    ) -> None:
        """From what this site last trained with, or from what every run begins with."""
        plan, mu = request.plan, request.margins.mu
        schedule = plan.settings.margin_schedule
        if last is not None and _MARGIN in last:
            earlier, before = newest, last[_MARGIN]
        else:
            earlier, before = 1, starting_margins(plan.settings.loss, self._agreement).mu
        steps = 0 if schedule is None else schedule.steps_between(earlier, request.round_number)
        most = steps * self._agreement.largest_margin_step
        moved = float(np.abs(mu - before).max())
        if moved > most + _TOLERANCE * (1 + steps):
            raise RefusedError(
                "margin_jump",
                f"a margin moved by {moved:.3g} since round {earlier}, the agreement allows "
                f"{self._agreement.largest_margin_step:g} in each of {steps} steps of the schedule",
            )

    def _check_drift(self, request: TrainRequest) -> None:
        schedule = request.plan.settings.margin_schedule
        if request.drift and (schedule is None or not schedule.drift_control):
            raise RefusedError(
                "unscheduled_drift",
                f"the request tells a drift of {request.drift:g}, its round file has no drift "
                "control",
            )

    def _check_work(self, request: TrainRequest) -> None:
        steps, most = (
            request.plan.settings.learning.local_steps,
            self._agreement.largest_local_steps,
        )
        if steps is not None and steps > most:
            raise RefusedError(
                "too_much_work",
                f"the request asks for {steps} local steps, the agreement allows {most}; "
                "lower local_steps",
            )

    def _check_privacy(self, request: TrainRequest) -> None:
        problems = check_privacy(request.plan.settings, self._agreement)
        if problems:
            raise RefusedError("unsound_privacy", "; ".join(message for _, message in problems))

    def _carried(
        self, request: TrainRequest, newest: int, last: Mapping[str, np.ndarray] | None
    ) -> Mapping[str, np.ndarray]:
        """What the site carries from the round that last counted."""
        counted = request.counted.get(self.site)
        if counted is None or not carried_names(request.plan.settings.learning):
            return {}
        carried = last if counted == newest else self._state.carried(request.plan.run_id, counted)
        if carried is None:
            raise RefusedError(
                "state_lost",
                f"this site does not have what it carried from round {counted} any more; "
                "start a new run from the current model",
            )
        if not np.array_equal(carried.get(_PLAN, ()), _digest(request.plan)):
            raise RefusedError(
                "state_lost",
                f"what this site carried from round {counted} of {request.plan.run_id!r} was made "
                "under another plan; start a new run, under another name",
            )
        return {name: array for name, array in carried.items() if name not in {_MARGIN, _PLAN}}


def weight_of(settings: RoundSettings, patients: int) -> float:
    """How much a site with so many patients counts in a round."""
    if settings.weighting == "uniform":
        return 1.0
    return float(patients if settings.weighting == "patients" else published_patients(patients))


def answer_or_refuse(site: str, answer: Callable[[], Message]) -> Message:
    """What `answer` gives, or the refusal that stands for its error; only the log has details."""
    try:
        return answer()
    except RefusedError as error:
        return Refusal(error.reason, str(error)).to_message()
    except ProtocolError as error:
        return Refusal("bad_message", str(error)).to_message()
    except DivergedError as error:
        _log.warning("site %s: %s", site, error)
        return Refusal("training_failed", f"the training {LEFT_FINITE_NUMBERS}").to_message()
    except (FedhashError, OSError, ArithmeticError, RuntimeError, MemoryError):
        _log.exception("site %s could not train", site)  # torch raises RuntimeError
        return Refusal("training_failed", "see the site's own log").to_message()


def _digest(plan: RunPlan) -> UInt8[np.ndarray, " 32"]:
    return np.frombuffer(bytes.fromhex(plan.digest()), np.uint8)
