"""How few sites a secure sum may have: floors that both halves of the protocol keep.

The site enforces them whatever it is asked; the coordinator keeps them so that it asks nothing in
vain.

    >>> smallest_sum(10, agreement)      # of ten sites that began, seven must be in the sum
    7
    >>> secure_cohort(10, agreement)
    SecureCohort(sites=10, colluding=1, fewest_honest=6)
"""

from __future__ import annotations

from dataclasses import dataclass

from fedhash.agreement import Agreement
from fedhash.secagg.graph import fewest_survivors, sums_under_collusion
from fedhash.secagg.terms import SMALLEST_SECURE_COHORT

__all__ = ["SecureCohort", "secure_cohort", "smallest_cohort", "smallest_sum"]


@dataclass(frozen=True, slots=True)
class SecureCohort:
    """The sites of a secure sum, as one of them counts them before it trains.

    Attributes:
        sites: All that began the round.
        colluding: Other sites that may tell what they added to whoever sees the sum: the
            agreement's `largest_corrupt_share`, and one at least.
        fewest_honest: Sites that tell nobody and are in any sum that is opened, this one included,
            whatever lists of survivors a coordinator shows.
    """

    sites: int
    colluding: int
    fewest_honest: int


def smallest_cohort(agreement: Agreement) -> int:
    """Fewest sites with which a round begins."""
    return max(agreement.smallest_cohort, SMALLEST_SECURE_COHORT)


def smallest_sum(sites: int, agreement: Agreement) -> int:
    """Fewest sites of a round begun by `sites` that share secrets, and that a sum is opened for."""
    return max(fewest_survivors(sites), smallest_cohort(agreement))


def secure_cohort(sites: int, agreement: Agreement) -> SecureCohort:
    """What a site may count on in a round begun by `sites`.

    Raises:
        ProtocolError: No graph of so many sites keeps the agreement.
    """
    colluding, in_any_sum = sums_under_collusion(sites, agreement.secure_aggregation)
    in_one_list = smallest_sum(sites, agreement) - colluding
    return SecureCohort(sites, colluding, max(0, min(in_any_sum, in_one_list)))
