"""How much noise each site adds inside a secure sum, and what the sum guarantees.

1. A site adds to each coordinate of its ring vector a discrete Gaussian of width
   sqrt((z Delta)^2 / h + s^2) integers. z is the guaranteed noise multiplier, Delta the sensitivity
   in integers, and h (`SecureCohort.fewest_honest`) how many sites' shares are surely in a sum that
   is opened and known to none who sees it. s = 2 is what a discrete share counts less than a
   continuous one (`fedhash.privacy.accountant`, rule 4). So the step counts as one of z exactly,
   whatever the model and the cohort.
2. Delta = C / step + sqrt(d). Taking one patient away moves the clipped sum by at most C in L2
   norm, which is C / step integers; clipping its coordinates moves no two sums further apart. A
   coordinate becomes floor(A + u): A is its value in integers, cut to a multiple of 2^-32, and u a
   multiple of 2^-32 in [0, 1) that depends on no data. For the values a and b of two sums
   |A - B| < |a - b| + 2^-32, and |floor(A + u) - floor(B + u)| <= |A - B| + 1 - 2^-32, for the
   fractions of A + u and B + u differ by no more than 1 - 2^-32. So a coordinate moves by less than
   |a - b| + 1, and all d of them, by the triangle inequality, by less than C / step + sqrt(d) in L2
   norm.
3. What float64 rounds before is relative to the sum, and far below the thousandth of C by which
   gradients are clipped shorter (`fedhash.privacy.dp_sgd`, rule 6).
4. Noise is added modulo the ring and never clipped: reducing the noisy *sum* is post-processing,
   clipping one site's share would not be. A sum that wraps is lost for the training, though, so a
   ring is refused in which the sum of N patients has no 8 standard deviations of room.

Shape suffix: d parameters of the whole model.

    >>> share = noise_share(settings.privacy, encoding, secure_cohort(10, agreement))
    >>> share.share_sigma_integer_steps
    41203.7
"""

from __future__ import annotations

import math

from fedhash.errors import PrivacyError
from fedhash.privacy.events import ROUNDING_WIDTH_INTEGER_STEPS, SMALLEST_SHARE_INTEGER_STEPS
from fedhash.privacy.private_steps import SharedNoiseStep
from fedhash.privacy.settings import DistributedPrivacySettings
from fedhash.secagg.fixed_point import FixedPoint
from fedhash.secagg.floors import SecureCohort

__all__ = ["integer_sensitivity", "noise_share"]

_ROOM_SD = 8  # of a coordinate's noise; past it once in 10^15 coordinates


def integer_sensitivity(clip_norm: float, step: float, coordinates: int) -> float:
    """Most that one patient moves a ring vector, in L2 norm; rule 2 is the proof.

    Args:
        clip_norm: C.
        step: What an integer stands for.
        coordinates: d.
    """
    return clip_norm / step + math.sqrt(coordinates)


def noise_share(
    privacy: DistributedPrivacySettings, encoding: FixedPoint, cohort: SecureCohort
) -> SharedNoiseStep:
    """The share of each site of a sum.

    Args:
        privacy: C, z and N.
        encoding: Of the round; its first block is the update.
        cohort: The sites of the sum.

    Raises:
        PrivacyError: No honest share is sure to be in the sum, the ring is too coarse for shares
            that add up to a Gaussian, or it is too narrow for the noise.
    """
    if cohort.fewest_honest < 1:
        raise PrivacyError(
            f"of {cohort.sites} sites {cohort.colluding} may collude and others may be missing, so "
            "no noise is sure to be left in a sum; ask more sites, or agree on a smaller "
            "secure_aggregation.largest_corrupt_share"
        )
    update = encoding.blocks[0]
    step = encoding.step(update)
    sensitivity = integer_sensitivity(privacy.clip_norm, step, update.length)
    continuous = privacy.noise_multiplier * sensitivity / math.sqrt(cohort.fewest_honest)
    share = math.hypot(continuous, ROUNDING_WIDTH_INTEGER_STEPS)
    if share < SMALLEST_SHARE_INTEGER_STEPS:
        raise PrivacyError(
            f"a site's share of the noise is {share:.3g} integer steps wide, and below "
            f"{SMALLEST_SHARE_INTEGER_STEPS:g} shares do not add up to a Gaussian; agree on more "
            "secure_aggregation.ring_bits or a smaller largest_weight, or raise "
            "privacy.noise_multiplier"
        )
    of_patients = privacy.expected_patients * privacy.clip_norm / step + cohort.sites
    values = min(encoding.largest * cohort.sites, of_patients)
    room = (1 << (encoding.ring_bits - 1)) - 1 - values
    tail = _ROOM_SD * share * math.sqrt(cohort.sites)
    if tail > room:
        raise PrivacyError(
            f"the noise of {cohort.sites} sites reaches {tail:.3g} integer steps, and a ring of "
            f"{encoding.ring_bits} bits has room for {max(0.0, room):.3g} beside the gradients of "
            f"{privacy.expected_patients} patients; agree on more secure_aggregation.ring_bits or "
            "a larger largest_weight"
        )
    return SharedNoiseStep(
        sum_noise_multiplier=share * math.sqrt(cohort.sites) / sensitivity,
        colluding_sites=cohort.colluding,
        guaranteed_noise_multiplier=share * math.sqrt(cohort.fewest_honest) / sensitivity,
        share_sigma_integer_steps=share,
    )
