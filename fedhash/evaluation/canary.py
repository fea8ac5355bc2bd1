"""What can be told about single patients from one private run? A lower bound on epsilon.

The audit of Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run" (2023, arXiv
2305.08846). Of m canaries each is put among the patients by a fair coin. One private training runs,
and from all that it releases the guesser says of some canaries that they were in or out, and of the
others nothing. Who guesses right more often than epsilon allows has refuted epsilon.

1. A canary is a patient. Its studies touch a feature that nobody else has, and nothing pulls the
   model there before the canary does: its gradient is longer than C, so that clipping leaves it at
   C, and at a right angle to every other patient's. No patient of that norm is easier to see.
2. The guesser sees the model before each step and the noised gradient of the step, which is more
   than a coordinator is sent. A canary's score is the inner product of the noised gradient with the
   direction of the canary's own, summed over the steps. The highest scores are guessed in, as many
   of the lowest out.
3. Under (epsilon, delta)-DP, v of r guesses are right with probability at most (Theorem 3.1)

       f(v) + 2 m delta max_{i = 1..m} (f(v - i) - f(v)) / i

   where f(v) = P[Binomial(r, e^epsilon / (e^epsilon + 1)) >= v]. The bound is the largest epsilon
   for which that is below the error that is allowed.
4. How many guesses pay depends on the noise. Three numbers are fixed beforehand, an eighth, a
   quarter and half of the canaries, each is tested at a third of the error, and the best one counts
   (Bonferroni): all three hold together at 95 %.
5. The claim is what the accountant makes of the steps that the run reserves.

A bound below the claim proves nothing: a better guesser may find more, and m canaries cannot give
more than `CanaryAudit.ceiling`. One above refutes the claim, up to the error of 5 %.

Shape suffixes: M canaries, F features, b bits, d parameters.

    >>> privacy = SitePrivacySettings(mode="site", clip_norm=1, noise_multiplier=1.6,
    ...                               sampling_rate=0.5)
    >>> audit = audit_site_dp_sgd(privacy, steps=20, delta=1e-5)
    >>> audit.claimed_epsilon, audit.best.epsilon, audit.holds
    (7.675..., 2.420..., True)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64

from fedhash.agreement import Agreement
from fedhash.errors import PrivacyError
from fedhash.evaluation._linear_tower import LinearTower
from fedhash.learning.gradients import GradientSource
from fedhash.learning.loss import Loss, Margins
from fedhash.learning.losses.anchor_margin import AnchorMarginLoss
from fedhash.learning.settings import LearningSettings, LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import HashModel
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash.privacy.accountant import epsilon_after
from fedhash.privacy.dp_sgd import SiteDpSgd
from fedhash.privacy.noise import NoiseSource, SimulatedNoise
from fedhash.privacy.private_steps import PrivateSteps
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.randomness import numpy_stream, torch_stream

__all__ = [
    "CONFIDENCE",
    "CanaryAudit",
    "Guesses",
    "Mechanism",
    "NoNoise",
    "audit_mechanism",
    "audit_site_dp_sgd",
    "epsilon_lower_bound",
    "guessing_p_value",
    "releases_of",
]

CONFIDENCE = 0.95
_GUESSED_SHARES = (1 / 8, 1 / 4, 1 / 2)  # of the canaries; see rule 4
_SMALLEST_CANARIES, _LARGEST_CANARIES = 100, 5000  # fewer refute nothing, more fill the memory
_LARGEST_CLIP_NORM = 1.0  # canaries' gradients are several times as long
_LARGEST_EPSILON = 1e3  # where e^-epsilon is nothing
_BITS = 16
_FINDINGS = ("no_finding", "one", "two", "three")
_MODALITY = "image"
_COMMON_FEATURES = 16  # of the patients who are no canaries
_STUDIES_A_PATIENT = 2
_MARGINS = Margins.constant(len(_FINDINGS), 0.3)
_LEARNING_RATE = 1.0

Mechanism: TypeAlias = Callable[
    [HashModel, PreparedStudies, Loss, Margins], Iterator[Float32[np.ndarray, " d"]]
]
"""A training under audit: trains the model in place on the studies given, and yields what it
releases of each step, in the order of the model's parameters, before the model takes that step."""


@dataclass(frozen=True)
class Guesses:
    """One number of guesses and what follows from it.

    Attributes:
        guesses: r, half of them "in" and half "out".
        right: v, how many were right.
        epsilon: The lower bound that follows, at its share of the error.
    """

    guesses: int
    right: int
    epsilon: float


