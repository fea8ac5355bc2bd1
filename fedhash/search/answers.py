"""What comes back: a site's answer, and what the router makes of all of them.

An answer of the router is partial wherever a site did not answer, and it names each such site and
why. The outcomes of a site:

    answered       its hits are in the answer, be there any or not
    refused        its own rules forbid the query; `reason` names the rule
    late           it had the query and was silent until the deadline
    busy           its queue was full: it answers more slowly than it is asked
    left           its stream ended before it answered
    invalid        its answer broke the protocol and was dropped
    other_release  it holds another release, named by `reason`, or none
    not_attached   it is of the agreement and has no stream to the router

>>> merged.missing
(SiteResult(site='hospital-c', outcome='late', reason='', hits=0, cut_to_bits=None),)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fedhash.search.hit import Hit

__all__ = ["OUTCOMES", "Found", "Merged", "Outcome", "Refusal", "SiteResult"]

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
    """

    hits: tuple[Hit, ...]
    cut_to_bits: int | None = None


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
class Merged:
    """The router's answer.

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
