"""Epsilon against closed forms, a quadrature, a published figure and another accountant."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_events import distributed, full_batch, poisson, release
from scipy.optimize import brentq
from scipy.stats import norm

from fedhash.errors import PrivacyError
from fedhash.privacy import (
    PrivacyEvent,
    accountant,
    epsilon,
    epsilon_after,
    smallest_noise_multiplier,
    spending,
    steps_left,
)

DELTA = 1e-5


def solve(delta_of: Callable[[float], float], delta: float) -> float:
    return float(brentq(lambda eps: delta_of(eps) - delta, 0, 200, xtol=1e-12))


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Balle and Wang 2018 (arXiv 1805.06530), theorem 8, for sensitivity 1."""

    def delta_of(eps: float) -> float:
        near, far = 1 / (2 * sigma) - eps * sigma, -1 / (2 * sigma) - eps * sigma
        return float(norm.cdf(near) - math.exp(eps + norm.logcdf(far)))

    return solve(delta_of, delta)


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.0, 4.0, 20.0, 100.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-7])
def test_one_gaussian_release_is_the_closed_form(sigma: float, delta: float) -> None:
    exact = gaussian_epsilon(sigma, delta)
    assert exact - 1e-9 <= epsilon([release(sigma)], delta) <= exact * 1.0005 + 1e-6


@pytest.mark.parametrize(("sigma", "steps"), [(4.0, 60), (30.0, 1000), (2.0, 3)])
def test_full_batch_steps_compose_as_one_gaussian(sigma: float, steps: int) -> None:
    exact = gaussian_epsilon(sigma / math.sqrt(steps), DELTA)
    figures = [
        epsilon([full_batch(sigma, steps)], DELTA),
        epsilon([full_batch(sigma)] * steps, DELTA),
        epsilon([poisson(sigma, 1.0, steps)], DELTA),
    ]
    for figure in figures:
        assert exact - 1e-9 <= figure <= exact * 1.0005


def poisson_delta(eps: float, sigma: float, rate: float, steps: int) -> float:
    """Delta of one or two sampled steps by quadrature over all outcomes, both neighbours."""
    outcomes = np.linspace(-12 * sigma, 12 * sigma + 1, 2001)
    without = norm.pdf(outcomes, 0, sigma)
    with_patient = (1 - rate) * without + rate * norm.pdf(outcomes, 1, sigma)
    cell = (outcomes[1] - outcomes[0]) ** steps
    if steps == 2:
        without = np.outer(without, without)
        with_patient = np.outer(with_patient, with_patient)
    excess = [
        np.maximum(ours - math.exp(eps) * theirs, 0).sum() * cell
        for ours, theirs in ((with_patient, without), (without, with_patient))
    ]
    return float(max(excess))


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta"),
    [(1.0, 0.1, 1, 1e-4), (0.6, 0.5, 1, 1e-3), (1.0, 0.2, 2, 1e-3), (2.0, 0.9, 2, 1e-4)],
)
def test_sampled_steps_agree_with_a_quadrature(
    sigma: float, rate: float, steps: int, delta: float
) -> None:
    exact = solve(lambda eps: poisson_delta(eps, sigma, rate, steps), delta)
    assert epsilon([poisson(sigma, rate, steps)], delta) == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"), [(1.0, 0.01, 1000), (4.0, 0.3, 500), (0.8, 0.004, 5000)]
)
def test_sampled_steps_are_within_the_renyi_bound(sigma: float, rate: float, steps: int) -> None:
    step = PoissonSampledDpEvent(rate, GaussianDpEvent(sigma))
    bound = RdpAccountant().compose(step, steps).get_epsilon(DELTA)
    tight = epsilon([poisson(sigma, rate, steps)], DELTA)
    assert 0.7 * bound < tight < bound