@dataclass(frozen=True, eq=False)
class CanaryAudit:
    """What one audited run gave.

    Attributes:
        claimed_epsilon: What the run says it leaks of a patient; infinite without noise.
        delta: At this delta, as is the bound.
        tried: One entry a number of guesses; the bounds hold together at `CONFIDENCE`.
        ceiling: The bound if all guesses had been right.
        scores: One a canary.
        taken: Whether the canary took part.
    """

    claimed_epsilon: float
    delta: float
    tried: tuple[Guesses, ...]
    ceiling: float
    scores: Float64[np.ndarray, " M"]
    taken: Bool[np.ndarray, " M"]

    @property
    def best(self) -> Guesses:
        """The entry with the highest bound."""
        return max(self.tried, key=lambda each: each.epsilon)

    @property
    def holds(self) -> bool:
        """Whether the claim was not refuted."""
        return self.best.epsilon <= self.claimed_epsilon

    def as_json(self) -> dict[str, Any]:
        """JSON-able form, without the scores; an infinite claim is null."""
        best = self.best
        return {
            "claimed_epsilon": None if math.isinf(self.claimed_epsilon) else self.claimed_epsilon,
            "delta": self.delta,
            "epsilon_lower_bound": best.epsilon,
            "confidence": CONFIDENCE,
            "ceiling": self.ceiling,
            "canaries": len(self.scores),
            "guesses": best.guesses,
            "right": best.right,
            "holds": self.holds,
        }


class NoNoise(SimulatedNoise):
    """Samples as ever, and zeros for noise: a run that is to be found out."""

    secure: ClassVar[bool] = False

    def gaussians(self, count: int) -> Float64[np.ndarray, " n"]:
        """Zeros."""
        return np.zeros(count)


def guessing_p_value(
    canaries: int, guesses: int, right: int, epsilon: float, delta: float
) -> float:
    """The most that (epsilon, delta)-DP gives for `right` of `guesses` or more (Theorem 3.1).

    Args:
        canaries: m, each in with probability 1/2.
        guesses: r, of the m; the others were abstained from.
        right: v.
        epsilon: Of the hypothesis.
        delta: Of the hypothesis.

    Raises:
        PrivacyError: Not 0 <= right <= guesses <= canaries, or epsilon or delta is out of range.
    """
    from scipy.stats import binom  # a second of imports

    if not 0 <= right <= guesses <= canaries:
        raise PrivacyError(
            f"{right} right ones of {guesses} guesses about {canaries} canaries are impossible; "
            "expected 0 <= right <= guesses <= canaries"
        )
    if not (0 <= epsilon <= _LARGEST_EPSILON and 0 <= delta <= 1):
        raise PrivacyError(
            f"epsilon {epsilon} and delta {delta} were given; expected epsilon from 0 to "
            f"{_LARGEST_EPSILON:g} and delta from 0 to 1"
        )
    accuracy = 1 / (1 + math.exp(-epsilon))
    at_least = binom.sf(np.arange(right, -1, -1) - 1, guesses, accuracy)  # f(v), f(v-1), ..., f(0)
    # f is 1 below 0, so that larger steps than v only divide the same difference by more
    steepest = max((at_least[1:] - at_least[0]) / np.arange(1, right + 1), default=0.0)
    return min(1.0, float(at_least[0] + 2 * canaries * delta * steepest))


def epsilon_lower_bound(
    canaries: int, guesses: int, right: int, delta: float, error: float
) -> float:
    """The largest epsilon that so many right guesses refute.

    Args:
        canaries: m.
        guesses: r.
        right: v.
        delta: Of the claim.
        error: Probability with which a true claim may be refuted, such as 0.05.

    Returns:
        0 where nothing is refuted; found to 1e-6, and never above the exact bound.

    Raises:
        PrivacyError: See :func:`guessing_p_value`.
    """

    def refuted(epsilon: float) -> bool:
        return guessing_p_value(canaries, guesses, right, epsilon, delta) < error

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0  # low is refuted
    while refuted(high):
        if high == _LARGEST_EPSILON:
            return high
        low, high = high, min(2 * high, _LARGEST_EPSILON)
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def releases_of(
    source: GradientSource, *, steps: int, learning_rate: float, seed: int
) -> Mechanism:
    """The mechanism that releases each gradient of a source, and steps along it."""

    def train(
        model: HashModel, studies: PreparedStudies, loss: Loss, margins: Margins
    ) -> Iterator[Float32[np.ndarray, " d"]]:
        optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate)
        model.train()
        gradients = source.gradients(
            model,
            studies,
            loss,
            LearningSettings(),
            margins=margins,
            steps=steps,
            generator=torch_stream(seed, "canary", "batches"),
        )
        for _ in gradients:
            parts = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
            yield torch.cat(parts).numpy()
            optimiser.step()

    return train


