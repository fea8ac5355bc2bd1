"""The graph of secure aggregation, and what a coordinator gains by showing several survivor lists.

Sites are numbered here; the corrupt ones tell the coordinator everything they hold.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from scipy.stats import chi2, hypergeom

from fedhash.errors import ProtocolError
from fedhash.secagg.graph import (
    _most_near,
    cohorts_without_graph,
    fewest_honest_summands,
    fewest_survivors,
    neighbours,
    plan_graph,
)
from fedhash.secagg.terms import SecureAggregationTerms

ADR = Path(__file__).parents[2] / "docs" / "adr"
TERMS = SecureAggregationTerms()
NOBODY: frozenset[int] = frozenset()
Sets = dict[int, frozenset[int]]


@dataclass
class Attack:
    """A round under a coordinator that shows each honest site lists of its own.

    Attributes:
        graph: Neighbours of each site.
        threshold: Shares that open a secret.
        corrupt: The sites that help the coordinator.
        away: Whom each honest site is told not to have shared.
        dead: Whom each honest site is told to have shared and not to have survived.
        silent: Honest sites that do not answer.
    """

    graph: Sets
    threshold: int
    corrupt: frozenset[int]
    away: Sets = field(default_factory=dict)
    dead: Sets = field(default_factory=dict)
    silent: frozenset[int] = NOBODY

    @property
    def honest(self) -> list[int]:
        return sorted(self.graph.keys() - self.corrupt)

    def missing(self, site: int) -> frozenset[int]:
        return self.away.get(site, NOBODY) | self.dead.get(site, NOBODY)

    def is_answered(self) -> bool:
        """Whether every honest site's rules let it answer."""
        least_listed = fewest_survivors(len(self.graph))
        return all(
            len(self.graph[site] - self.missing(site)) >= self.threshold
            and len(self.graph.keys() - self.missing(site)) >= least_listed
            for site in set(self.honest) - self.silent
        )

    def opened_secrets(self) -> tuple[set[int], set[int]]:
        """Honest sites whose self-mask seed is opened, and those whose masking key is."""
        seeds, keys = set(), set()
        for owner in self.honest:
            holders = self.graph[owner]
            answering = holders - self.corrupt - self.silent
            held = len(holders & self.corrupt)
            says_dead = sum(owner in self.dead.get(w, NOBODY) for w in answering)
            says_alive = sum(owner not in self.missing(w) for w in answering)
            if held + says_alive >= self.threshold:
                seeds.add(owner)
            if held + says_dead >= self.threshold:
                keys.add(owner)
        return seeds, keys

    def mask_matrix(self) -> np.ndarray:
        """One row an honest site, one column a mask that the coordinator cannot compute."""
        seeds, keys = self.opened_secrets()
        honest = self.honest
        pairs = [
            (u, v)
            for u, v in itertools.combinations(honest, 2)
            if v in self.graph[u] and not {u, v} & keys
        ]
        matrix = np.zeros((len(honest), len(honest) + len(pairs)))
        for row, site in enumerate(honest):
            matrix[row, row] = site not in seeds
            for column, (u, v) in enumerate(pairs, start=len(honest)):
                other = v if site == u else u
                if site in (u, v) and other not in self.away.get(site, NOBODY):
                    matrix[row, column] = 1 if site == u else -1
        return matrix

    def opened_sums(self) -> list[frozenset[int]]:
        """The sums of honest vectors that the coordinator can compute.

        Two sites that mask with each other come in together. One that is not opened, or that
        masks with a site which does not mask with it, hides all that it comes in with.
        """
        seeds, keys = self.opened_secrets()
        sums = [frozenset({site}) for site in seeds & keys]
        rest = set(self.honest) - keys
        masks = {v: (self.graph[v] - self.away.get(v, NOBODY)) & rest for v in rest}
        while rest:
            together, frontier = set(), {min(rest)}
            while frontier:
                together |= frontier
                frontier = {u for v in frontier for u in masks[v] if v in masks[u]} - together
            mutual = all(v in masks[u] for v in together for u in masks[v])
            if mutual and together <= seeds:
                sums.append(frozenset(together))
            rest -= together
        return sums

    def fewest(self) -> int:
        return min(map(len, self.opened_sums()), default=len(self.graph))