def test_sampled_steps_are_within_the_published_moments_accountant() -> None:
    # Abadi et al. 2016 (arXiv 1607.00133), section 3.2: q = 0.01, sigma = 4, 10,000 steps: 1.26
    assert 0.9 < epsilon([poisson(4.0, 0.01, 10_000)], DELTA) < 1.26


def test_nothing_spent_is_nothing() -> None:
    assert epsilon([], DELTA) == 0
    assert spending([], DELTA).together == 0


@pytest.mark.parametrize("sigma", [1e-6, 0.1])
@pytest.mark.parametrize("rate", [1e-9, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 10**6])
def test_absurd_requests_are_far_above_any_cap(sigma: float, rate: float, steps: int) -> None:
    assert epsilon([poisson(sigma, rate, steps)], DELTA) > 50


SOME_EVENTS: st.SearchStrategy[PrivacyEvent] = st.one_of(
    st.builds(full_batch, st.sampled_from([3.0, 8.0]), st.sampled_from([1, 5])),
    st.builds(release, st.floats(2, 50)),
    st.builds(distributed, st.floats(2, 50)),
    st.just(poisson(1.0, 0.01, 24)),
)


@settings(max_examples=10)
@given(events=st.lists(SOME_EVENTS, min_size=1, max_size=6), data=st.data())
def test_order_is_nothing_and_more_is_more(events: list[PrivacyEvent], data: st.DataObject) -> None:
    whole = epsilon(events, DELTA)
    assert epsilon(data.draw(st.permutations(events)), DELTA) == whole
    assert epsilon(events[:-1], DELTA) <= whole + 1e-9
    assert epsilon(events, 1e-3) <= whole


def test_ten_thousand_equal_rounds_cost_one_composition() -> None:
    events = [poisson(3.0, 0.01, 1, round_number=number) for number in range(10_000)]
    misses = accountant._composed.cache_info().misses
    once = epsilon(events, DELTA)
    assert epsilon(events, DELTA) == once == epsilon([poisson(3.0, 0.01, 10_000)], DELTA)
    assert accountant._composed.cache_info().misses == misses + 2, "the Rényi bound and the PLD"


def test_noise_added_together_is_accounted_apart_and_together() -> None:
    found = spending([full_batch(4.0), distributed(5.0, colluding=3), distributed(6.0)], DELTA)
    alone = spending([full_batch(4.0)], DELTA)
    assert found.own_noise == alone.own_noise == alone.together
    assert alone.shared_noise == 0
    assert "whoever works together" in alone.trust
    exact = gaussian_epsilon((1 / 25 + 1 / 36) ** -0.5, DELTA)
    assert exact < found.shared_noise < exact * 1.001, "of the guaranteed noise, not of the sum's"
    everything = gaussian_epsilon((1 / 16 + 1 / 25 + 1 / 36) ** -0.5, DELTA)
    assert everything < found.together < everything * 1.001
    assert "at most 2 other sites" in found.trust


def discrete_epsilon(sigma: float, shift: int, delta: float) -> float:
    """Exact epsilon of one discrete Gaussian at sensitivity `shift`, by summation."""
    integers = np.arange(-math.ceil(14 * sigma), math.ceil(14 * sigma) + 1)
    mass = np.exp(-(integers**2) / (2 * sigma**2))
    mass /= mass.sum()
    moved = np.concatenate([np.zeros(shift), mass])
    still = np.concatenate([mass, np.zeros(shift)])
    return solve(lambda eps: float(np.maximum(moved - math.exp(eps) * still, 0).sum()), delta)


@pytest.mark.parametrize(("sigma", "shift"), [(8.0, 2), (8.5, 9), (20.0, 13), (100.0, 30)])
def test_a_discrete_gaussian_leaks_no_more_than_it_counts(sigma: float, shift: int) -> None:
    event = distributed(sigma / shift, share=sigma)
    for delta in (1e-3, 1e-5, 1e-7):
        exact = discrete_epsilon(sigma, shift, delta)
        assert exact <= epsilon([event], delta) <= exact * 1.05 + 0.01


