"""Both halves of secure aggregation against each other: the exact sum or a typed failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_sites import TERMS, Federation, Site, carried, names

from fedhash.errors import AggregationError, CohortError
from fedhash.rounds.aggregation import Aggregate, Stage
from fedhash.rounds.engine import Answer, SiteFailure
from fedhash.rounds.messages import Message
from fedhash.secagg import graph
from fedhash.secagg.graph import fewest_survivors, plan_graph

STAGES = ("advertise", "share", "mask", "unmask")
LATE = SiteFailure("late", "no answer in time")


def check_sum(federation: Federation, aggregate: Aggregate, number: int, who: list[str]) -> None:
    expected = federation.expected(who, number)
    np.testing.assert_array_equal(aggregate.total, expected.vector)
    assert aggregate.weight == expected.weight


def test_three_rounds_take_two_exchanges_each_after_the_first_set_up() -> None:
    federation = Federation.of(4)
    for number in (1, 2, 3):
        aggregate = federation.round(number)
        check_sum(federation, aggregate, number, list(names(4)))
        assert aggregate.left_out == aggregate.notes == {}
    assert federation.stages == [*STAGES, "mask", "unmask", "mask", "unmask"]
    assert aggregate.facts["set_up"] == "with the round before"


def test_the_mean_is_that_of_plain_aggregation_within_the_rounding() -> None:
    federation = Federation.of(5)
    aggregate = federation.round(1)
    chosen = [site.contribution for site in federation.sites.values()]
    plain = sum(each.weight * each.vector.astype(np.float64) for each in chosen)
    largest = (2**31 - 1) // 5
    step = 1000.0 / largest * 8.0  # clip / Q x largest weight: one integer of one site
    assert np.abs(aggregate.total - plain).max() <= 5 * step
    assert aggregate.weight == sum(each.weight for each in chosen)


def test_a_vector_in_flight_shows_nothing_of_itself() -> None:
    """The same vectors in two runs: no byte more in common than chance gives."""
    seen = []
    for _ in range(2):
        federation = Federation.of(3)
        masked: dict[str, bytes] = {}

        def watch(stage: Stage, of: Federation = federation, into: dict = masked) -> list[Answer]:
            answers = of.ask(stage)
            for answer in answers:
                if isinstance(answer.outcome, Message) and answer.outcome.kind == "masked":
                    into[answer.site] = answer.outcome.arrays["masked"].tobytes()
            return answers

        federation.round(1, watch)
        seen.append(b"".join(masked[site] for site in names(3)))
    same = np.mean(np.frombuffer(seen[0], np.uint8) == np.frombuffer(seen[1], np.uint8))
    assert len(seen[0]) == len(seen[1]) > 100
    assert same < 0.1  # chance is 1/256


def test_a_joiner_takes_exchanges_of_its_own_and_a_leaver_too() -> None:
    federation = Federation.of(5)
    federation.round(1, cohort=names(4))
    joined = federation.round(2, cohort=names(5))
    check_sum(federation, joined, 2, list(names(5)))
    left = federation.round(3, cohort=names(5)[1:])
    check_sum(federation, left, 3, list(names(5)[1:]))
    assert federation.stages == [*STAGES] * 3
    assert left.facts["set_up"] == "exchanges of its own"


def test_a_site_that_misses_a_round_comes_back() -> None:
    federation = Federation.of(5)

    def without_the_first(stage: Stage) -> list[Answer]:
        return [
            Answer(answer.site, LATE) if answer.site == "site-00" else answer
            for answer in federation.ask(stage)
        ]

    federation.round(1)
    missed = federation.round(2, without_the_first)
    check_sum(federation, missed, 2, list(names(5)[1:]))
    assert missed.left_out == {"site-00": "mask: late: no answer in time"}
    check_sum(federation, federation.round(3), 3, list(names(5)))


def test_below_the_threshold_nothing_is_asked_for_that_would_open_anything() -> None:
    federation = Federation.of(5)

    def two_drop(stage: Stage) -> list[Answer]:
        lost = ("site-00", "site-01") if stage.name == "mask" else ()
        return [
            Answer(answer.site, LATE) if answer.site in lost else answer
            for answer in federation.ask(stage)
        ]

    with pytest.raises(CohortError, match=r"3 of 5 sites sent a masked vector, at least 4"):
        federation.round(1, two_drop)
    assert federation.stages == ["advertise", "share", "mask"]
    check_sum(federation, federation.round(2), 2, list(names(5)))


def test_a_damaged_share_is_left_out_and_the_sum_stays_right() -> None:
    federation = Federation.of(5)

    def damaging(stage: Stage) -> Iterator[Answer]:
        for answer in federation.ask(stage):
            if stage.name == "unmask" and answer.site == "site-02":
                assert isinstance(answer.outcome, Message)
                answer.outcome.arrays["shares"][0, 0] ^= 1
            yield answer

    aggregate = federation.round(1, damaging)
    check_sum(federation, aggregate, 1, list(names(5)))
    assert "the shares of site-00 are not those committed to" in aggregate.notes["site-02"]


def test_too_few_shares_fail_the_round_and_the_next_starts_clean() -> None:
    federation = Federation.of(5)

    def silent(stage: Stage) -> list[Answer]:
        lost = ("site-00", "site-01", "site-02") if stage.name == "unmask" else ()
        return [
            Answer(answer.site, LATE) if answer.site in lost else answer
            for answer in federation.ask(stage)
        ]

    with pytest.raises(AggregationError, match="shares of 'site-00' were opened, 3 are needed"):
        federation.round(1, silent)
    check_sum(federation, federation.round(2), 2, list(names(5)))


def test_an_owner_that_shares_another_secret_is_found() -> None:
    federation = Federation.of(4)

    def lying(stage: Stage) -> Iterator[Answer]:
        for answer in federation.ask(stage):
            if stage.name == "share" and answer.site == "site-03":
                assert isinstance(answer.outcome, Message)
                answer.outcome.arrays["seed_commitment"][:] = 0
            yield answer

    with pytest.raises(AggregationError, match="'site-03' shared another secret than it published"):
        federation.round(1, lying)


def test_a_restarted_site_drops_out_and_its_masks_are_recovered() -> None:
    federation = Federation.of(5)
    fresh = Federation.of(5).sites["site-04"]

    def restarting(stage: Stage) -> list[Answer]:
        if stage.name == "mask":
            federation.sites["site-04"] = Site(
                "site-04", fresh.aggregation, federation.sites["site-04"].contribution
            )
        return federation.ask(stage)

    aggregate = federation.round(1, restarting)
    check_sum(federation, aggregate, 1, list(names(4)))
    assert aggregate.left_out["site-04"].startswith("mask: refused: no_session")


# What happens to the answer of one site in one stage.
FATES = ("lost", "refused", "garbled", "replayed", "doubled", "foreign")


class Network:
    """Carries messages, and treats some of them badly."""

    def __init__(
        self, federation: Federation, fates: dict[tuple[int, str, str], str], order: int
    ) -> None:
        self.federation = federation
        self.fates = fates
        self.order = order
        self.round_number = 0
        self.replies: dict[tuple[str, str], Message] = {}

    def __call__(self, stage: Stage) -> list[Answer]:
        answers = []
        for site, request in stage.requests.items():
            fate = self.fates.get((self.round_number, stage.name, site))
            reply = carried(self.federation.sites[site].handle(carried(request)))
            earlier = self.replies.get((stage.name, site), reply)
            self.replies[stage.name, site] = carried(reply)
            if fate == "lost":
                answers.append(Answer(site, LATE))
                continue
            if fate == "refused":
                reply = Message("refusal", {"reason": "busy", "detail": "later"}, {})
            elif fate == "garbled":
                reply = _garbled(reply, self.order)
            elif fate == "replayed":
                reply = earlier
            elif fate == "foreign":
                reply = self.replies.get((stage.name, next(iter(stage.requests))), reply)
            answers += [Answer(site, reply)] * (2 if fate == "doubled" else 1)
        rotated = self.order % max(len(answers), 1)
        return answers[rotated:] + answers[:rotated]


def _garbled(message: Message, seed: int) -> Message:
    """One flipped bit in one of the arrays."""
    message = carried(message)
    arrays = [array for _, array in sorted(message.arrays.items()) if array.size]
    if arrays:
        chosen = arrays[seed % len(arrays)].reshape(-1)
        chosen[seed % chosen.size] ^= 1 << (seed % 8)
    return message


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, bool, dict, int]:
    count = draw(st.integers(3, 40) if draw(st.integers(0, 9)) == 0 else st.integers(3, 9))
    sparse = draw(st.booleans())
    bad = st.tuples(st.integers(1, 2), st.sampled_from(STAGES), st.sampled_from(names(count)))
    most = max(1, count // 3)
    fates = draw(st.dictionaries(bad, st.sampled_from(FATES), max_size=most))
    return count, sparse, fates, draw(st.integers(0, 10_000))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(4))  # so that several cores share the runs
@settings(max_examples=int(os.environ.get("FEDHASH_PROTOCOL_RUNS", "500")) // 4)
@given(run=runs())
def test_the_exact_sum_or_a_typed_failure(
    part: int,
    run: tuple[int, bool, dict, int],
) -> None:
    count, sparse, fates, order = run
    with graph_of(sparse):
        play(count, fates, order)


@contextmanager
def graph_of(sparse: bool) -> Iterator[None]:
    """The ring for small cohorts, too, if `sparse`; the agreement's terms are kept."""
    with patch.object(graph, "_COMPLETE_UP_TO", 3 if sparse else 40):
        plan_graph.cache_clear()
        yield
    plan_graph.cache_clear()


def play(count: int, fates: dict[tuple[int, str, str], str], order: int) -> None:
    federation = Federation.of(count, rounds=2)
    network = Network(federation, fates, order)
    for number in (1, 2):
        network.round_number = number
        try:
            aggregate = federation.round(number, network)
        except (CohortError, AggregationError):
            assert any(where[0] <= number for where in fates), "an untroubled round must succeed"
            continue
        who = [site for site in names(count) if site not in aggregate.left_out]
        check_sum(federation, aggregate, number, who)
        assert len(who) >= fewest_survivors(int(aggregate.facts["sites"]))


def test_the_generated_runs_hold_sparse_graphs() -> None:
    with graph_of(sparse=True):
        assert [plan_graph(count, TERMS).kind for count in (12, 17, 40)] == ["harary"] * 3
    assert plan_graph(40, TERMS).kind == "harary"
    assert plan_graph(17, TERMS).kind == "complete"