def audit_site_dp_sgd(
    privacy: SitePrivacySettings,
    *,
    steps: int,
    delta: float,
    canaries: int = 2000,
    patients: int = 200,
    seed: int = 0,
    noise: NoiseSource | None = None,
) -> CanaryAudit:
    """Audit one run of `fedhash.privacy.dp_sgd.SiteDpSgd`.

    Args:
        privacy: C, sigma and q.
        steps: Of the run.
        delta: Of the claim.
        canaries: m, from 100 to 5000.
        patients: Who take part for certain.
        seed: Of the coins, the patients and the noise.
        noise: Instead of `SimulatedNoise` of the seed. Under `NoNoise` the claim is infinite.

    Raises:
        PrivacyError: An argument is out of range.
    """
    if privacy.clip_norm > _LARGEST_CLIP_NORM:
        raise PrivacyError(
            f"clip_norm is {privacy.clip_norm}, expected at most {_LARGEST_CLIP_NORM:g}: the "
            "canaries' gradients would be too short to be clipped; it is a unit only, noise and "
            "claim go with it"
        )
    source_noise = noise or SimulatedNoise(seed, "canary", "noise")
    reserved: list[PrivateSteps] = []

    def claim() -> float:
        (told,) = reserved
        if isinstance(noise, NoNoise):
            return math.inf
        return epsilon_after(
            (),
            noise_multiplier=told.noise_multiplier,
            sampling_rate=told.sampling_rate,
            steps=told.steps,
            delta=delta,
        )

    source = SiteDpSgd(privacy, source_noise, reserved.append)
    mechanism = releases_of(source, steps=steps, learning_rate=_LEARNING_RATE, seed=seed)
    return audit_mechanism(
        mechanism, claim, delta=delta, canaries=canaries, patients=patients, seed=seed
    )


def audit_mechanism(
    mechanism: Mechanism,
    claim: Callable[[], float],
    *,
    delta: float,
    canaries: int,
    patients: int,
    seed: int,
) -> CanaryAudit:
    """Audit one run of any mechanism that releases noised gradients.

    Args:
        mechanism: Runs once.
        claim: Asked for epsilon after the run.
        delta: Of the claim.
        canaries: m, from 100 to 5000.
        patients: Who take part for certain.
        seed: Of the coins and the patients.

    Raises:
        PrivacyError: An argument is out of range.
    """
    if not _SMALLEST_CANARIES <= canaries <= _LARGEST_CANARIES:
        raise PrivacyError(
            f"{canaries} canaries were asked for, expected {_SMALLEST_CANARIES} to "
            f"{_LARGEST_CANARIES}"
        )
    rng = numpy_stream(seed, "canary", "patients")
    every_canary = _canaries(canaries, rng)
    others = _others(patients, canaries, rng)
    taken = numpy_stream(seed, "canary", "coins").random(canaries) < 0.5
    studies = _together(every_canary.select(_rows(taken)), others)

    agreement = Agreement(
        name="audit", findings=_FINDINGS, code_bits=_BITS, modalities=(_MODALITY,)
    )
    loss = AnchorMarginLoss(Anchors.build(agreement), LossSettings())
    model, seen = (_model(canaries) for _ in range(2))
    layout = Layout.of(model)
    one_study = every_canary.select(range(0, len(every_canary), _STUDIES_A_PATIENT))
    scores = np.zeros(canaries)
    for released in mechanism(model, studies, loss, _MARGINS):
        layout.load(seen, layout.flatten(model))  # Opacus's hooks listen at the model itself
        scores += _alignment(seen, one_study, loss, torch.from_numpy(released))
    tried, ceiling = _guessed(scores, taken, delta)
    return CanaryAudit(claim(), delta, tried, ceiling, scores, taken)


