"""One answer to a query, and the one order in which answers stand everywhere.

Hits are ordered by (distance, -score, site, handle). Codes gather on the anchors of the findings,
so equal distances are the rule: without one total order the list would depend on how the studies
happen to be spread over sites and machines. Distance and score are integers, so the order is the
same on every machine, and merging the sites' lists gives the list that one archive with all the
studies would give.

    >>> merge([[Hit("a", "02", 3, 10)], [Hit("b", "01", 3, 12), Hit("b", "07", 4, 99)]], k=2)
    [Hit(site='b', handle='01', distance=3, score=12), Hit(site='a', handle='02', distance=3, score=10)]
"""  # noqa: E501 - a line of output cannot be broken

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from fedhash.errors import QueryError

__all__ = ["HANDLE_BYTES", "Hit", "merge"]

HANDLE_BYTES = 16  # 2^64 studies before two are likely to share a handle


@dataclass(frozen=True, slots=True)
class Hit:
    """One study that a site found.

    Attributes:
        site: The site that holds the study.
        handle: The study's opaque name; only the site can resolve it.
        distance: Hamming distance to the query in bits.
        score: Asymmetric similarity to the query, for the order among equal distances.
    """

    site: str
    handle: str
    distance: int
    score: int

    @property
    def rank(self) -> tuple[int, int, str, str]:
        """The key of the total order; smaller is better."""
        return (self.distance, -self.score, self.site, self.handle)


def merge(lists: Iterable[Sequence[Hit]], k: int) -> list[Hit]:
    """The best `k` hits of several sites' lists, each of which holds the site's own best `k`.

    Raises:
        QueryError: `k` is not positive.
    """
    if k < 1:
        raise QueryError(f"k is {k}; ask for at least 1 hit")
    return sorted(chain.from_iterable(lists), key=lambda hit: hit.rank)[:k]
