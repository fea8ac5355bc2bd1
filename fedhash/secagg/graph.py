"""Who masks with whom, how many shares open a secret, and what that promises.

The graph is that of Bell et al. 2020, "Secure single-server aggregation with (poly)logarithmic
overhead" (CCS): the sites in random order on a ring, each joined to the k/2 next ones on either
side (a Harary graph). With k = n - 1 everyone is joined to everyone, as in Bonawitz et al. 2017.
A site's secret opens with t shares of its k neighbours. The proofs are in docs/adr/0008 and 0009.
All arithmetic is exact, so every site finds the same plan as the coordinator.

    >>> plan_graph(100, SecureAggregationTerms()).degree
    52
    >>> neighbours(["a", "b", "c"], degree=2, seed=roster.session("run-7", 12))["a"]
    ('b', 'c')
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import comb
from typing import Literal

from fedhash.errors import ProtocolError
from fedhash.secagg.terms import SecureAggregationTerms

__all__ = [
    "GraphPlan",
    "cohorts_without_graph",
    "fewest_honest_summands",
    "fewest_survivors",
    "neighbours",
    "plan_graph",
    "sums_under_collusion",
]

_COMPLETE_UP_TO = 32  # sites; below, a sparse graph saves half at most and bears fewer dropouts
# Sigma and eta of Bell et al. 2020; Google's implementation takes 40 and 20
# (google-parfait/federated-compute, fcp/secagg/server/graph_parameter_finder.cc).
_SECURITY_BITS = 40
_CORRECTNESS_BITS = 30
_LARGEST_DEGREE = 255  # the nonzero points of GF(256), one a share
_FEWEST_HONEST = 3  # in a sum of two, each finds the other's vector by subtracting its own


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """The graph of one round.

    Attributes:
        kind: "complete" joins everyone to everyone.
        degree: Neighbours of each site, k.
        threshold: Shares that open a secret, t; at most k - t neighbours may be missing.
        fewest_honest: `fewest_honest_summands` under the agreement's shares.
    """

    kind: Literal["complete", "harary"]
    degree: int
    threshold: int
    fewest_honest: int


@lru_cache(maxsize=64)
def plan_graph(sites: int, terms: SecureAggregationTerms) -> GraphPlan:
    """The smallest degree, and for it the smallest threshold, that keep the terms.

    Raises:
        ProtocolError: No graph of so many sites keeps the terms.
    """
    if sites < 2:
        raise ProtocolError("the sum of one site is its vector; a secure sum needs two sites")
    corrupt = _share_of(terms.largest_corrupt_share, sites)
    dropped = _share_of(terms.largest_dropout_share, sites)
    sparse = range(2, sites - 1, 2) if sites > _COMPLETE_UP_TO else ()
    for degree in (*sparse, sites - 1):
        if degree > _LARGEST_DEGREE:
            break
        near_dropped = _most_near(sites, dropped, degree, _CORRECTNESS_BITS)
        thresholds = range(2 * degree // 3 + 1, degree - near_dropped + 1)
        near_corrupt = _most_near(sites, corrupt, degree, _SECURITY_BITS) if thresholds else 0
        for threshold in thresholds:
            fewest = fewest_honest_summands(sites, degree, threshold, near_corrupt)
            if fewest >= min(_FEWEST_HONEST, sites - corrupt):
                complete = degree == sites - 1
                return GraphPlan("complete" if complete else "harary", degree, threshold, fewest)
    raise ProtocolError(
        f"no graph of {sites} sites bears {corrupt} corrupt ones (largest_corrupt_share "
        f"{terms.largest_corrupt_share}) and {dropped} dropouts (largest_dropout_share "
        f"{terms.largest_dropout_share}); ask another number of sites, at most "
        f"{_LARGEST_DEGREE + 1} where the shares are large, or agree on smaller shares"
    )


def cohorts_without_graph(
    smallest: int, largest: int, terms: SecureAggregationTerms
) -> tuple[int, ...]:
    """The sizes of a cohort, from smallest to largest, of which no graph keeps the terms.

    A share is rounded down to sites, so a cohort may have none although a larger one has.
    """
    missing = []
    for sites in range(smallest, largest + 1):
        try:
            plan_graph(sites, terms)
        except ProtocolError:
            missing.append(sites)
    return tuple(missing)


def neighbours(sites: Sequence[str], degree: int, seed: bytes) -> Mapping[str, tuple[str, ...]]:
    """The neighbours of each site, sorted by name; the order of `sites` does not matter.

    Args:
        sites: The cohort.
        degree: n - 1, or an even number below it.
        seed: The session's digest.

    Raises:
        ProtocolError: A site is named twice, or no such graph exists.
    """
    count = len(sites)
    if len(set(sites)) != count:
        raise ProtocolError("a site is named twice among the sites of a graph; name each once")
    if degree != count - 1 and (degree % 2 or not 0 < degree < count - 1):
        raise ProtocolError(
            f"{count} sites cannot have {degree} neighbours each; "
            f"take {count - 1} or a smaller even number"
        )
    # Sorting by keyed digests is a shuffle that no platform and no modulus can bias.
    ring = sorted(sites, key=lambda site: hmac.digest(seed, site.encode(), "sha256"))
    steps = range(1, count) if degree == count - 1 else range(-degree // 2, degree // 2 + 1)
    return {
        site: tuple(sorted(ring[(place + step) % count] for step in steps if step))
        for place, site in enumerate(ring)
    }


def fewest_survivors(sites: int) -> int:
    """How many sites a survivor list must name before a site answers it: above two thirds."""
    return 2 * sites // 3 + 1


def fewest_honest_summands(sites: int, degree: int, threshold: int, corrupt: int) -> int:
    """How many honest vectors any opened sum holds at least, whatever lists the sites are shown.

    Counts as ADR 8 does: the honest neighbours of a member of the smallest sum are in the sum
    themselves (`kept`), away from it (`away`) or opened as dead (`dead`).

    Args:
        sites: Size of the cohort, n.
        degree: Neighbours of each site, k.
        threshold: Shares that open a secret, t.
        corrupt: Most corrupt neighbours of an honest site, c; in the complete graph all of them.

    Returns:
        A lower bound; 0 where both secrets of one site can be opened.
    """
    missing = degree - threshold
    if corrupt >= 2 * threshold - degree:
        return 0

    def can_be_opened(kept: int, away: int) -> bool:
        dead = degree - corrupt - (kept - 1) - away
        if dead <= 0:
            return True
        most = min(missing, dead)
        if degree == sites - 1:  # what is away from one member is away from all
            answers = kept * min(missing - away, dead)
            answers += away * most + dead * min(missing, dead - 1)
        else:  # only sites within k places on the ring are neighbours of the dead
            answers = min(most * (2 * degree - most + 1), (sites - 1) * most)
            answers += min(missing - away, dead)
        return dead * (threshold - corrupt) <= answers

    return next(
        kept
        for kept in range(1, sites + 1)
        if any(can_be_opened(kept, away) for away in range(missing + 1))
    )


@lru_cache(maxsize=64)
def sums_under_collusion(sites: int, terms: SecureAggregationTerms) -> tuple[int, int]:
    """How many sites may collude, one at least, and `fewest_honest_summands` while they do.

    Below ten sites a tenth is nobody; what rests on the others' secrecy reckons with one.

    Raises:
        ProtocolError: No graph of so many sites keeps the terms.
    """
    graph = plan_graph(sites, terms)
    colluding = max(1, _share_of(terms.largest_corrupt_share, sites))
    near = _most_near(sites, colluding, graph.degree, _SECURITY_BITS)
    return colluding, fewest_honest_summands(sites, graph.degree, graph.threshold, near)


def _share_of(share: float, sites: int) -> int:
    return int(Fraction(str(share)) * sites)  # exact: 0.1 of 30 is 3 everywhere


def _most_near(sites: int, marked: int, degree: int, bits: int) -> int:
    """The least m so that any two runs of k/2 places, such as those beside a site, hold at most m.

    Up to odds of 2^-bits: exact hypergeometric tail, union bound over the pairs of runs.
    """
    ways, of, pairs = 0, comb(sites, degree), comb(sites, 2)
    largest = min(marked, degree)
    exactly = comb(marked, largest) * comb(sites - marked, degree - largest)
    for most in range(largest, 0, -1):
        ways += exactly
        if pairs * ways << bits > of:
            return most
        # from each number of ways to the next: a binomial coefficient anew takes ten times as long
        exactly *= most * (sites - marked - degree + most)
        exactly //= (marked - most + 1) * (degree - most + 1)
    return 0
