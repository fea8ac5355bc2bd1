"""The margin schedule: the formulas against a slow reference, and what it never does."""

from __future__ import annotations

from math import sqrt, tanh
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.learning.settings import LearningSettings
from fedhash.privacy.margin_statistics import MarginSums
from fedhash.rounds.margin_schedule import MarginScheduleSettings, MarginStep, margin_step

RANGE = (0.05, 0.6)
K = 4


def sums(*columns: list[float]) -> MarginSums:
    return MarginSums(*(np.array(each, np.float64) for each in columns))


SUMS = sums(  # two sites; the last finding is held by one patient
    [200.0, 50.0, 20.0, 0.5],
    [120.0, 10.0, 4.0, 0.4],
    [90.0, 12.0, 6.0, 0.3],
    [74.0, 4.0, 1.5, 0.2],
)
MU = np.array([0.3, 0.3, 0.2, 0.3], np.float32)


def take(
    totals: MarginSums = SUMS, noise_sd: float = 0.0, drift: float = 0.0, **settings: Any
) -> MarginStep:
    return margin_step(
        MarginScheduleSettings(**({"drift_control": True} | settings)),
        totals,
        noise_sd=noise_sd,
        mu=MU,
        drift=drift,
        start=0.3,
        margin_range=RANGE,
    )


def by_hand(totals: MarginSums, sd: float, s: MarginScheduleSettings) -> tuple[list[float], float]:
    """The docstring's formulas without numpy; margins and drift."""
    told = [k for k in range(K) if totals.patients[k] >= max(3 * sd, 1)]
    n = {k: float(totals.patients[k]) for k in told}
    raw = {k: min(1, max(-1, float(totals.slack[k]) / n[k])) for k in told}
    v = {
        k: min(1, max(0, float(totals.squared_slack[k] - totals.site_means[k]) / n[k]))
        for k in told
    }
    d = {
        k: min(
            1,
            max(0, float(totals.site_means[k] - (totals.slack[k] ** 2 - sd**2) / n[k]) / n[k]),
        )
        for k in told
    }
    error = {k: v[k] / n[k] + (1 + raw[k] ** 2) * sd**2 / n[k] ** 2 for k in told}
    overall = sum(n[k] * raw[k] for k in told) / sum(n.values())
    mean = sum(raw.values()) / len(told)
    spread = sum((raw[k] - mean) ** 2 for k in told) / max(1, len(told) - 1)
    tau = max(0.0, spread - sum(error.values()) / len(told))
    mu = MU.tolist()
    for k in told:
        share = tau / (tau + error[k]) if tau + error[k] > 1e-12 else 0.0
        r = overall + share * (raw[k] - overall) if s.shrinkage else raw[k]
        boost = min(1.5, (median(n.values()) / n[k]) ** 0.25) if s.fairness_boost else 1.0
        wanted = (
            boost
            * 0.3
            * (
                1
                + s.slack_gain * tanh((r - s.target_slack) / 0.1)
                - s.slack_sd_gain * (sqrt(v[k]) - s.target_slack_sd) / s.target_slack_sd
            )
        )
        moved = s.rate * (wanted - mu[k])
        moved = min(s.largest_step, max(-s.largest_step, moved))
        mu[k] = min(RANGE[1], max(RANGE[0], mu[k] + moved))
    overall_d = sum(n[k] * d[k] for k in told) / sum(n.values())
    drift = min(9.0, max(0.0, overall_d / s.reference_drift - 1))
    return mu, drift if s.drift_control else 0.0


@given(
    n=st.lists(st.floats(10, 1000), min_size=K, max_size=K),
    r=st.lists(st.floats(-1, 1), min_size=K, max_size=K),
    more=st.lists(st.floats(0, 0.2), min_size=2 * K, max_size=2 * K),
    noise_sd=st.floats(0, 20),
    switches=st.fixed_dictionaries(
        dict.fromkeys(("shrinkage", "fairness_boost", "drift_control"), st.booleans())
    ),
)
def test_the_step_is_that_of_the_formulas(
    n: list[float],
    r: list[float],
    more: list[float],
    noise_sd: float,
    switches: dict[str, bool],
) -> None:
    n[0] = 1000.0  # one finding always says something
    slack = [n[k] * r[k] for k in range(K)]
    means = [n[k] * (r[k] ** 2 + more[k]) for k in range(K)]
    squares = [means[k] + n[k] * more[K + k] for k in range(K)]
    totals = sums(n, slack, squares, means)
    settings = MarginScheduleSettings(**switches)
    found = take(totals, noise_sd, **switches)
    mu, drift = by_hand(totals, noise_sd, settings)
    np.testing.assert_allclose(found.mu, mu, atol=1e-6)
    assert found.drift == pytest.approx(drift, abs=1e-6)


