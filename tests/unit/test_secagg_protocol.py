"""Both halves of secure aggregation against each other: the exact sum or a typed failure."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_sites import TERMS, Federation, Site, carried, names

from fedhash.errors import AggregationError, CohortError, MessageError
from fedhash.rounds.aggregation import Aggregate, Stage
from fedhash.rounds.engine import Answer, SiteFailure
from fedhash.rounds.messages import Message
from fedhash.secagg import graph
from fedhash.secagg.graph import fewest_survivors, plan_graph
from fedhash.secagg.terms import SecureAggregationTerms

STAGES = ("advertise", "share", "mask", "unmask")
LATE = SiteFailure("late", "no answer in time")
NOISE = SiteFailure("invalid_message", "bytes that are no message")


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


# What happens to the request to one site in one stage, and what to its answer.
REQUEST_FATES = (
    "request lost",
    "request garbled",
    "request repeated",  # the site sees it twice
    "request replayed",  # the same stage's request of an earlier round takes its place
    "request swapped",  # that of another stage does
)
REPLY_FATES = ("lost", "refused", "garbled", "replayed", "doubled", "foreign")


class Network:
    """Carries messages, and treats some of them badly."""

    def __init__(self, run: Run) -> None:
        self.federation = Federation.of(run.count, run.terms, rounds=run.rounds)
        self.run = run
        self.round_number = 0
        self.requests: dict[tuple[str, str], list[Message]] = defaultdict(list)
        self.replies: dict[tuple[str, str], Message] = {}

    def __call__(self, stage: Stage) -> list[Answer]:
        answers = []
        for site, request in stage.requests.items():
            fate = self.run.fates.get((self.round_number, stage.name, site), "")
            delivered = self._delivered(stage.name, site, request, fate)
            replies = [carried(self.federation.sites[site].handle(each)) for each in delivered]
            if not replies or fate == "lost":
                answers.append(Answer(site, LATE))
                continue
            reply = replies[self.run.order % len(replies)]
            earlier = self.replies.get((stage.name, site), reply)
            self.replies[stage.name, site] = carried(reply)
            if fate == "refused":
                reply = Message("refusal", {"reason": "busy", "detail": "later"}, {})
            elif fate == "garbled":
                reply = _garbled(reply, self.run.order) or NOISE
            elif fate == "replayed":
                reply = earlier
            elif fate == "foreign":
                reply = self.replies.get((stage.name, next(iter(stage.requests))), reply)
            answers += [Answer(site, reply)] * (2 if fate == "doubled" else 1)
        rotated = self.run.order % max(len(answers), 1)
        return answers[rotated:] + answers[:rotated]

    def _delivered(self, stage: str, site: str, request: Message, fate: str) -> list[Message]:
        """What reaches the site in place of the request."""
        sent = self.requests[stage, site]
        sent.append(request)
        arriving: Message | None = request
        if fate == "request lost":
            return []
        if fate == "request garbled":
            arriving = _garbled(request, self.run.order)
        elif fate == "request replayed":
            arriving = sent[-2:][0]  # this one, if there was none before
        elif fate == "request swapped":
            others = [
                each[-1] for (of, to), each in self.requests.items() if to == site and of != stage
            ]
            arriving = others[self.run.order % len(others)] if others else request
        copies = 2 if fate == "request repeated" else 1
        return [carried(arriving) for _ in range(copies) if arriving]


def _garbled(message: Message, seed: int) -> Message | None:
    """One flipped bit: of one of the arrays, or anywhere; None if no message is left."""
    seed, anywhere = divmod(seed, 2)
    arrays = [name for name, array in sorted(message.arrays.items()) if array.size]
    if arrays and not anywhere:
        message = carried(message)
        chosen = message.arrays[arrays[seed % len(arrays)]].view(np.uint8).reshape(-1)
        place, bit = seed % chosen.size, seed // chosen.size % 8
        chosen[place] ^= 1 << bit
        return message
    content = bytearray(message.encode())
    content[seed % len(content)] ^= 1 << (seed // len(content) % 8)
    try:
        return Message.decode(bytes(content), max_bytes=len(content))
    except MessageError:
        return None


@dataclass(frozen=True)
class Run:
    """A generated run.

    Attributes:
        count: Sites of the consortium.
        sparse: Whether small cohorts form a ring, too.
        terms: Ring and clips.
        rounds: How many.
        absent: Round and site that cannot be reached in it.
        fates: Round, stage and site to what happens there.
        order: Turns the answers, and chooses bits and copies.
    """

    count: int
    sparse: bool
    terms: SecureAggregationTerms
    rounds: int
    absent: frozenset[tuple[int, str]]
    fates: dict[tuple[int, str, str], str]
    order: int

    def cohort(self, number: int) -> tuple[str, ...]:
        """Who is asked in a round: all if too few could be reached."""
        there = tuple(each for each in names(self.count) if (number, each) not in self.absent)
        return there if len(there) >= 3 else names(self.count)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    count = draw(st.integers(3, 40) if draw(st.integers(0, 13)) == 0 else st.integers(3, 9))
    rounds = draw(st.sampled_from([2, 2, 2, 3]))
    one_of_them = st.sampled_from(names(count))
    number = st.integers(1, rounds)
    bad = st.tuples(number, st.sampled_from(STAGES), one_of_them)
    most = max(1, count // 3)
    fates = st.sampled_from(REQUEST_FATES) | st.sampled_from(REPLY_FATES)
    absent = st.frozensets(st.tuples(number, one_of_them), max_size=most)
    return Run(
        count,
        sparse=draw(st.booleans()),
        terms=TERMS.model_copy(
            update={
                "ring_bits": draw(st.sampled_from([16, 20, 24, 32])),
                "largest_update": draw(st.sampled_from([5.0, 1000.0])),  # values go up to 10
                "largest_weight": draw(st.sampled_from([3.0, 8.0])),  # weights go up to 8
            }
        ),
        rounds=rounds,
        absent=draw(absent) if draw(st.booleans()) else frozenset(),
        fates=draw(st.dictionaries(bad, fates, max_size=most)),
        order=draw(st.integers(0, 1_000_000)),
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(4))  # so that several cores share the runs
@settings(max_examples=int(os.environ.get("FEDHASH_PROTOCOL_RUNS", "100")) // 4)
@given(run=runs())
def test_the_exact_sum_or_a_typed_failure(part: int, run: Run) -> None:
    with graph_of(run.sparse):
        play(run)


@contextmanager
def graph_of(sparse: bool) -> Iterator[None]:
    """The ring for small cohorts, too, if `sparse`; the agreement's terms are kept."""
    with patch.object(graph, "_COMPLETE_UP_TO", 3 if sparse else 40):
        plan_graph.cache_clear()
        yield
    plan_graph.cache_clear()


