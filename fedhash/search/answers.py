"""What comes back: a site's answer, what the router gathers, and what the asker makes of it.

An answer is partial wherever a site did not answer, and it names each such site and
why. The outcomes of a site:

    answered       its hits are in the answer, be there any or not
    refused        its own rules forbid the query; `reason` names the rule
    late           it had the query and was silent until the deadline
    busy           its queue was full: it answers more slowly than it is asked
    left           its stream ended before it answered
    invalid        its answer broke the protocol, or is not signed by it, and was dropped
    other_release  it holds another release, named by `reason`, or none
    not_attached   it is of the agreement and has no stream to the router

>>> merged.missing
(SiteResult(site='hospital-c', outcome='late', reason='', hits=0, cut_to_bits=None),)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from fedhash.search.hit import Hit, merge

__all__ = [
    "OUTCOMES",
    "SIGNATURE_BYTES",
    "Found",
    "Gathered",
    "Merged",
    "Outcome",
    "Refusal",
    "SiteResult",
]

SIGNATURE_BYTES = 64

Outcome = Literal[
    "answered", "refused", "late", "busy", "left", "invalid", "other_release", "not_attached"
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A query that the rules forbid.

    Attributes:
        reason: A short machine-readable name of the rule.
        message: What was found, what was expected, what to do.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Found:
    """What one site found.

    Attributes:
        hits: Best first.
        cut_to_bits: The site's own radius where the query asked for more, else None.
        signature: The site's, over the query and all of this (`fedhash.search.signed_answers`);
            zeros: not signed.
    """

    hits: tuple[Hit, ...]
    cut_to_bits: int | None = None
    signature: bytes = bytes(SIGNATURE_BYTES)


@dataclass(frozen=True, slots=True)
class SiteResult:
    """What became of a query at one site.

    Attributes:
        site: Its name.
        outcome: See the module.
        reason: Of a refusal its rule, of another release its id; else empty.
        hits: How many hits the site gave.
        cut_to_bits: The site's own radius where the query asked for more, else None.
    """

    site: str
    outcome: Outcome
    reason: str = ""
    hits: int = 0
    cut_to_bits: int | None = None


@dataclass(frozen=True, slots=True)
class Gathered:
    """The router's answer.

    Attributes:
        sites: All sites, sorted by name.
        found: What those gave that answered, by site.
    """

    sites: tuple[SiteResult, ...]
    found: Mapping[str, Found]

    def merged(self, k: int) -> Merged:
        """The best `k` hits of all.

        Raises:
            QueryError: `k` is not positive.
        """
        return Merged(tuple(merge((each.hits for each in self.found.values()), k)), self.sites)


@dataclass(frozen=True, slots=True)
class Merged:
    """The answer of all sites.

    Attributes:
        hits: The best hits of all sites that answered, under the total order.
        sites: All sites, sorted by name.
    """

    hits: tuple[Hit, ...]
    sites: tuple[SiteResult, ...]

    @property
    def missing(self) -> tuple[SiteResult, ...]:
        """The sites without which the answer is partial."""
        return tuple(each for each in self.sites if each.outcome != "answered")
