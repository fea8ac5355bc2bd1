"""Epsilon of events, composed with dp-accounting's privacy loss distributions (PLD).

1. Every figure is an upper bound for one patient **added or removed**. The PLD accountant
   (Doroshenko et al. 2022, "Connect the dots", arXiv 2207.04380) rounds privacy losses upwards to a
   grid. Where a figure is far from any privacy, or there are very many steps, the Rényi bound
   stands for it: larger still, and cheap whatever a coordinator asks for.
2. Equal steps are grouped first, and all Gaussian releases over all patients are one, for their
   precisions add: ten thousand equal rounds cost one composition. Compositions are kept. Without
   sampled steps the figure is that of one Gaussian in closed form (Balle and Wang 2018, arXiv
   1805.06530).
3. Noise that sites add together is accounted apart (`Spending.shared_noise`), for it holds under a
   trust assumption that the site's own noise does not need. The cap is held against everything
   composed (`Spending.together`): one patient is in both.
4. A sum of discrete Gaussian shares counts as a continuous Gaussian of slightly less noise. Draw
   y = x + N(0, sigma^2 - s^2) and round it to the discrete Gaussian of width s around y: at s = 2
   its normaliser is the same for all y up to a factor 1 +- 2 exp(-2 pi^2 s^2) = 1 +- 1e-34
   (Poisson summation), so up to that factor the outcome is the discrete Gaussian of width sigma
   around an integer x, and the rounding of y is post-processing. A sum of shares of 8 integer steps
   and more is a discrete Gaussian up to 1 +- 5 exp(-pi^2 8^2) (Kairouz, Liu, Steinke 2021,
   arXiv 2102.06387). Over 1e8 coordinates and 1e6 steps this changes epsilon by less than 1e-19.
   That is of the exact mechanism. What its sampler lacks and rounds is larger, and in no figure:
   for each coordinate and step 2^-51 of delta (`fedhash.privacy.noise`, rule 4), or 4e-8 at 1e8 of
   them, and 2^-44 of epsilon, or 6e-6 (`fedhash.privacy.discrete_gaussian`, rule 3).

    >>> epsilon([event], delta=1e-5)    # sigma 1.1, q 0.01, 24 steps
    0.3467894836654957
    >>> smallest_noise_multiplier(8.0, 1e-5, steps=60)    # a full batch in every step
    4.651601898102219
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedhash.errors import PrivacyError
from fedhash.privacy.events import (
    LARGEST_NOISE_MULTIPLIER,
    LARGEST_STEPS,
    ROUNDING_WIDTH_INTEGER_STEPS,
    SMALLEST_NOISE_MULTIPLIER,
    SMALLEST_SAMPLING_RATE,
    DistributedGaussianStep,
    GaussianRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from fedhash.privacy.terms import LARGEST_DELTA, SMALLEST_DELTA

if TYPE_CHECKING:
    from dp_accounting import DpEvent, PrivacyAccountant

__all__ = [
    "NO_TRUST",
    "Spending",
    "epsilon",
    "epsilon_after",
    "shared_trust",
    "smallest_noise_multiplier",
    "spending",
    "steps_left",
]

NO_TRUST = "none: the site's own noise protects, whoever works together"

_FINE = 1e-4  # grid of privacy losses, dp-accounting's default
_COARSE = 1e-3  # ten times as quick, and the figures are a little larger
_LARGEST_TIGHT_EPSILON = 50.0  # above it nobody asks for the third digit, and the grids grow large
# Whole orders only: the series of the others takes long, or fails, where there is little noise.
_RENYI_ORDERS = (*range(2, 65), 128, 256, 512, 1024)
_SIGMA_TOLERANCE = 1e-3
_ROOT_TOLERANCE = 1e-9  # far above that of dp-accounting's root, 1e-12


class _Composition(NamedTuple):
    """Events as far as their epsilon goes; equal ones in any order are equal."""

    precision: float  # sum of steps / sigma^2 over all Gaussian steps without sampling
    sampled: tuple[tuple[float, float, int], ...]  # sigma, q, steps


@dataclass(frozen=True)
class Spending:
    """Epsilon of a site's events at one delta.

    Attributes:
        own_noise: Of the releases with the site's own noise; holds whoever works together.
        shared_noise: Of the releases whose noise the sites add together; holds under `trust`.
        together: Of all of them; holds under `trust`. The cap is held against this one.
        trust: What has to hold, in one sentence.
    """

    own_noise: float
    shared_noise: float
    together: float
    trust: str


def epsilon(events: Iterable[PrivacyEvent], delta: float) -> float:
    """Epsilon of all events together, under the trust assumptions of those that have one.

    Raises:
        PrivacyError: `delta` is out of range.
    """
    _check_delta(delta)
    return _epsilon(_composition(events), delta, _FINE)


def spending(events: Sequence[PrivacyEvent], delta: float) -> Spending:
    """The figures of a site's events, with what they rest on.

    Raises:
        PrivacyError: `delta` is out of range.
    """
    shared = [event for event in events if isinstance(event, DistributedGaussianStep)]
    own = [event for event in events if not isinstance(event, DistributedGaussianStep)]
    trust = NO_TRUST
    if shared:
        fewest = min(event.colluding_sites for event in shared)
        trust = shared_trust(f"{fewest} other sites of a sum")
    return Spending(
        own_noise=epsilon(own, delta),
        shared_noise=epsilon(shared, delta),
        together=epsilon(events, delta),
        trust=trust,
    )


def shared_trust(colluding: str) -> str:
    """What has to hold for noise that sites add together; `colluding` says how many may collude."""
    return (
        f"secure aggregation shows nothing but sums, and at most {colluding} work together with "
        "whoever sees it"
    )


def epsilon_after(
    spent: Iterable[PrivacyEvent],
    *,
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    delta: float,
) -> float:
    """Epsilon of what was spent and of steps to come; a sampling rate of 1 takes all patients.

    Raises:
        PrivacyError: An argument is out of range.
    """
    _check_delta(delta)
    _check_plan(steps, sampling_rate, noise_multiplier)
    after = _with(_composition(spent), noise_multiplier, sampling_rate, steps)
    return _epsilon(after, delta, _FINE)


def smallest_noise_multiplier(
    target_epsilon: float,
    delta: float,
    *,
    steps: int,
    sampling_rate: float = 1.0,
    spent: Iterable[PrivacyEvent] = (),
) -> float:
    """The least noise with which `steps` more steps stay within the target.

    Args:
        target_epsilon: For everything, `spent` included.
        delta: At this delta.
        steps: Steps to come.
        sampling_rate: Of a patient in a step; 1 takes all.
        spent: What has happened before.

    Returns:
        sigma over the sensitivity, at most 0.1 % above the least.

    Raises:
        PrivacyError: An argument is out of range, or no noise is enough.
    """
    _check_delta(delta)
    _check_plan(steps, sampling_rate, LARGEST_NOISE_MULTIPLIER)
    before = _composition(spent)
    least, most = SMALLEST_NOISE_MULTIPLIER, LARGEST_NOISE_MULTIPLIER

    def fits(sigma: float, grid: float = _FINE) -> bool:
        return _epsilon(_with(before, sigma, sampling_rate, steps), delta, grid) <= target_epsilon

    if not target_epsilon > 0 or not fits(most):
        raise PrivacyError(
            f"no noise keeps {steps} more steps within epsilon {target_epsilon:g}, of which "
            f"{_epsilon(before, delta, _FINE):.3g} is spent; raise the target"
        )
    if fits(least):
        return least
    _, most = _narrowed(lambda sigma: fits(sigma, _COARSE), least, most)  # enough, and near
    while fits(least := most / 1.01):
        most = least
    return _narrowed(fits, least, most)[1]


def _narrowed(fits: Callable[[float], bool], least: float, most: float) -> tuple[float, float]:
    """Noise that does not fit and noise that does, close together."""
    while most / least > 1 + _SIGMA_TOLERANCE:
        middle = math.sqrt(least * most)
        least, most = (least, middle) if fits(middle) else (middle, most)
    return least, most


def steps_left(
    spent: Iterable[PrivacyEvent],
    *,
    noise_multiplier: float,
    sampling_rate: float,
    epsilon_cap: float,
    delta: float,
) -> int:
    """How many more such steps surely fit under the cap; found on a coarse grid, so at least these.

    Returns:
        Steps, at most a million.

    Raises:
        PrivacyError: An argument is out of range.
    """
    _check_delta(delta)
    _check_plan(1, sampling_rate, noise_multiplier)
    before = _composition(spent)

    def fits(steps: int) -> bool:
        after = _with(before, noise_multiplier, sampling_rate, steps)
        return _epsilon(after, delta, _COARSE) <= epsilon_cap

    return _largest(fits, LARGEST_STEPS)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, 0 if 1 does not; what is below a fit fits."""
    low, high = 0, 1  # low fits
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _composition(events: Iterable[PrivacyEvent]) -> _Composition:
    gaussian: Counter[float] = Counter()
    sampled: Counter[tuple[float, float]] = Counter()
    for event in events:
        match event:
            case PoissonGaussianSteps(sampling_rate=rate) if rate < 1:
                sampled[event.noise_multiplier, rate] += event.steps
            case GaussianRelease():
                gaussian[event.noise_multiplier] += 1
            case DistributedGaussianStep():
                gaussian[_continuous(event)] += 1
            case _:
                gaussian[event.noise_multiplier] += event.steps
    precision = math.fsum(steps / sigma**2 for sigma, steps in gaussian.items())
    return _Composition(
        precision, tuple((*mechanism, steps) for mechanism, steps in sorted(sampled.items()))
    )


