"""A site's answer to a query: the agreement's limits first, then the search.

The rules, all checked before any work:

1. The query asks for no more hits than the agreement allows.
2. It searches a modality of the agreement, with the agreement's code length.
3. It is of the release that the archive holds.

A site may bound the radius by a smallest kappa of its own: whatever a query asks, no hit is farther
away than `radius_from_kappa` of it. A wider query is answered within the site's radius, and the
answer says so. That depends on the query and the site's setting alone, never on what the archive
holds: whether something lies beyond the bound is not told.

A filter by an attribute that no study of the site has finds nothing and is no error: sites of one
consortium may keep different attributes.

An answer names the site and, a hit, the opaque handle, the distance and the score; attributes and
patients stay where they are.

    >>> SiteSearcher("site-3", archive, agreement, smallest_kappa=0.5).answer(query)
    SiteAnswer(hits=(Hit(site='site-3', handle='5c1f...', distance=3, score=29120),), cut_to_bits=8)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedhash.agreement import Agreement
from fedhash.errors import QueryError
from fedhash.index.archive import Archive
from fedhash.search.hit import Hit
from fedhash.search.query import Query, radius_from_kappa

__all__ = ["SiteAnswer", "SiteSearcher", "check_limits"]


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
class SiteAnswer:
    """What one site answers to a query.

    Attributes:
        hits: The site's best hits, best first, to be merged with the other sites' lists.
        cut_to_bits: The site's own radius where the query asked for more, else None.
    """

    hits: tuple[Hit, ...]
    cut_to_bits: int | None


@dataclass(frozen=True, slots=True)
class SiteSearcher:
    """Answers queries for one site.

    Attributes:
        site: The site's name in the consortium.
        archive: The site's archive.
        agreement: What the consortium agreed upon.
        smallest_kappa: Bounds the radius of every answer, see `radius_from_kappa`; None: no bound.
        smallest_bucket: An answer that rests on fewer patients is empty, see
            `fedhash.search.policy`; the site's own users have no such bound.

    Raises:
        QueryError: The smallest kappa is outside -1..1.
    """

    site: str
    archive: Archive
    agreement: Agreement
    smallest_kappa: float | None = None
    smallest_bucket: int = 1

    def __post_init__(self) -> None:
        if self.smallest_kappa is not None:  # fail now, not at the first query
            radius_from_kappa(self.smallest_kappa, self.agreement.code_bits)

    def answer(self, query: Query) -> SiteAnswer:
        """The site's best hits within its radius.

        Raises:
            QueryError: The query breaks a rule above.
        """
        check_limits(self.agreement, k=query.k, modality=query.modality)
        cut_to_bits = None
        if self.smallest_kappa is not None:
            largest = radius_from_kappa(self.smallest_kappa, 8 * len(query.code))
            if query.radius is None or query.radius > largest:
                cut_to_bits = largest
                query = replace(query, radius=largest)
        matches = self.archive.search(query, self.smallest_bucket)
        hits = tuple(Hit(self.site, m.handle, m.distance, m.score) for m in matches)
        return SiteAnswer(hits, cut_to_bits)
