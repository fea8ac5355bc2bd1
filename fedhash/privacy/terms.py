"""How much one patient's data may leak: a section of the site's file and of the agreement.

>>> PrivacyTerms(epsilon_cap=8.0, delta=1e-5)
"""

from __future__ import annotations

from pydantic import Field

from fedhash.configuration import Settings

__all__ = ["LARGEST_DELTA", "SMALLEST_DELTA", "PrivacyTerms"]

SMALLEST_DELTA = 1e-9  # below it the rounding of the composition's Fourier transforms would count
LARGEST_DELTA = 1e-2  # above it the guarantee allows to publish one patient in a hundred


class PrivacyTerms(Settings):
    """A bound on the whole life of the consortium, for each patient of a site.

    Attributes:
        epsilon_cap: Largest epsilon of everything that the site has released and will release.
        delta: At this delta; well below one over the number of the site's patients.
    """

    epsilon_cap: float = Field(gt=0)
    delta: float = Field(ge=SMALLEST_DELTA, le=LARGEST_DELTA)