anything = st.lists(
    st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False), min_size=K, max_size=K
)


@given(anything, anything, anything, anything, st.floats(0, 1e6), st.floats(0, 9))
def test_whatever_the_sums_the_step_is_small_and_in_range(
    n: list[float],
    s: list[float],
    t: list[float],
    q: list[float],
    noise_sd: float,
    drift: float,
) -> None:
    """A site that lies, or a ring that holds noise, moves margins by one step and no further."""
    found = take(sums(n, s, t, q), noise_sd, drift, rate=1.0)
    assert found.mu.dtype == np.float32
    assert (np.abs(found.mu - MU) <= 0.05 + 1e-6).all()
    assert ((found.mu >= RANGE[0] - 1e-6) & (found.mu <= RANGE[1] + 1e-6)).all()
    assert 0 <= found.drift <= 9


def test_findings_that_say_nothing_keep_their_margins() -> None:
    found = take()
    assert found.mu[3] == MU[3]
    assert (found.mu[:3] != MU[:3]).all()
    assert np.isnan(found.slack).tolist() == [False, False, False, True]
    noisy = take(noise_sd=10.0)  # 3 sd are 30 patients
    assert np.isnan(noisy.slack).tolist() == [False, False, True, True]
    silent = take(noise_sd=1000.0, drift=2.5)
    assert silent.mu.tolist() == MU.tolist()
    assert silent.drift == 2.5


def test_fairness_boost_lifts_the_rare_and_lowers_the_frequent() -> None:
    changed = take(slack_gain=0.0, slack_sd_gain=0.0, rate=0.1).mu
    flat = take(slack_gain=0.0, slack_sd_gain=0.0, rate=0.1, fairness_boost=False).mu
    assert changed[0] < flat[0]
    assert changed[2] > flat[2]
    assert flat[:2].tolist() == MU[:2].tolist()


def test_shrinkage_draws_towards_the_mean_of_all() -> None:
    raw, drawn = take(shrinkage=False).slack[:3], take(noise_sd=3.0).slack[:3]
    overall = (120 + 10 + 4) / (200 + 50 + 20)
    assert (np.abs(drawn - overall) < np.abs(raw - overall)).all()
    assert np.abs(raw[2] - drawn[2]) > np.abs(raw[0] - drawn[0])  # the rarest by most


def test_drift_is_the_variance_of_the_sites_means() -> None:
    """Two sites of 50 patients with mean slacks .5 and .1: a variance of .04."""
    totals = sums([100.0] * K, [30.0] * K, [20.0] * K, [50 * 0.25 + 50 * 0.01] * K)
    found = take(totals, reference_drift=0.01)
    np.testing.assert_allclose(found.between_variance, 0.04)
    assert found.drift == pytest.approx(3.0)
    assert take(totals, reference_drift=0.1).drift == 0
    assert take(totals, drift_control=False).drift == 0
    assert take(totals, reference_drift=1e-6).drift == 9


def test_steps_are_counted_between_rounds() -> None:
    schedule = MarginScheduleSettings(every_rounds=5)
    assert [n for n in range(1, 16) if schedule.carries_statistics(n)] == [5, 10, 15]
    assert [schedule.steps_between(1, n) for n in (1, 5, 6, 10, 11, 16)] == [0, 0, 1, 1, 2, 3]
    assert schedule.steps_between(6, 6) == schedule.steps_between(6, 10) == 0


@given(st.floats(0, 9), st.integers(1, 1000))
def test_drift_means_less_work_and_more_pull(drift: float, work: int) -> None:
    steps = LearningSettings(local_steps=work, proximal_weight=0.1).under_drift(drift)
    epochs = LearningSettings(local_steps=None, local_epochs=work).under_drift(drift)
    assert steps.local_steps == epochs.local_epochs == max(1, int(work / (1 + drift)))
    assert steps.proximal_weight == pytest.approx(0.1 * (1 + drift))
    assert (steps.local_epochs, epochs.local_steps) == (None, None)
    assert LearningSettings().under_drift(0.0) == LearningSettings()