def complete(sites: int) -> Sets:
    return {site: frozenset(range(sites)) - {site} for site in range(sites)}


def ring(sites: int, degree: int) -> Sets:
    reach = range(1, degree // 2 + 1)
    return {
        site: frozenset((site + sign * step) % sites for step in reach for sign in (1, -1))
        for site in range(sites)
    }


def usual_threshold(degree: int) -> int:
    return 2 * degree // 3 + 1


def opening(
    graph: Sets, threshold: int, corrupt: frozenset[int], kept: frozenset[int], away: Sets
) -> Attack | None:
    """The lists that open the sum of `kept`, if there are any once `away` is fixed.

    A maximum flow hands out the "dead" answers that each site has left.
    """
    missing = len(graph[0]) - threshold
    honest = sorted(graph.keys() - corrupt)
    doomed = sorted({u for v in kept for u in graph[v] - corrupt - kept - away.get(v, NOBODY)})
    source, sink = len(honest), len(honest) + len(doomed) + 1
    capacity = np.zeros((sink + 1, sink + 1), np.int32)
    for row, site in enumerate(honest):
        capacity[source, row] = missing - len(away.get(site, NOBODY))
        for column, owner in enumerate(doomed, start=source + 1):
            capacity[row, column] = owner in graph[site] - away.get(site, NOBODY)
    needed = [max(threshold - len(graph[owner] & corrupt), 0) for owner in doomed]
    capacity[source + 1 : sink, sink] = needed
    flow = maximum_flow(csr_array(capacity), source, sink)
    if flow.flow_value < sum(needed):
        return None
    answers = flow.flow.toarray()[: len(honest), source + 1 : sink] > 0
    dead = {
        site: frozenset(itertools.compress(doomed, answers[row])) for row, site in enumerate(honest)
    }
    return Attack(graph, threshold, corrupt, away, dead)


def strongest_on_complete(
    sites: int, threshold: int, corrupt: int, kept: int
) -> list[Attack | None]:
    """One try for each number of sites that are away from the first `kept` honest ones."""
    honest = range(corrupt, sites)
    inside = frozenset(honest[:kept])
    most_away = min(sites - 1 - threshold, len(honest) - kept)
    return [
        opening(
            complete(sites),
            threshold,
            frozenset(range(corrupt)),
            inside,
            {site: frozenset(honest[kept : kept + away]) for site in inside} if away else {},
        )
        for away in range(most_away + 1)
    ]


@given(st.data())
def test_the_opened_sums_are_all_that_the_masks_let_through(data):
    sites = data.draw(st.integers(3, 8))
    degree = data.draw(st.sampled_from([sites - 1, *range(2, sites - 1, 2)]))
    graph = complete(sites) if degree == sites - 1 else ring(sites, degree)
    corrupt = data.draw(st.frozensets(st.integers(0, sites - 1), max_size=sites - 1))
    some = st.frozensets(st.integers(0, sites - 1), max_size=sites // 2)
    away = {site: data.draw(some) - {site} for site in graph}
    dead = {site: data.draw(some) - {site} - away[site] for site in graph}
    attack = Attack(graph, data.draw(st.integers(1, degree)), corrupt, away, dead)
    if not attack.honest:
        return
    masks = attack.mask_matrix()
    sums = attack.opened_sums()
    for opened in sums:
        summed = np.array([site in opened for site in attack.honest], float)
        assert not (summed @ masks).any()
    assert len(sums) == len(attack.honest) - np.linalg.matrix_rank(masks)


@pytest.mark.parametrize(("sites", "corrupt"), [(5, 0), (5, 1), (6, 1), (6, 2), (7, 2), (7, 3)])
def test_no_lists_whatever_open_a_smaller_sum_than_the_bound(sites, corrupt):
    graph, threshold = complete(sites), usual_threshold(sites - 1)
    bad = frozenset(range(corrupt))
    honest = range(corrupt, sites)
    choices = []
    for site in honest:
        others = [frozenset(), *(frozenset({other}) for other in honest if other != site)]
        assert sites - 1 - threshold == 1  # nobody answers with two missing
        told = [(NOBODY, one) for one in others] + [(one, NOBODY) for one in others[1:]]
        # the honest sites are alike, so the first one's lists need no names
        choices.append(told if site > corrupt else [told[0], told[1], told[-1]])
    fewest = sites
    for lists in itertools.product(*choices):
        away = {site: told[0] for site, told in zip(honest, lists, strict=True)}
        dead = {site: told[1] for site, told in zip(honest, lists, strict=True)}
        fewest = min(fewest, Attack(graph, threshold, bad, away, dead).fewest())
    assert fewest == fewest_honest_summands(sites, sites - 1, threshold, corrupt)
    assert fewest > 1


@pytest.mark.parametrize("sites", range(3, 17))
def test_on_the_complete_graph_the_bound_is_what_the_strongest_lists_reach(sites):
    threshold = usual_threshold(sites - 1)
    for corrupt in range(2 * threshold - (sites - 1)):
        bound = fewest_honest_summands(sites, sites - 1, threshold, corrupt)
        assert not any(
            any(strongest_on_complete(sites, threshold, corrupt, kept)) for kept in range(1, bound)
        )
        attack = next(filter(None, strongest_on_complete(sites, threshold, corrupt, bound)))
        assert attack.is_answered()
        assert attack.fewest() == bound


def test_two_corrupt_sites_of_eight_open_one_honest_vector_where_one_does_not():
    assert fewest_honest_summands(8, 7, 5, corrupt=1) == 4
    assert fewest_honest_summands(8, 7, 5, corrupt=2) == 1
    attack = next(filter(None, strongest_on_complete(8, 5, corrupt=2, kept=1)))
    assert attack.is_answered()
    assert frozenset({2}) in attack.opened_sums()


@pytest.mark.parametrize("sites", range(4, 17))
def test_both_secrets_open_exactly_from_2t_minus_k_corrupt_sites_on(sites):
    degree, threshold = sites - 1, usual_threshold(sites - 1)
    victim = sites - 1

    def told_dead_by_some(corrupt: int, some: int) -> Attack:
        tellers = range(corrupt, corrupt + some)
        dead = {site: frozenset({victim}) for site in tellers}
        return Attack(complete(sites), threshold, frozenset(range(corrupt)), {}, dead)

    for corrupt in range(sites):
        attacks = [told_dead_by_some(corrupt, some) for some in range(sites - corrupt)]
        both = [attack for attack in attacks if set.intersection(*attack.opened_secrets())]
        assert bool(both) == (corrupt >= 2 * threshold - degree and corrupt < sites)
        if both:
            assert fewest_honest_summands(sites, degree, threshold, corrupt) == 0
            if degree > threshold:  # with nobody missing allowed, no site says "dead"
                assert both[0].is_answered()
            assert frozenset({victim}) in both[0].opened_sums()


def test_a_sparse_graph_at_two_thirds_would_open_one_honest_vector_beside_one_corrupt_site():
    # k = 4 and t = 3 satisfy every condition of Bell et al. for 17 sites of which one is corrupt
    assert fewest_honest_summands(17, 4, 3, corrupt=1) == 1
    attack = opening(ring(17, 4), 3, frozenset({1}), frozenset({0}), {0: frozenset({16})})
    assert attack is not None
    assert attack.is_answered()
    assert frozenset({0}) in attack.opened_sums()
    assert fewest_honest_summands(17, 8, 7, corrupt=1) > 1


@settings(max_examples=200)
@given(st.data())
def test_no_lists_on_a_planned_sparse_graph_open_a_smaller_sum_than_the_bound(data):
    sites = data.draw(st.sampled_from([17, 20, 24, 32]))
    share = data.draw(st.sampled_from([0.1, 0.2]))
    plan = plan_graph(sites, SecureAggregationTerms(largest_corrupt_share=share))
    graph = ring(sites, plan.degree)
    near = st.integers(1 - plan.degree, plan.degree - 1).map(lambda place: place % sites)
    corrupt = data.draw(st.frozensets(near, max_size=int(share * sites + 1e-9))) - {0}
    kept = data.draw(st.frozensets(near, max_size=plan.fewest_honest - 2)) - corrupt | {0}
    outside = {site: sorted(graph[site] - corrupt - kept) for site in kept}
    away = {}
    for site in kept:  # the ones farthest from site 0, the nearest, or any
        order = data.draw(st.sampled_from([1, -1, 0]))
        names = (
            sorted(outside[site], key=lambda other: order * min(other, sites - other))
            if order
            else data.draw(st.permutations(outside[site]))
        )
        away[site] = frozenset(names[: data.draw(st.integers(0, plan.degree - plan.threshold))])
    assert opening(graph, plan.threshold, corrupt, kept, away) is None


@settings(max_examples=300)
@given(st.data())
def test_one_survivor_list_for_all_opens_one_sum_or_none(data):
    sites = data.draw(st.integers(17, 40))
    plan = plan_graph(sites, TERMS)
    graph = ring(sites, plan.degree)
    places = st.integers(0, sites - 1)
    first = data.draw(places)
    run = frozenset((first + step) % sites for step in range(data.draw(st.integers(0, sites // 2))))
    corrupt = data.draw(st.frozensets(places, max_size=sites // 10))
    dead = (run | data.draw(st.frozensets(places, max_size=3))) - corrupt
    everyone = {site: dead - {site} for site in graph}
    attack = Attack(graph, plan.threshold, corrupt, {}, everyone, silent=dead)
    sums = attack.opened_sums()
    assert sums in ([], [frozenset(attack.honest) - dead])


def test_a_thin_ring_splits_under_one_list_so_the_test_above_can_fail():
    corrupt, dead = frozenset({0, 1, 10, 11}), NOBODY
    attack = Attack(ring(20, 4), 3, corrupt, {}, dict.fromkeys(range(20), dead))
    assert sorted(map(len, attack.opened_sums())) == [8, 8]


@pytest.mark.parametrize(
    ("sites", "corrupt_share", "dropout_share"),
    [(20, 0.1, 0.1), (64, 0.2, 0.1), (100, 0.1, 0.2), (400, 0.2, 0.1), (1000, 0.05, 0.05)],
)
def test_a_planned_graph_keeps_its_odds(sites, corrupt_share, dropout_share):
    terms = SecureAggregationTerms(
        largest_corrupt_share=corrupt_share, largest_dropout_share=dropout_share
    )
    plan = plan_graph(sites, terms)
    corrupt, dropped = int(corrupt_share * sites), int(dropout_share * sites)
    opened_twice = 2 * plan.threshold - plan.degree
    lost = plan.degree - plan.threshold
    # scipy's own tails, with the neighbours of one honest site drawn from the n - 1 others
    near = hypergeom(sites - 1, corrupt, plan.degree)
    assert sites * near.sf(opened_twice - 1) <= 2**-40
    assert sites * hypergeom(sites - 1, dropped, plan.degree).sf(lost) <= 2**-30
    assert comb(sites, 2) * hypergeom(sites, corrupt, plan.degree).sf(opened_twice - 1) <= 2**-40
    most = next(q for q in range(plan.degree) if sites * near.sf(q) <= 2**-40)
    assert fewest_honest_summands(sites, plan.degree, plan.threshold, most) >= plan.fewest_honest
    assert plan.fewest_honest >= 3
    assert plan.threshold > 2 * plan.degree / 3


@pytest.mark.parametrize(
    ("sites", "marked", "degree"), [(7, 2, 4), (8, 3, 4), (9, 4, 8), (9, 0, 4)]
)
def test_most_near_counts_every_placement(sites, marked, degree):
    placements = Counter(
        sum(place < degree for place in chosen)
        for chosen in itertools.combinations(range(sites), marked)
    )
    for bits in range(8):
        most = _most_near(sites, marked, degree, bits)
        odds = [
            comb(sites, 2)
            * Fraction(sum(v for k, v in placements.items() if k > m), placements.total())
            for m in range(degree + 1)
        ]
        assert most == next(m for m, odd in enumerate(odds) if odd <= Fraction(1, 2**bits))


@given(st.integers(2, 400), st.data())
def test_most_near_is_the_tail_of_the_binomial_coefficients(sites, data):
    marked = data.draw(st.integers(0, sites // 2))
    degree = data.draw(st.integers(1, min(sites - 1, 255)))
    bits = data.draw(st.sampled_from([0, 30, 40]))
    ways = [comb(marked, m) * comb(sites - marked, degree - m) for m in range(degree + 1)]
    most = _most_near(sites, marked, degree, bits)
    assert comb(sites, 2) * sum(ways[most + 1 :]) << bits <= comb(sites, degree)
    assert most == 0 or comb(sites, 2) * sum(ways[most:]) << bits > comb(sites, degree)


def test_small_cohorts_form_the_complete_graph():
    for sites in range(2, 33):
        plan = plan_graph(sites, TERMS)
        assert (plan.kind, plan.degree) == ("complete", sites - 1)
        assert plan.threshold == usual_threshold(sites - 1)
        assert plan.fewest_honest >= min(3, sites - sites // 10)
    assert plan_graph(33, TERMS).kind == "harary"
    # where no sparse graph keeps the terms, everyone again
    heavy = SecureAggregationTerms(largest_corrupt_share=0.25, largest_dropout_share=0.2)
    assert plan_graph(21, heavy).kind == "complete"


def test_more_corrupt_sites_raise_the_threshold():
    careful = SecureAggregationTerms(largest_corrupt_share=0.2)
    assert (plan_graph(11, TERMS).threshold, plan_graph(11, careful).threshold) == (7, 8)
    assert fewest_honest_summands(11, 10, 7, corrupt=2) == 2
    assert plan_graph(11, careful).fewest_honest == 6


@pytest.mark.parametrize(
    ("sites", "shares", "message"),
    [
        (1, (0.1, 0.1), "sum of one site is its vector"),
        (0, (0.1, 0.1), "needs two sites"),
        (1000, (0.1, 0.1), "no graph of 1000 sites bears 100 corrupt .* and 100 dropouts .* 256"),
        (4, (0.1, 0.3), r"bears 0 corrupt .* and 1 dropouts \(largest_dropout_share 0.3\)"),
        (9, (0.4, 0.25), "bears 3 corrupt .* and 2 dropouts .* or agree on smaller shares"),
    ],
)
def test_terms_that_no_graph_keeps(sites, shares, message):
    terms = SecureAggregationTerms(largest_corrupt_share=shares[0], largest_dropout_share=shares[1])
    with pytest.raises(ProtocolError, match=message):
        plan_graph(sites, terms)


def test_cohorts_between_others_may_have_no_graph():
    heavy = SecureAggregationTerms(largest_corrupt_share=0.2, largest_dropout_share=0.3)
    assert cohorts_without_graph(3, 40, heavy) == (4, 5, 7, 10, 11, 17, 20, 21, 27, 30, 37, 40)
    assert cohorts_without_graph(6, 7, heavy) == (7,)
    assert cohorts_without_graph(3, 64, TERMS) == ()


def table_rows(page: str, columns: int) -> list[list[str]]:
    text = (ADR / page).read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in text.split("\n") if "|" in row
    ]
    return [row for row in rows if len(row) == columns and row[0].isdecimal()]


def test_the_table_of_adr_8_is_what_the_code_says():
    rows = table_rows("0008-no-consistency-exchange.md", columns=6)
    assert len(rows) == 7
    for sites, *bounds, missing in [list(map(int, row)) for row in rows]:
        threshold = usual_threshold(sites - 1)
        assert missing == sites - 1 - threshold
        assert bounds == [
            fewest_honest_summands(sites, sites - 1, threshold, corrupt) for corrupt in range(4)
        ]


def test_the_table_of_adr_9_is_what_its_command_prints():
    page = "0009-degree-and-threshold.md"
    rows = table_rows(page, columns=4)
    assert [row[0] for row in rows] == ["17", "20", "32", "40", "50", "100", "500", "1000"]
    command = re.search(r'```\npython -c "(.*?)"\n```', (ADR / page).read_text(), re.DOTALL)
    printed = subprocess.run(
        [sys.executable, "-c", command[1]], capture_output=True, text=True, check=True
    )
    plans = [re.findall(r"\d+", line) for line in printed.stdout.splitlines()]
    assert plans == rows[:-1]
    for sites, degree in [(int(row[0]), int(row[1])) for row in rows[:-1]]:
        assert _most_near(sites, sites // 10, degree, 40) == sites // 10
    assert rows[-1][1] == "refused"
    assert plan_graph(40, SecureAggregationTerms(largest_dropout_share=0.2)).degree == 32
    assert fewest_honest_summands(100, 99, usual_threshold(99), corrupt=10) == 18
    twentieths = SecureAggregationTerms(largest_corrupt_share=0.05, largest_dropout_share=0.05)
    assert _most_near(1000, 50, plan_graph(1000, twentieths).degree, 40) == 35


@pytest.mark.parametrize(
    "terms",
    [
        {"ring_bits": 8},
        {"largest_weight": 0.0},
        {"largest_corrupt_share": 0.5},
        {"largest_corrupt_share": -0.1},
        {"largest_dropout_share": 1 / 3},
        {"largest_update": 0.0},
        {"largest_control": -1.0},
        {"largest_loss": float("inf")},
        {"threshold": 3},
    ],
)
def test_terms_that_nobody_can_agree_on(terms):
    with pytest.raises(ValidationError, match=next(iter(terms))):
        SecureAggregationTerms.model_validate(terms)


def test_survivor_lists_name_more_than_two_thirds():
    assert [fewest_survivors(sites) for sites in range(1, 11)] == [1, 2, 3, 3, 4, 5, 5, 6, 7, 7]
    for sites in range(1, 200):
        assert 3 * fewest_survivors(sites) > 2 * sites >= 3 * (fewest_survivors(sites) - 1)


@given(
    st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=30),
    st.binary(min_size=32, max_size=32),
    st.randoms(use_true_random=False),
)
def test_neighbours_are_mutual_and_equally_many(names, seed, rng):
    sites = sorted(names)
    degree = rng.choice([len(sites) - 1, *range(2, len(sites) - 1, 2)])
    graph = neighbours(sites, degree, seed)
    assert graph.keys() == names
    for site, near in graph.items():
        assert list(near) == sorted(set(near))
        assert len(near) == degree
        assert site not in near
        assert all(site in graph[other] for other in near)
    rng.shuffle(sites)
    assert neighbours(sites, degree, seed) == graph


def test_a_complete_graph_joins_everyone_to_everyone():
    assert neighbours(["c", "a", "b"], 2, bytes(32)) == {
        "a": ("b", "c"),
        "b": ("a", "c"),
        "c": ("a", "b"),
    }
    assert neighbours(["b", "a"], 1, bytes(32)) == {"a": ("b",), "b": ("a",)}


def test_the_graph_is_published_and_stays():
    # Peers of different versions draw it: a change here needs a new protocol version.
    sites = [f"site-{number}" for number in range(7)]
    graph = neighbours(sites, 2, bytes(range(32)))
    walk, place = ["site-0"], "site-0"
    while len(walk) < 7:
        place = next(near for near in graph[place] if near not in walk)
        walk.append(place)
    assert [int(name[-1]) for name in walk] == [0, 1, 6, 4, 5, 3, 2]


def test_all_rings_are_equally_likely():
    sites = ["a", "b", "c", "d", "e"]
    rings = Counter(
        tuple(sorted(neighbours(sites, 2, number.to_bytes(32, "big")).items()))
        for number in range(12_000)
    )
    assert len(rings) == 12  # 4! / 2
    statistic = sum((count - 1000) ** 2 / 1000 for count in rings.values())
    assert statistic < chi2(11).isf(1e-6)


@pytest.mark.parametrize(
    ("sites", "degree", "message"),
    [
        (["a", "b", "a"], 2, "named twice"),
        (["a", "b", "c", "d", "e"], 3, "5 sites cannot have 3 neighbours each; take 4 or"),
        (["a", "b", "c"], 4, "3 sites cannot have 4"),
        (["a", "b", "c"], 0, "3 sites cannot have 0"),
        (["a", "b", "c"], -2, "3 sites cannot have -2"),
    ],
)
def test_graphs_that_do_not_exist(sites, degree, message):
    with pytest.raises(ProtocolError, match=message):
        neighbours(sites, degree, bytes(32))