def _continuous(event: DistributedGaussianStep) -> float:
    """The multiplier of the continuous Gaussian that leaks no less (rule 4)."""
    lost = (ROUNDING_WIDTH_INTEGER_STEPS / event.share_sigma_integer_steps) ** 2
    return event.guaranteed_noise_multiplier * math.sqrt(1 - lost)


def _with(before: _Composition, sigma: float, rate: float, steps: int) -> _Composition:
    if rate == 1:
        return before._replace(precision=before.precision + steps / sigma**2)
    sampled = Counter({(s, q): n for s, q, n in before.sampled})
    sampled[sigma, rate] += steps
    return before._replace(sampled=tuple((*key, n) for key, n in sorted(sampled.items())))


def _epsilon(composition: _Composition, delta: float, grid: float) -> float:
    if composition == (0, ()):
        return 0.0
    loose = float(_composed(composition, None).get_epsilon(delta))
    steps = sum(steps for _, _, steps in composition.sampled)
    if loose > _LARGEST_TIGHT_EPSILON or steps > LARGEST_STEPS:
        return loose
    if not composition.sampled:
        from dp_accounting import get_epsilon_gaussian

        with np.errstate(divide="ignore"):  # delta underflows far from the root
            exact: float = get_epsilon_gaussian(composition.precision**-0.5, delta)
        return exact + _ROOT_TOLERANCE
    return float(_composed(composition, grid).get_epsilon(delta))


