"""Discrete Gaussian noise against its definition and against an exact sampler written by hand.

Statistical checks compare with thresholds that sound noise passes but for one run in 10^9.
"""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from fedhash.privacy import discrete_gaussian
from fedhash.privacy.discrete_gaussian import discrete_gaussians
from fedhash.privacy.noise import SecureNoise, SimulatedNoise

FALSE_ALARM = 1e-9


def probabilities(width: float, centre: float, integers: np.ndarray) -> np.ndarray:
    """Of integers under the discrete Gaussian; the sum reaches 40 widths to either side."""
    middle, reach = round(centre), int(40 * width) + 2
    everywhere = np.arange(middle - reach, middle + reach + 1)
    total = math.fsum(np.exp(-((everywhere - centre) ** 2) / (2 * width**2)))
    return np.exp(-((integers - centre) ** 2) / (2 * width**2)) / total


def chi_square(drawn: np.ndarray, width: float) -> tuple[float, int]:
    """The statistic over integers that are likely enough, the tails in one cell each."""
    edge = int(3.5 * width)
    inner = np.arange(-edge, edge + 1)
    expected = probabilities(width, 0.0, inner)
    outside = (1 - expected.sum()) / 2
    expected = np.concatenate([[outside], expected, [outside]]) * len(drawn)
    places = np.clip(drawn, -edge - 1, edge + 1) + edge + 1
    found = np.bincount(places, minlength=len(inner) + 2)
    return float(((found - expected) ** 2 / expected).sum()), len(inner) + 1


def exact(width: Fraction, draws: random.Random) -> int:
    """Canonne, Kamath and Steinke 2020, algorithms 1 to 3, in whole numbers and fractions."""

    def bernoulli(probability: Fraction) -> bool:
        return draws.randrange(probability.denominator) < probability.numerator

    def bernoulli_exp(exponent: Fraction) -> bool:  # with probability exp(-exponent)
        while exponent > 1:
            if not bernoulli_exp(Fraction(1)):
                return False
            exponent -= 1
        k = 1
        while bernoulli(exponent / k):
            k += 1
        return k % 2 == 1

    def laplace(scale: int) -> int:
        while True:
            remainder = draws.randrange(scale)
            if not bernoulli_exp(Fraction(remainder, scale)):
                continue
            quotient = 0
            while bernoulli_exp(Fraction(1)):
                quotient += 1
            size, negative = remainder + scale * quotient, bernoulli(Fraction(1, 2))
            if not (negative and size == 0):
                return -size if negative else size

    scale = math.floor(width) + 1
    while True:
        found = laplace(scale)
        if bernoulli_exp((abs(found) - width**2 / scale) ** 2 / (2 * width**2)):
            return found


@pytest.mark.parametrize("width", [2.5, 8.0, 23.7])
def test_the_noise_is_the_discrete_gaussian(width: float) -> None:
    statistic, degrees = chi_square(discrete_gaussians(SecureNoise(), width, 400_000), width)
    assert chi2.ppf(FALSE_ALARM, degrees) < statistic < chi2.isf(FALSE_ALARM, degrees)


def test_the_check_notices_noise_that_is_a_little_too_narrow() -> None:
    drawn = discrete_gaussians(SecureNoise(), 7.8, 400_000)
    statistic, degrees = chi_square(drawn, 8.0)
    assert statistic > chi2.isf(FALSE_ALARM, degrees)


def test_it_cannot_be_told_from_an_exact_sampler() -> None:
    """Two samples, by the chi-square test of homogeneity; the exact one is checked as well."""
    draws = random.Random(5)
    reference = np.array([exact(Fraction(8), draws) for _ in range(12_000)])
    statistic, degrees = chi_square(reference, 8.0)
    assert chi2.ppf(FALSE_ALARM, degrees) < statistic < chi2.isf(FALSE_ALARM, degrees)
    own = discrete_gaussians(SimulatedNoise(5, "test"), 8.0, 12_000)
    cells = [np.bincount(np.clip(each, -20, 20) + 20, minlength=41) for each in (reference, own)]
    both = cells[0] + cells[1]
    statistic = float(((cells[0] - cells[1]) ** 2 / both).sum())
    assert statistic < chi2.isf(FALSE_ALARM, 40)


@given(st.floats(-1e6, 1e6, allow_nan=False))
def test_rounding_follows_the_narrow_discrete_gaussian_around_any_point(centre: float) -> None:
    """Uniforms on a grid give every integer its probability to within the grid's spacing."""
    count = 20_000
    uniforms = (np.arange(count) + 0.5) / count
    found = discrete_gaussian._rounded(np.full(count, centre), uniforms)
    integers, times = np.unique(found, return_counts=True)
    expected = probabilities(2.0, centre, integers)
    assert expected.sum() > 1 - 1e-3
    np.testing.assert_allclose(times / count, expected, atol=1.01 / count)


@pytest.mark.parametrize("centre", [0.0, 0.5, 0.999999, -3.25])
def test_the_farthest_integers_that_a_uniform_can_reach(centre: float) -> None:
    ends = np.array([0.0, 2.0**-53, 1 - 2.0**-53])
    low, next_low, high = discrete_gaussian._rounded(np.full(3, centre), ends)
    assert low == math.floor(centre) - 17
    assert next_low > low
    assert 15 <= high - centre <= 18


@pytest.mark.parametrize("width", [8.0, 1234.5, 3e8])
def test_mean_and_variance_at_any_width(width: float) -> None:
    count = 200_000
    drawn = discrete_gaussians(SecureNoise(), width, count).astype(float)
    limit = norm.isf(FALSE_ALARM / 2)
    assert abs(drawn.mean()) < limit * width / math.sqrt(count)
    assert abs(drawn.var() / width**2 - 1) < limit * math.sqrt(2 / count)


def test_no_draw_repeats_another_and_chunks_are_drawn_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(discrete_gaussian, "_CHUNK_NUMBERS", 64)
    drawn = discrete_gaussians(SimulatedNoise(3, "test"), 1e12, 200)
    assert len(set(drawn.tolist())) == 200
    again = discrete_gaussians(SimulatedNoise(3, "test"), 1e12, 200)
    assert (drawn == again).all()
    noise = SimulatedNoise(3, "test")
    first = discrete_gaussians(noise, 1e12, 64)
    assert (first == drawn[:64]).all()
    assert (discrete_gaussians(noise, 1e12, 64) == drawn[64:128]).all()
    assert discrete_gaussians(noise, 1e12, 0).shape == (0,)


@pytest.mark.parametrize("width", [2.0, 0.0, -8.0, math.nan, 2.0**48])
def test_widths_out_of_range(width: float) -> None:
    with pytest.raises(ValueError, match="expected one above 2"):
        discrete_gaussians(SecureNoise(), width, 1)
