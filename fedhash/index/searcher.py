"""A site's answer to a query: the agreement's limits first, then the search.

The rules, all checked before any work:

1. The query asks for no more hits than the agreement allows.
2. It searches a modality of the agreement, with the agreement's code length.
3. It is of the release that the archive holds.

A filter by an attribute that no study of the site has finds nothing and is no error: sites of one
consortium may keep different attributes.

An answer names the site and, a hit, the opaque handle, the distance and the score; attributes and
patients stay where they are.

    >>> SiteSearcher("site-3", archive, agreement).answer(query)
    [Hit(site='site-3', handle='5c1f...', distance=3, score=29120)]
"""

from __future__ import annotations

from dataclasses import dataclass

from fedhash.agreement import Agreement
from fedhash.errors import QueryError
from fedhash.index.archive import Archive
from fedhash.search.hit import Hit
from fedhash.search.query import Query

__all__ = ["SiteSearcher", "check_limits"]


def check_limits(agreement: Agreement, *, k: int, modality: str) -> None:
    """Refuse what the agreement allows no query.

    Args:
        agreement: What the consortium agreed upon.
        k: Hits wanted.
        modality: The modality to search in.

    Raises:
        QueryError: `k` or `modality` lies outside the agreement.
    """
    if k > agreement.largest_k:
        raise QueryError(
            f"the query asks for {k} hits, the agreement allows {agreement.largest_k}; lower k"
        )
    if modality not in agreement.modalities:
        raise QueryError(
            f"the query searches {modality!r}; the agreement knows "
            f"{', '.join(agreement.modalities)}"
        )


@dataclass(frozen=True, slots=True)
class SiteSearcher:
    """Answers queries for one site.

    Attributes:
        site: The site's name in the consortium.
        archive: The site's archive.
        agreement: What the consortium agreed upon.
    """

    site: str
    archive: Archive
    agreement: Agreement

    def answer(self, query: Query) -> list[Hit]:
        """The site's best hits, best first, to be merged with the other sites' lists.

        Raises:
            QueryError: The query breaks a rule above.
        """
        check_limits(self.agreement, k=query.k, modality=query.modality)
        return [
            Hit(self.site, match.handle, match.distance, match.score)
            for match in self.archive.search(query)
        ]