@lru_cache(maxsize=256)  # a display asks for the same ledger at several deltas
def _composed(composition: _Composition, grid: float | None) -> PrivacyAccountant:
    """The composition's PLD on a grid, or its Rényi bound without one."""
    import dp_accounting as dp  # a second of imports, which few commands need
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    neighbours = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant: PrivacyAccountant = (
        RdpAccountant(_RENYI_ORDERS, neighbours)
        if grid is None
        else PLDAccountant(neighbours, grid)
    )
    if composition.precision:
        accountant.compose(dp.GaussianDpEvent(composition.precision**-0.5))
    for sigma, rate, steps in composition.sampled:
        step: DpEvent = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma))
        accountant.compose(step, steps)
    return accountant


def _check_delta(delta: float) -> None:
    if not SMALLEST_DELTA <= delta <= LARGEST_DELTA:
        raise PrivacyError(
            f"delta is {delta}, expected {SMALLEST_DELTA} to {LARGEST_DELTA}; "
            "choose it well below one over the number of patients"
        )


def _check_plan(steps: int, sampling_rate: float, noise_multiplier: float) -> None:
    if not SMALLEST_NOISE_MULTIPLIER <= noise_multiplier <= LARGEST_NOISE_MULTIPLIER:
        raise PrivacyError(
            f"the noise multiplier is {noise_multiplier}, expected {SMALLEST_NOISE_MULTIPLIER:g} "
            f"to {LARGEST_NOISE_MULTIPLIER:g}; it is sigma over the sensitivity"
        )
    if not 1 <= steps <= LARGEST_STEPS:
        raise PrivacyError(f"{steps} steps were asked for, expected 1 to {LARGEST_STEPS}")
    if not SMALLEST_SAMPLING_RATE <= sampling_rate <= 1:
        raise PrivacyError(
            f"the sampling rate is {sampling_rate}, expected {SMALLEST_SAMPLING_RATE:g} to 1; "
            "it is the expected batch over the number of patients"
        )
