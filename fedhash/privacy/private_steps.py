"""What a site is about to do with its patients' data, for whoever keeps account of it.

>>> PrivateSteps(noise_multiplier=1.1, sampling_rate=0.05, steps=20)
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PrivateSteps"]


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
