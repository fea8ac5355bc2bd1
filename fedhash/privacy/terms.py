"""How much one patient's data may leak: a section of the site's file and of the agreement.

>>> PrivacyTerms(epsilon_cap=8.0, delta=1e-5)
"""

from __future__ import annotations

from pydantic import Field

from fedhash.configuration import Settings
from fedhash.privacy.settings import PrivateMode

__all__ = ["LARGEST_DELTA", "SMALLEST_DELTA", "AgreedPrivacy", "PrivacyTerms"]

# The tails that the noise lacks belong to delta: 4.5e-16 for each parameter and step
# (`fedhash.privacy.noise`, rule 4). A million parameters in a hundred steps stay below this, and
# below 1e-9 the rounding of the composition's Fourier transforms would count as well.
SMALLEST_DELTA = 1e-7
LARGEST_DELTA = 1e-2  # above it the guarantee allows to publish one patient in a hundred


class PrivacyTerms(Settings):
    """A bound on the whole life of the consortium, for each patient of a site.

    Attributes:
        epsilon_cap: Largest epsilon of everything that the site has released and will release.
        delta: At this delta; well below one over the number of the site's patients.
    """

    epsilon_cap: float = Field(gt=0)
    delta: float = Field(ge=SMALLEST_DELTA, le=LARGEST_DELTA)


class AgreedPrivacy(PrivacyTerms):
    """The consortium's cap for every site, and whose noise protects.

    Attributes:
        modes: The `privacy.mode` that rounds may have. site: each site's own noise protects its
            patients, whoever works together. distributed: the sites add one noise together, inside
            the secure sum, so the protection rests on most of them; a round is one step over all
            patients, and carries the whole model all the same: 4 bytes a parameter to each site
            and `secure_aggregation.ring_bits` a parameter back (docs/adr/0015).
    """

    modes: tuple[PrivateMode, ...] = Field(default=("site",), min_length=1)
