"""What a site is about to do with its patients' data, for whoever keeps account of it.

>>> PrivateSteps(noise_multiplier=1.1, sampling_rate=0.05, steps=20)
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PrivateSteps", "SharedNoiseStep"]


@dataclass(frozen=True)
class PrivateSteps:
    """A round's releases, in all that their guarantee depends on: DP-SGD's steps, and statistics.

    Attributes:
        noise_multiplier: sigma over the clipping norm.
        sampling_rate: q; at 1 every patient takes part in every step.
        steps: Their number.
        statistics_noise_multiplier: sigma over the sensitivity of the round's margin statistics;
            None in a round without.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int
    statistics_noise_multiplier: float | None = None


@dataclass(frozen=True)
class SharedNoiseStep:
    """One step whose noise the sites add together.

    Attributes are those of :class:`fedhash.privacy.events.DistributedGaussianStep`, and the
    statistics' of :class:`PrivateSteps`: their noise is always the site's own.
    """

    sum_noise_multiplier: float
    colluding_sites: int
    guaranteed_noise_multiplier: float
    share_sigma_integer_steps: float
    statistics_noise_multiplier: float | None = None