def _guessed(
    scores: Float64[np.ndarray, " M"], taken: Bool[np.ndarray, " M"], delta: float
) -> tuple[tuple[Guesses, ...], float]:
    """Every number of guesses of rule 4, and the bound if all of the most were right."""
    canaries = len(scores)
    order = np.argsort(scores, kind="stable")
    error = (1 - CONFIDENCE) / len(_GUESSED_SHARES)
    tried, ceiling = [], 0.0
    for share in _GUESSED_SHARES:
        half = round(share * canaries / 2)
        right = int((~taken[order[:half]]).sum() + taken[order[-half:]].sum())
        bound = epsilon_lower_bound(canaries, 2 * half, right, delta, error)
        tried.append(Guesses(2 * half, right, bound))
        ceiling = max(ceiling, epsilon_lower_bound(canaries, 2 * half, 2 * half, delta, error))
    return tuple(tried), ceiling


def _alignment(
    model: HashModel,
    canaries: PreparedStudies,
    loss: Loss,
    released: Float[torch.Tensor, " d"],
) -> Float64[np.ndarray, " M"]:
    """Inner products of a release with the direction of each canary's gradient, slope x input."""
    inputs = canaries.inputs[_MODALITY]
    outputs = model.encode(_MODALITY, inputs).detach().requires_grad_()
    total = loss({_MODALITY: outputs}, canaries.present, canaries.labels, _MARGINS).sum()
    (slopes,) = torch.autograd.grad(total, outputs)
    along = (slopes * (inputs @ released.reshape(_BITS, -1).T)).sum(dim=1)
    norms = slopes.norm(dim=1) * inputs.norm(dim=1)
    return np.asarray((along / norms.clamp(min=1e-30)).double())


def _model(canaries: int) -> HashModel:
    weight = torch.zeros(_BITS, canaries + _COMMON_FEATURES)
    return HashModel({_MODALITY: LinearTower(weight)}, _BITS)


def _canaries(canaries: int, rng: np.random.Generator) -> PreparedStudies:
    """Each has a feature of its own and nothing else."""
    inputs = torch.zeros(canaries, canaries + _COMMON_FEATURES)
    inputs[:, :canaries] = torch.eye(canaries)
    return _prepared("canary", inputs, rng)


def _others(patients: int, canaries: int, rng: np.random.Generator) -> PreparedStudies:
    """Patients without a canary's feature, at random places of the common ones."""
    inputs = torch.zeros(patients, canaries + _COMMON_FEATURES)
    common = rng.normal(size=(patients, _COMMON_FEATURES)).astype(np.float32)
    inputs[:, canaries:] = torch.from_numpy(common)
    return _prepared("patient", inputs, rng)


def _prepared(
    kind: str, inputs: Float[torch.Tensor, "patients F"], rng: np.random.Generator
) -> PreparedStudies:
    """Two like studies of each patient: taking both of them into a step would be a fault."""
    labels = np.eye(len(_FINDINGS), dtype=np.int8)[rng.integers(len(_FINDINGS), size=len(inputs))]
    rows = len(inputs) * _STUDIES_A_PATIENT
    return PreparedStudies(
        study_ids=tuple(f"{kind}-study-{row}" for row in range(rows)),
        patient_ids=tuple(f"{kind}-{row // _STUDIES_A_PATIENT}" for row in range(rows)),
        labels=torch.from_numpy(labels.repeat(_STUDIES_A_PATIENT, axis=0)),
        inputs={_MODALITY: inputs.repeat_interleave(_STUDIES_A_PATIENT, dim=0)},
        present={_MODALITY: torch.ones(rows, dtype=torch.bool)},
        attributes=({},) * rows,
    )


def _rows(taken: Bool[np.ndarray, " M"]) -> list[int]:
    return [int(row) for row in np.flatnonzero(taken.repeat(_STUDIES_A_PATIENT))]


def _together(one: PreparedStudies, other: PreparedStudies) -> PreparedStudies:
    return PreparedStudies(
        study_ids=one.study_ids + other.study_ids,
        patient_ids=one.patient_ids + other.patient_ids,
        labels=torch.cat([one.labels, other.labels]),
        inputs={_MODALITY: torch.cat([one.inputs[_MODALITY], other.inputs[_MODALITY]])},
        present={_MODALITY: torch.cat([one.present[_MODALITY], other.present[_MODALITY]])},
        attributes=one.attributes + other.attributes,
    )
