"""The margin schedule: from the sites' summed statistics to the next margins, and to the drift.

Shape suffix: K findings.

Every `every_rounds`-th round carries margin statistics (`fedhash.privacy.margin_statistics`). With
N, S, T, Q the four sums over the sites and sd the deviation of the noise in each of them:

    r_k = S/N    V_k = (T - Q)/N    D_k = (Q - (S^2 - sd^2)/N)/N
    B_k = min(1.5, (N_med/N_k)^(1/4))
    mu_k <- (1-eta) mu_k + eta B_k mu_t (1 + a tanh((r_k - r*)/.1) - b (sqrt V_k - V*)/V*)
    g    = (D/D_ref - 1)_+, at most 9

V_k is the variance of the slack within the sites, D_k that of the sites' means, D the mean of D_k
weighted by N_k. `drift` is g: sites pull 1+g times as hard towards the round's first model and do
1/(1+g) of their local work.

1. A finding with N_k below 3 sd, or below 1, says nothing: it keeps its margin and counts nowhere.
   Where all findings say nothing, the drift stays too.
2. r_k is shrunken towards the mean of all findings by tau^2/(tau^2 + e_k^2): e_k^2 is the error of
   S/N from V_k, N_k and the noise, tau^2 the variance of the means beyond their errors (empirical
   Bayes; Morris 1983, JASA 78:47-55).
3. No margin moves by more than the step or leaves the agreed range, whatever the sums are.
4. Shrinkage, fairness boost and drift control can each be turned off, for an ablation.

    >>> step = margin_step(settings, sums, noise_sd=0.0, mu=mu, drift=0.0, start=0.3,
    ...                    margin_range=(0.05, 0.6))
    >>> step.mu, step.drift
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from pydantic import Field

from fedhash.configuration import Settings
from fedhash.privacy.margin_statistics import MarginSums

__all__ = ["LARGEST_DRIFT", "MarginScheduleSettings", "MarginStep", "margin_step"]

LARGEST_DRIFT = 9.0  # a tenth of the local work, ten times the pull
_LARGEST_BOOST = 1.5
_SLACK_SCALE = 0.1
_FEWEST_NOISE_SDS = 3.0


class MarginScheduleSettings(Settings):
    """How often, and with which constants.

    Attributes:
        every_rounds: Rounds whose number is a multiple of it carry statistics.
        noise_multiplier: sigma of the statistics over their sensitivity, at each site; needed under
            privacy, and null without.
        rate: eta.
        target_margin: mu_t; null takes the loss's margin.
        target_slack: r*, the mean slack at which a margin rests.
        slack_gain: a.
        target_slack_sd: V*, in the unit of the slack.
        slack_sd_gain: b.
        reference_drift: D_ref, the variance of the sites' mean slacks from which on drift counts.
        largest_step: Most that a margin moves at once.
        shrinkage: Whether the means are drawn to that of all findings.
        fairness_boost: Whether rare findings get wider margins, B_k; otherwise B_k is 1.
        drift_control: Whether sites are told g; otherwise they are told 0. Off unless asked for:
            it cost more than it gave (docs/benchmarks.md).
    """

    every_rounds: int = Field(default=5, ge=1, le=100_000)
    # the bounds of `fedhash.privacy.events`
    noise_multiplier: float | None = Field(default=None, ge=1e-6, le=1e6)
    rate: float = Field(default=0.5, gt=0, le=1)
    target_margin: float | None = Field(default=None, ge=0, le=2)
    target_slack: float = Field(default=0.5, ge=-1, le=1)
    slack_gain: float = Field(default=0.3, ge=0, le=10)
    target_slack_sd: float = Field(default=0.3, ge=0.01, le=1)
    slack_sd_gain: float = Field(default=0.1, ge=0, le=10)
    reference_drift: float = Field(default=0.002, ge=1e-6, le=1)
    largest_step: float = Field(default=0.05, gt=0, le=2)
    shrinkage: bool = True
    fairness_boost: bool = True
    drift_control: bool = False

    def carries_statistics(self, round_number: int) -> bool:
        """Whether the round's replies have a block of statistics."""
        return round_number % self.every_rounds == 0

    def steps_between(self, earlier_round: int, later_round: int) -> int:
        """Most schedule steps between the margins of two rounds; rounds count from 1."""
        return (later_round - 1) // self.every_rounds - (earlier_round - 1) // self.every_rounds


