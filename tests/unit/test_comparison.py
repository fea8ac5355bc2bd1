"""Paired differences against numbers worked out by hand."""

from __future__ import annotations

import pytest
from scipy import stats

from fedhash_sim.comparison import paired


def test_a_paired_difference_by_hand() -> None:
    # differences .1, .2, .3: mean .2, sd .1, standard error .1/sqrt(3) = .057735, t = 3.4641;
    # with 2 degrees of freedom p = 1 - t/sqrt(2 + t^2) = 1 - sqrt(12/14) = .0741799, and the 97.5 %
    # quantile is 4.302653, so the half interval is .248414
    told = paired([0.5, 0.4, 0.3], [0.6, 0.6, 0.6])
    assert told.seeds == 3
    assert told.mean == pytest.approx(0.2)
    assert told.low == pytest.approx(0.2 - 0.248414, abs=1e-6)
    assert told.high == pytest.approx(0.2 + 0.248414, abs=1e-6)
    assert told.p == pytest.approx(1 - (12 / 14) ** 0.5)
    assert str(told) == "+0.200 [-0.048, +0.448]"


def test_it_is_scipy_s_paired_test_and_turns_its_sign_with_the_runs() -> None:
    first, other = [0.31, 0.35, 0.33, 0.36, 0.30], [0.30, 0.37, 0.36, 0.38, 0.31]
    told, turned = paired(first, other), paired(other, first)
    expected = stats.ttest_rel(other, first)
    assert told.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (told.low, told.high) == pytest.approx((interval.low, interval.high))
    assert (turned.mean, turned.low, turned.p) == pytest.approx(
        (-told.mean, -(told.high or 0), told.p)
    )


@pytest.mark.parametrize(
    ("first", "other", "mean"),
    [([0.5], [0.6], 0.1), ([0.5, 0.4], [0.5, 0.4], 0.0), ([0.1, 0.4], [0.3, 0.6], 0.2)],
)
def test_one_seed_or_no_spread_has_no_interval(
    first: list[float], other: list[float], mean: float
) -> None:
    told = paired(first, other)
    assert told.mean == pytest.approx(mean)
    assert (told.low, told.high, told.p) == (None, None, None)
    assert str(told) == f"{mean:+.3f}"