def play(run: Run) -> None:
    network = Network(run)
    for number in range(1, run.rounds + 1):
        network.round_number = number
        cohort = run.cohort(number)
        try:
            aggregate = network.federation.round(number, network, cohort)
        except (CohortError, AggregationError):
            # a round's keys and shares may come from the round before, and nothing else does
            assert any(number - 1 <= where[0] <= number for where in run.fates), (
                "an untroubled round must succeed"
            )
            continue
        who = [site for site in cohort if site not in aggregate.left_out]
        check_sum(network.federation, aggregate, number, who)
        assert len(who) >= fewest_survivors(int(aggregate.facts["sites"]))


@pytest.mark.parametrize(("sparse", "degree"), [(False, 19), (True, 12)])
def test_sites_that_leave_at_every_stage(sparse: bool, degree: int) -> None:
    """Of twenty sites with keys two may be lost: one before it shared, one after."""
    federation = Federation.of(21)
    lost = {"advertise": "site-00", "share": "site-01", "mask": "site-02", "unmask": ""}

    def leaving(stage: Stage) -> list[Answer]:
        return [
            Answer(answer.site, LATE) if answer.site == lost[stage.name] else answer
            for answer in federation.ask(stage)
        ]

    with graph_of(sparse):
        aggregate = federation.round(1, leaving)
    assert aggregate.facts["degree"] == degree
    assert sorted(aggregate.left_out) == list(names(3))
    check_sum(federation, aggregate, 1, list(names(21)[3:]))


def test_the_generated_runs_hold_sparse_graphs() -> None:
    with graph_of(sparse=True):
        assert [plan_graph(count, TERMS).kind for count in (12, 17, 40)] == ["harary"] * 3
    assert plan_graph(40, TERMS).kind == "harary"
    assert plan_graph(17, TERMS).kind == "complete"