@dataclass(frozen=True, eq=False)
class MarginStep:
    """One step of the schedule.

    Attributes:
        mu: The margins from the next round on.
        drift: g from the next round on.
        slack: r_k after shrinkage; NaN for a finding that kept its margin, here and below.
        within_variance: V_k.
        between_variance: D_k.
    """

    mu: Float32[np.ndarray, " K"]
    drift: float
    slack: Float64[np.ndarray, " K"]
    within_variance: Float64[np.ndarray, " K"]
    between_variance: Float64[np.ndarray, " K"]


def margin_step(
    settings: MarginScheduleSettings,
    sums: MarginSums,
    *,
    noise_sd: float,
    mu: Float32[np.ndarray, " K"],
    drift: float,
    start: float,
    margin_range: tuple[float, float],
) -> MarginStep:
    """The step that follows from summed statistics; finite for all finite sums of float32 numbers.

    Args:
        settings: The schedule.
        sums: Over the sites of the round.
        noise_sd: Standard deviation of the noise in each sum over the sites; 0 without.
        mu: The round's margins.
        drift: The round's g.
        start: The loss's margin.
        margin_range: The agreement's.
    """
    told = sums.patients >= max(_FEWEST_NOISE_SDS * noise_sd, 1.0)
    slack, within, between = (np.full(len(mu), np.nan) for _ in range(3))
    if not told.any():
        return MarginStep(mu, drift, slack, within, between)
    n, s = sums.patients[told], sums.slack[told]
    squared, site_means = sums.squared_slack[told], sums.site_means[told]
    means = np.clip(s / n, -1, 1)
    within[told] = np.clip((squared - site_means) / n, 0, 1)
    between[told] = np.clip((site_means - (s**2 - noise_sd**2) / n) / n, 0, 1)
    slack[told] = _shrunken(means, within[told], n, noise_sd) if settings.shrinkage else means

    boost = np.minimum(_LARGEST_BOOST, (np.median(n) / n) ** 0.25) if settings.fairness_boost else 1
    by_slack = np.tanh((slack[told] - settings.target_slack) / _SLACK_SCALE)
    by_sd = np.sqrt(within[told]) / settings.target_slack_sd - 1
    target = start if settings.target_margin is None else settings.target_margin
    wanted = boost * target * (1 + settings.slack_gain * by_slack - settings.slack_sd_gain * by_sd)
    before = mu[told].astype(np.float64)
    step = settings.rate * (wanted - before)
    moved = before + np.clip(step, -settings.largest_step, settings.largest_step)
    after = mu.copy()
    after[told] = np.clip(moved, *margin_range)

    if settings.drift_control:
        overall = float(np.average(between[told], weights=n))
        drift = float(np.clip(overall / settings.reference_drift - 1, 0, LARGEST_DRIFT))
    return MarginStep(after, drift, slack, within, between)


def _shrunken(
    means: Float64[np.ndarray, " k"],
    variance: Float64[np.ndarray, " k"],
    n: Float64[np.ndarray, " k"],
    noise_sd: float,
) -> Float64[np.ndarray, " k"]:
    """Rule 2."""
    error = (variance + (1 + means**2) * noise_sd**2 / n) / n
    overall = np.average(means, weights=n)
    tau = max(0.0, float(np.var(means, ddof=min(1, len(means) - 1)) - error.mean()))
    return np.asarray(overall + tau / np.maximum(tau + error, 1e-12) * (means - overall))
