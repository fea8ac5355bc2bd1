"""What a release says of its patients' privacy: how it was trained, and what that amounts to.

1. It is what the coordinator can state: the run's plan and how many rounds it took. **A site's own
   ledger is the truth**: it counts a round that was asked for again twice, and all other runs too.
2. `epsilon` is that of one patient of one site that took part in every round once, over this run
   and all runs before it that the release descends from, at the agreement's delta. One training
   without noise anywhere in the line, or one of which nothing is stated, and there is no epsilon.
3. In distributed rounds it holds while no more sites work together than the agreement assumes.

    >>> summary = summarised(settings, "run-7", rounds=40, terms=agreement.privacy, before=None)
    >>> summary.epsilon, summary.delta
    (3.1, 1e-05)
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedhash import __version__
from fedhash.configuration import Settings
from fedhash.privacy.accountant import epsilon
from fedhash.privacy.events import (
    LARGEST_STEPS,
    FullBatchGaussianSteps,
    GaussianRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from fedhash.privacy.terms import PrivacyTerms
from fedhash.rounds.settings import RoundSettings, private_steps

__all__ = ["PrivacySummary", "TrainingPrivacy", "summarised"]


class TrainingPrivacy(Settings):
    """One run's steps, in each of which any patient may have been.

    Attributes:
        run_id: The run.
        mode: Whose noise; none: no noise; unstated: its release says nothing.
        noise_multiplier: sigma over the clipping norm; of shared noise, the guaranteed one.
        sampling_rate: q of one patient in one step.
        steps: Over all rounds, at most.
        statistics_noise_multiplier: sigma of a release of margin statistics.
        statistics_releases: How many of them.
    """

    run_id: str = Field(max_length=1000)
    mode: Literal["none", "site", "distributed", "unstated"]
    noise_multiplier: float = Field(default=0.0, ge=0)
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    steps: int = Field(default=0, ge=0, le=10**9)
    statistics_noise_multiplier: float = Field(default=0.0, ge=0)
    statistics_releases: int = Field(default=0, ge=0, le=10**6)

    def events(self) -> list[PrivacyEvent]:
        """As a ledger has them."""
        about = {
            "data_fingerprint": "0" * 64,
            "code_version": __version__,
            "run_id": "stated",
            "round_number": 0,
            "purpose": "release",
        }
        events: list[PrivacyEvent] = []
        for start in range(0, self.steps, LARGEST_STEPS):
            noise = {
                "noise_multiplier": self.noise_multiplier,
                "steps": min(LARGEST_STEPS, self.steps - start),
            }
            if self.sampling_rate < 1:
                step = {"sampling_rate": self.sampling_rate}
                events.append(PoissonGaussianSteps.model_validate(about | noise | step))
            else:
                events.append(FullBatchGaussianSteps.model_validate(about | noise))
        if self.statistics_releases:
            sigma = {"noise_multiplier": self.statistics_noise_multiplier}
            events += [GaussianRelease.model_validate(about | sigma)] * self.statistics_releases
        return events


class PrivacySummary(Settings):
    """Of a release.

    Attributes:
        unit: Whose data is protected as a whole.
        trainings: The runs of its line, oldest first.
        delta: At which epsilon is stated.
        epsilon: See the module; None: there is no bound.
    """

    unit: Literal["patient"] = "patient"
    trainings: tuple[TrainingPrivacy, ...] = Field(min_length=1, max_length=1000)
    delta: float | None = Field(default=None, gt=0, lt=1)
    epsilon: float | None = Field(default=None, ge=0)

    def adds_up(self) -> bool:
        """Whether epsilon is what the trainings come to, computed anew."""
        return self == _summary(self.trainings, self.delta)

    def in_words(self) -> str:
        """One sentence for people."""
        if self.epsilon is None:
            return "no bound: it was trained without noise and may remember patients"
        modes = {training.mode for training in self.trainings}
        trust = (
            ", while no more sites work together than the agreement assumes"
            if "distributed" in modes
            else ""
        )
        return (
            f"epsilon {self.epsilon:.4g} at delta {self.delta:g} for each patient of a site that "
            f"took part in every round once{trust}; the site's ledger has its own figure"
        )


def summarised(
    settings: RoundSettings,
    run_id: str,
    *,
    rounds: int,
    terms: PrivacyTerms | None,
    before: tuple[TrainingPrivacy, ...],
) -> PrivacySummary:
    """The summary of a run's release.

    Args:
        settings: The run's.
        run_id: Its name.
        rounds: How many were asked for, completed or failed: a site spends on both.
        terms: The agreement's privacy.
        before: Trainings of the release that the run started from; empty without one.
    """
    plan = private_steps(settings)
    if plan is None or settings.privacy.mode == "none":
        training = TrainingPrivacy(run_id=run_id, mode="none")
    else:
        schedule = settings.margin_schedule
        statistics = (
            sum(schedule.carries_statistics(number) for number in range(1, rounds + 1))
            if schedule is not None
            else 0
        )
        sigma = None if schedule is None else schedule.noise_multiplier
        training = TrainingPrivacy(
            run_id=run_id,
            mode=settings.privacy.mode,
            noise_multiplier=plan.noise_multiplier,
            sampling_rate=plan.sampling_rate,
            steps=rounds * plan.steps,
            statistics_noise_multiplier=sigma or 0.0,
            statistics_releases=statistics,
        )
    return _summary((*before, training), None if terms is None else terms.delta)


def _summary(trainings: tuple[TrainingPrivacy, ...], delta: float | None) -> PrivacySummary:
    if delta is None or any(each.mode in {"none", "unstated"} for each in trainings):
        return PrivacySummary(trainings=trainings)
    events = [event for each in trainings for event in each.events()]
    # cut, so that another machine's last bits do not make another statement
    return PrivacySummary(
        trainings=trainings, delta=delta, epsilon=float(f"{epsilon(events, delta):.6g}")
    )
