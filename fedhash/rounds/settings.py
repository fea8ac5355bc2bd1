"""The round file: what is trained, how, and how the sites' replies become one model.

The coordinator reads it and sends it, whole, with every round; each site checks it against the
agreement before it works.

    >>> settings = read_settings(Path("configs/round/phantom.yaml"), RoundSettings)
    >>> settings.weighting
    'patients'
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from fedhash.agreement import Agreement
from fedhash.configuration import KeyPath, Settings
from fedhash.errors import ModelError, ProtocolError
from fedhash.learning.coordinator_optimisers import CoordinatorOptimiserSettings
from fedhash.learning.loss import Margins
from fedhash.learning.losses import LOSSES
from fedhash.learning.own_layers import own_places
from fedhash.learning.settings import LearningSettings, LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import check_towers, model_without_memory
from fedhash.models.settings import ModelSettings
from fedhash.privacy.accountant import epsilon_after
from fedhash.privacy.events import LARGEST_STEPS, GaussianRelease
from fedhash.privacy.private_steps import PrivateSteps
from fedhash.privacy.reservation import margin_release
from fedhash.privacy.settings import (
    DistributedPrivacySettings,
    NoPrivacySettings,
    PrivacySettings,
)
from fedhash.privacy.soundness import (
    learning_problems,
    loss_problem,
    one_step_problems,
    prototypes_problem,
)
from fedhash.rounds.margin_schedule import MarginScheduleSettings
from fedhash.secagg.graph import plan_graph
from fedhash.secagg.terms import SMALLEST_SECURE_COHORT

__all__ = [
    "RoundSettings",
    "check_privacy",
    "check_release",
    "check_roster",
    "check_round",
    "planned_releases",
    "private_steps",
    "starting_margins",
]

_LESS_WORK = "privacy.sampling_rate, learning.local_steps or rounds"


class RoundSettings(Settings):
    """One training run, from the first to the last round."""

    model: ModelSettings
    learning: LearningSettings
    loss: LossSettings = LossSettings()
    privacy: PrivacySettings = NoPrivacySettings()
    margin_schedule: MarginScheduleSettings | None = Field(
        default=None, description="null: every finding keeps loss.margin over the whole run"
    )
    rounds: int = Field(ge=1, le=100_000)
    aggregation: Literal["secure", "plain"] = Field(
        default="secure",
        description="secure: the coordinator sees the sum alone; "
        "plain, for comparisons: it sees each site's update",
    )
    weighting: Literal["uniform", "patients", "rounded_patients"] = Field(
        default="patients",
        description="patients: a site counts by its number of training patients; rounded_patients: "
        "by that number rounded to tens, which privacy takes as public",
    )
    coordinator_optimiser: CoordinatorOptimiserSettings = CoordinatorOptimiserSettings()
    timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="of one exchange; a site that answers later, such as one that died or is still "
        "preparing its studies for a new model, is left out of the round",
    )

    # `info` is a ValidationInfo, a protocol that beartype cannot check; it lacks wrong values
    @field_validator("margin_schedule")
    @classmethod
    def _of_the_loss_with_statistics(
        cls, schedule: MarginScheduleSettings | None, info: Any
    ) -> MarginScheduleSettings | None:
        loss = info.data.get("loss")
        if schedule is not None and loss is not None and loss.name != "anchor_margin":
            raise ValueError(
                "margin_schedule moves the margins of the loss anchor_margin alone, loss.name is "
                f"{loss.name}; set margin_schedule: null"
            )
        return schedule

    def carries_statistics(self, round_number: int) -> bool:
        """Whether the replies of a round hold margin statistics."""
        schedule = self.margin_schedule
        return schedule is not None and schedule.carries_statistics(round_number)


def check_round(settings: RoundSettings, agreement: Agreement) -> list[tuple[KeyPath, str]]:
    """What every site of the consortium would refuse, told before the first round.

    Returns:
        Key in the round file and one sentence a problem; empty for a round that can be trained.
    """
    allowed = ", ".join(agreement.modalities)
    problems: list[tuple[KeyPath, str]] = [
        (
            ("model", "towers", modality),
            f"model.towers has {modality!r}, the agreement's modalities are {allowed}",
        )
        for modality in settings.model.towers
        if modality not in agreement.modalities
    ]
    wrong_towers = check_towers(settings.model)
    problems += [
        (("model", *key), message)
        for key, message in wrong_towers
        if key[1] in agreement.modalities
    ]
    if not wrong_towers:
        problems += _check_own_layers(settings, agreement)
    if settings.aggregation == "secure" and agreement.smallest_cohort < SMALLEST_SECURE_COHORT:
        message = (
            f"aggregation is secure, and the agreement's smallest_cohort is "
            f"{agreement.smallest_cohort}; a sum over fewer than {SMALLEST_SECURE_COHORT} sites "
            "shows each of two sites the other's update"
        )
        problems.append((("aggregation",), message))
    problems += _check_prototypes(settings)
    if settings.loss.pairs_modalities and len(settings.model.towers) < 2:
        message = (
            f"loss.name is {settings.loss.name}, which pairs modalities, and model.towers has only "
            f"{', '.join(settings.model.towers)}; add a tower, or name another loss"
        )
        problems.append((("loss", "name"), message))
    problems += _check_margin(settings.loss, agreement)
    problems += _check_schedule(settings, agreement)
    steps = settings.learning.local_steps
    if steps is not None and steps > agreement.largest_local_steps:
        message = (
            f"learning.local_steps is {steps}, the agreement's largest_local_steps is "
            f"{agreement.largest_local_steps}"
        )
        problems.append((("learning", "local_steps"), message))
    return problems + (check_privacy(settings, agreement) or _check_budget(settings, agreement))


def check_release(settings: RoundSettings) -> list[tuple[KeyPath, str]]:
    """Why no release can be made of a run, as `check_round` tells it; a study needs none."""
    if settings.learning.normalisation_layers == "averaged":
        return []
    message = (
        "learning.normalisation_layers is own: each site's model has layers that no other site "
        "has, and a release holds one model for all; set it to averaged, or compare it in a study "
        "(fedhash-sim run)"
    )
    return [(("learning", "normalisation_layers"), message)]


def _check_own_layers(settings: RoundSettings, agreement: Agreement) -> list[tuple[KeyPath, str]]:
    if settings.learning.normalisation_layers == "averaged":
        return []
    try:
        anchors = Anchors.build(agreement)
    except ModelError:  # told where they are built, at the agreement's line
        return []
    model = model_without_memory(settings.model, anchors)
    if own_places(model, settings.learning).any():
        return []
    towers = ", ".join(tower.name for tower in settings.model.towers.values())
    message = (
        f"learning.normalisation_layers is own, and {towers} have no normalisation layer that "
        "could stay at a site; set it to averaged, or name a tower that has one"
    )
    return [(("learning", "normalisation_layers"), message)]


def starting_margins(loss: LossSettings, agreement: Agreement) -> Margins:
    """The margins of a run's first round; the agreement's lowest where the loss reads none."""
    margin = loss.value("margin") if loss.has_margins else agreement.margin_range[0]
    return Margins.constant(len(agreement.findings), margin)


def _check_prototypes(settings: RoundSettings) -> list[tuple[KeyPath, str]]:
    head, name = settings.model.head, settings.loss.name
    if settings.loss.trains_prototypes == (head == "prototypes"):
        return []
    if head == "prototypes":
        message = (
            f"model.head is prototypes, which the loss learned_prototypes alone trains, loss.name "
            f"is {name}; set model.head: sign, or loss: {{name: learned_prototypes}}"
        )
        return [(("model", "head"), message)]
    message = (
        f"loss.name is {name}, and with model.head {head} the model has no prototypes to train; "
        "set model.head: prototypes"
    )
    return [(("loss", "name"), message)]


def _check_margin(loss: LossSettings, agreement: Agreement) -> list[tuple[KeyPath, str]]:
    low, high = agreement.margin_range
    if not loss.has_margins or low <= loss.value("margin") <= high:
        return []
    margin = loss.value("margin")
    message = f"loss.margin is {margin}, the agreement's margin_range is {low} to {high}"
    return [(("loss", "margin"), message)]


def _check_schedule(settings: RoundSettings, agreement: Agreement) -> list[tuple[KeyPath, str]]:
    schedule = settings.margin_schedule
    if schedule is None:
        return []
    problems: list[tuple[KeyPath, str]] = []
    low, high = agreement.margin_range
    target = schedule.target_margin
    if target is not None and not low <= target <= high:
        message = (
            f"margin_schedule.target_margin is {target}, the agreement's margin_range is {low} to "
            f"{high}"
        )
        problems.append((("margin_schedule", "target_margin"), message))
    if schedule.largest_step > agreement.largest_margin_step:
        message = (
            f"margin_schedule.largest_step is {schedule.largest_step}, the agreement's "
            f"largest_margin_step is {agreement.largest_margin_step}"
        )
        problems.append((("margin_schedule", "largest_step"), message))
    if schedule.noise_multiplier is not None and isinstance(settings.privacy, NoPrivacySettings):
        message = (
            "margin_schedule.noise_multiplier protects nobody while privacy.mode is none; remove "
            "it, or set privacy: {mode: site, ...}"
        )
        problems.append((("margin_schedule", "noise_multiplier"), message))
    return problems


def check_privacy(settings: RoundSettings, agreement: Agreement) -> list[tuple[KeyPath, str]]:
    """What would break the guarantee of a private round, as `check_round` tells it."""
    if isinstance(settings.privacy, NoPrivacySettings):
        return []
    problems: list[tuple[KeyPath, str]] = []
    if agreement.privacy is None:
        message = (
            f"privacy.mode is {settings.privacy.mode}, and the agreement has no section privacy: "
            "nobody has said how much may leak of a patient, nor at which delta; agree on "
            "privacy: {epsilon_cap: ..., delta: ...}"
        )
        problems.append((("privacy", "mode"), message))
    elif settings.privacy.mode not in agreement.privacy.modes:
        agreed = agreement.privacy.modes
        message = (
            f"privacy.mode is {settings.privacy.mode}, and the agreement's privacy.modes has "
            f"{', '.join(agreed)} alone: whose noise protects, and whom that takes trust in, is "
            f"agreed upon; agree on privacy.modes: [{', '.join([*agreed, settings.privacy.mode])}],"
            f" or set privacy.mode: {agreed[0]}"
        )
        problems.append((("privacy", "mode"), message))
    problems += [
        (("learning", *key), f"with privacy.mode {settings.privacy.mode}, learning.{message}")
        for key, message in [
            *learning_problems(settings.learning),
            *(one_step_problems(settings.learning) if settings.privacy.shares_noise else []),
        ]
    ]
    if settings.privacy.shares_noise and settings.aggregation != "secure":
        message = (
            f"with privacy.mode {settings.privacy.mode}, aggregation is {settings.aggregation}: "
            "the coordinator would see each site's sum with that site's share of the noise alone; "
            "set aggregation: secure, or privacy.mode: site"
        )
        problems.append((("aggregation",), message))
    if settings.weighting == "patients":
        message = (
            f"with privacy.mode {settings.privacy.mode}, weighting is {settings.weighting!r}: a "
            "site's exact number of patients would be sent without noise; set weighting: uniform"
            + ("" if settings.privacy.shares_noise else " or rounded_patients")
        )
        problems.append((("weighting",), message))
    elif settings.privacy.shares_noise and settings.weighting != "uniform":
        message = (
            f"with privacy.mode {settings.privacy.mode}, weighting is {settings.weighting!r}: each "
            "patient counts the same already, and a weight would multiply the noise; set "
            "weighting: uniform"
        )
        problems.append((("weighting",), message))
    schedule = settings.margin_schedule
    if schedule is not None and schedule.noise_multiplier is None:
        message = (
            f"with privacy.mode {settings.privacy.mode}, margin_schedule needs noise_multiplier: "
            "statistics without noise would be sent; set one, such as 4.0, or margin_schedule: null"
        )
        problems.append((("margin_schedule", "noise_multiplier"), message))
    if not LOSSES[settings.loss.name].sum_of_patient_terms:
        problems.append((("loss", "name"), loss_problem(settings.loss.name)))
    if settings.loss.trains_prototypes:
        problems.append((("loss", "name"), prototypes_problem()))
    return problems


def private_steps(settings: RoundSettings) -> PrivateSteps | None:
    """What each site reserves in each round, as far as its epsilon goes, but for statistics.

    A step with shared noise counts as one of the guaranteed noise multiplier, whatever its cohort.
    Under drift a site takes fewer steps.

    Returns:
        None without privacy, and where `check_privacy` refuses the number of steps.
    """
    privacy, steps = settings.privacy, settings.learning.local_steps
    if isinstance(privacy, NoPrivacySettings) or steps is None:
        return None
    if isinstance(privacy, DistributedPrivacySettings):
        return PrivateSteps(privacy.noise_multiplier, 1.0, 1)
    return PrivateSteps(privacy.noise_multiplier, privacy.sampling_rate, steps)


def planned_releases(settings: RoundSettings) -> list[GaussianRelease]:
    """The margin statistics that each site of a private run releases over all its rounds."""
    schedule = settings.margin_schedule
    if schedule is None or schedule.noise_multiplier is None:
        return []
    event = margin_release("0" * 64, "planned", 0, schedule.noise_multiplier)
    return [event] * (settings.rounds // schedule.every_rounds)


def _check_budget(settings: RoundSettings, agreement: Agreement) -> list[tuple[KeyPath, str]]:
    """A run that the agreement's cap would end early, even at sites that spent nothing before."""
    planned, terms = private_steps(settings), agreement.privacy
    if planned is None or terms is None:
        return []
    releases = planned_releases(settings)
    spent = epsilon_after(
        releases,
        noise_multiplier=planned.noise_multiplier,
        sampling_rate=planned.sampling_rate,
        steps=min(settings.rounds * planned.steps, LARGEST_STEPS),
        delta=terms.delta,
    )
    if spent <= terms.epsilon_cap:
        return []
    statistics = f" and {len(releases)} releases of margin statistics" if releases else ""
    noise = " and margin_schedule.noise_multiplier" if releases else ""
    message = (
        f"privacy: {settings.rounds} rounds of {planned.steps} steps{statistics} come to epsilon "
        f"{spent:.4g} "
        f"at delta {terms.delta:g}, the agreement's cap is {terms.epsilon_cap:g}; raise "
        f"privacy.noise_multiplier{noise}, or lower "
        + ("rounds" if settings.privacy.shares_noise else _LESS_WORK)
    )
    return [(("privacy", "noise_multiplier"), message)]


def check_roster(settings: RoundSettings, agreement: Agreement, sites: int) -> str | None:
    """Why a run of so many sites would lose every round that all of them take part in, or None."""
    if sites < agreement.smallest_cohort:
        return (
            f"{sites} sites are fewer than the agreement's smallest_cohort, "
            f"{agreement.smallest_cohort}: no round could be finished; enrol more sites"
        )
    if settings.aggregation == "secure":
        try:
            plan_graph(sites, agreement.secure_aggregation)
        except ProtocolError as error:
            return str(error)
    return None
