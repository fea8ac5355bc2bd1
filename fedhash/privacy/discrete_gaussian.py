"""Gaussian noise in integers: a continuous Gaussian, rounded by a narrow discrete one.

1. Draw y from N(0, sigma^2 - s^2) and take the integer k near y with a probability proportional to
   exp(-(k - y)^2 / (2 s^2)), s = 2. That is a draw of the discrete Gaussian of width sigma up to a
   factor 1 +- 1e-34 (`fedhash.privacy.accountant`, rule 4), at any sigma in the same time. Exact
   samplers (Canonne, Kamath, Steinke 2020, arXiv 2004.00010) reject, one number at a time.
2. y comes from the noise source, which guards against the gaps between doubles. k is found by
   its distribution function and a uniform of 53 bits, so the probability of an integer is off by
   2^-52 at most. Integers more than 17 from y have less than 2^-53 together and are never taken.
3. Nothing adds these errors to a figure. An integer comes from a stretch of 35 values of y, over
   which their density changes by e^(153 / sigma) at most, within nine sigma. So the errors change
   an integer's probability by a factor of 1 +- 36 2^-52 e^(153 / sigma), from sigma = 170 on less
   than 1 +- 2^-45; d integers in T steps change epsilon by less than d T 2^-44, or 6e-6 at 1e8.
   Shares are legal from 8 integers on, where this bound says little; the default ring of 32 bits
   makes them thousands wide. What y itself lacks belongs to delta (`fedhash.privacy.noise`).
4. Numbers are drawn chunk by chunk, each under keys of its own.

Shape suffix: n numbers.

    >>> discrete_gaussians(SecureNoise(), sigma_integer_steps=310.5, count=3)
    array([ 127, -402,   31])
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Int64

from fedhash.privacy.events import ROUNDING_WIDTH_INTEGER_STEPS
from fedhash.privacy.noise import NoiseSource

__all__ = ["discrete_gaussians"]

_WIDTH = ROUNDING_WIDTH_INTEGER_STEPS
_FARTHEST = 17  # 8.5 widths
_CHUNK_NUMBERS = 1 << 13  # temporaries stay in the second-level cache


def discrete_gaussians(
    noise: NoiseSource, sigma_integer_steps: float, count: int
) -> Int64[np.ndarray, " n"]:
    """Independent draws of the discrete Gaussian around zero.

    Args:
        noise: Where the draws come from.
        sigma_integer_steps: Its width, above s and below 2^48.
        count: n.

    Raises:
        ValueError: The width is out of range.
    """
    if not _WIDTH < sigma_integer_steps < 1 << 48:
        raise ValueError(
            f"a width of {sigma_integer_steps} integers, expected one above {_WIDTH} and below 2^48"
        )
    wide = math.sqrt(sigma_integer_steps**2 - _WIDTH**2)
    result = np.empty(count, np.int64)
    for start in range(0, count, _CHUNK_NUMBERS):
        part = result[start : start + _CHUNK_NUMBERS]
        part[:] = _rounded(wide * noise.gaussians(len(part)), noise.uniforms(len(part)))
    return result


def _rounded(y: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """The integer near each y below which the distribution has as much as the uniform says.

    With y = m + f for an integer m, exp(-(k - f)^2 / 2 s^2) is proportional to
    exp(-k^2 / 2 s^2) exp(f / s^2)^k; all k together have s sqrt(2 pi) exp(f^2 / 2 s^2), whatever f.
    """
    below = np.floor(y)
    fraction = y - below
    growth = np.exp(fraction / _WIDTH**2)
    power = growth**-_FARTHEST
    wanted = uniforms * (_WIDTH * math.sqrt(2 * math.pi) * np.exp((fraction / _WIDTH) ** 2 / 2))
    cumulative, passed = np.zeros(len(y)), np.zeros(len(y), np.int64)
    for k in range(-_FARTHEST, _FARTHEST + 1):
        cumulative += math.exp(-((k / _WIDTH) ** 2) / 2) * power
        passed += cumulative <= wanted
        power *= growth
    return np.asarray(below.astype(np.int64) - _FARTHEST + passed)