@pytest.mark.parametrize(("target", "steps", "rate"), [(8.0, 60, 1.0), (3.0, 200, 0.05)])
def test_the_smallest_noise_meets_the_target_and_less_does_not(
    target: float, steps: int, rate: float
) -> None:
    spent = [release(5.0)]
    sigma = smallest_noise_multiplier(target, DELTA, steps=steps, sampling_rate=rate, spent=spent)
    assert epsilon([*spent, poisson(sigma, rate, steps)], DELTA) <= target
    assert epsilon([*spent, poisson(sigma / 1.002, rate, steps)], DELTA) > target


def test_the_steps_that_are_left_fit_and_hardly_more() -> None:
    spent = [poisson(1.0, 0.01, 500), release(10.0)]
    plan = {"noise_multiplier": 1.0, "sampling_rate": 0.01}
    left = steps_left(spent, **plan, epsilon_cap=4.0, delta=DELTA)
    assert epsilon_after(spent, **plan, steps=left, delta=DELTA) <= 4.0
    assert epsilon_after(spent, **plan, steps=round(1.02 * left), delta=DELTA) > 4.0
    assert steps_left([release(0.5)], **plan, epsilon_cap=4.0, delta=DELTA) == 0
    assert steps_left(
        [], noise_multiplier=1e6, sampling_rate=1.0, epsilon_cap=1.0, delta=DELTA
    ) == (10**6)


@given(most=st.integers(1, 5000), limit=st.integers(0, 6000))
def test_the_largest_that_fits(most: int, limit: int) -> None:
    assert accountant._largest(lambda n: n <= limit, most) == min(most, limit)


def test_what_is_asked_beforehand_is_what_is_counted_afterwards() -> None:
    spent: list[PrivacyEvent] = [poisson(1.0, 0.01, 24), full_batch(9.0)]
    for event in (poisson(1.0, 0.01, 24), poisson(2.0, 1.0, 3)):
        before = epsilon_after(
            spent,
            noise_multiplier=event.noise_multiplier,
            sampling_rate=event.sampling_rate,
            steps=event.steps,
            delta=DELTA,
        )
        assert before == epsilon([*spent, event], DELTA)


def test_less_noise_or_more_sampling_never_costs_less() -> None:
    by_noise = [epsilon([poisson(s, 0.1, 50)], DELTA) for s in (0.5, 1.0, 4.0)]
    by_rate = [epsilon([poisson(1.0, q, 50)], DELTA) for q in (1.0, 0.3, 0.01)]
    for figures in (by_noise, by_rate):
        assert all(more > less for more, less in pairwise(figures))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: epsilon([], 0.0), "delta is 0.0, expected 1e-07 to 0.01"),
        (lambda: epsilon([], 0.5), "delta is 0.5"),
        (lambda: spending([], float("nan")), "delta is nan"),
        (lambda: smallest_noise_multiplier(1.0, DELTA, steps=0), "0 steps were asked for"),
        (
            lambda: smallest_noise_multiplier(1.0, DELTA, steps=1, sampling_rate=0.0),
            "the sampling rate is 0.0",
        ),
        (
            lambda: smallest_noise_multiplier(1.0, DELTA, steps=1, spent=[release(0.9)]),
            r"no noise keeps 1 more steps within epsilon 1, of which 4\.\d+ is spent; raise",
        ),
        (lambda: smallest_noise_multiplier(0.0, DELTA, steps=1), "no noise keeps"),
        (lambda: smallest_noise_multiplier(float("nan"), DELTA, steps=1), "no noise keeps"),
        (
            lambda: steps_left(
                [], noise_multiplier=0.0, sampling_rate=1.0, epsilon_cap=1.0, delta=DELTA
            ),
            "the noise multiplier is 0.0, expected 1e-06",
        ),
    ],
)
def test_arguments_without_meaning(call: Callable[[], float], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        call()
