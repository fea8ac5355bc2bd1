"""How few sites a secure sum may have: floors that both halves of the protocol keep.

The site enforces them whatever it is asked; the coordinator keeps them so that it asks nothing in
vain.

    >>> smallest_sum(10, agreement)      # of ten sites that began, seven must be in the sum
    7
"""

from __future__ import annotations

from fedhash.agreement import Agreement
from fedhash.secagg.graph import fewest_survivors
from fedhash.secagg.terms import SMALLEST_SECURE_COHORT

__all__ = ["smallest_cohort", "smallest_sum"]


def smallest_cohort(agreement: Agreement) -> int:
    """Fewest sites with which a round begins."""
    return max(agreement.smallest_cohort, SMALLEST_SECURE_COHORT)


def smallest_sum(sites: int, agreement: Agreement) -> int:
    """Fewest sites of a round begun by `sites` that share secrets, and that a sum is opened for."""
    return max(fewest_survivors(sites), smallest_cohort(agreement))
