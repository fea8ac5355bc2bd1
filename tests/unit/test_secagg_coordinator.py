"""The coordinator's checks one by one: sites whose answers, or the requests to them, are wrong."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from secure_sites import (
    MODEL_SIZE,
    TERMS,
    Federation,
    carried,
    consortium,
    drive,
    names,
    plan_of,
    train_request,
    with_header,
)
from small_federation import (
    SECURE_AGREEMENT,
    SITES,
    PullTrainer,
    new_coordinator,
    round_settings,
    secure_half,
)

from fedhash.errors import AggregationError, CohortError, ProtocolError
from fedhash.rounds.aggregation import Answers, Stage, SumRecord
from fedhash.rounds.engine import Answer, SiteFailure
from fedhash.rounds.messages import Message
from fedhash.rounds.site import SiteAgent
from fedhash.rounds.site_state import MemorySiteState
from fedhash.secagg.encoding import round_encoding
from fedhash.secagg.roster import RoundKeys
from fedhash.secagg.terms import SecureAggregationTerms

LATE = SiteFailure("late", "no answer in time")
STAGES = ["advertise", "share", "mask", "unmask"]
Change = Callable[[Message], Message]


def all_but(site: str, count: int = 5) -> list[str]:
    return [each for each in names(count) if each != site]


def check_sum(federation: Federation, total: np.ndarray, who: list[str], number: int = 1) -> None:
    np.testing.assert_array_equal(total, federation.expected(who, number).vector)


def altering(
    federation: Federation, where: dict[tuple[str, str], Change]
) -> Callable[[Stage], list[Answer]]:
    """Delivers all messages, and changes the replies of (stage, site)."""

    def deliver(stage: Stage) -> list[Answer]:
        answers = []
        for answer in federation.ask(stage):
            change = where.get((stage.name, answer.site))
            if change is None:
                answers.append(answer)
            else:
                assert isinstance(answer.outcome, Message)
                answers.append(Answer(answer.site, change(answer.outcome)))
        return answers

    return deliver


def dropping(federation: Federation, stage_name: str, *lost: str) -> Callable[[Stage], Answers]:
    """Delivers all messages but the answers of the `lost` sites in one stage."""

    def deliver(stage: Stage) -> list[Answer]:
        return [
            Answer(answer.site, LATE)
            if stage.name == stage_name and answer.site in lost
            else answer
            for answer in federation.ask(stage)
        ]

    return deliver


def flipped(name: str) -> Change:
    """One bit of an array changes."""

    def change(message: Message) -> Message:
        message.arrays[name].view(np.uint8).reshape(-1)[0] ^= 1
        return message

    return change


# Requests that a site did not get as they were sent


@pytest.mark.parametrize("ring_bits", [16, 24, 32])
@pytest.mark.parametrize(
    "damage",
    [
        flipped("model"),
        flipped("sealed"),
        lambda m: with_header(m, train={**m.header["train"], "counted": {"site-00": 1}}),
        lambda m: with_header(m, train={**m.header["train"], "cohort": ["site-00"]}),
        lambda m: replace(
            with_header(m, sharers=m.header["sharers"][:4]),
            arrays={**m.arrays, "sealed": m.arrays["sealed"][:4]},
        ),
    ],
)
def test_a_vector_made_for_another_request_is_left_out(damage: Change, ring_bits: int) -> None:
    """Its masks cancel with nobody's: added, it would turn the sum into noise."""
    federation = Federation.of(5, TERMS.model_copy(update={"ring_bits": ring_bits}))

    def deliver(stage: Stage) -> list[Answer]:
        if stage.name == "mask":
            changed = damage(carried(stage.requests["site-02"]))
            stage = Stage(stage.name, {**stage.requests, "site-02": changed})
        return federation.ask(stage)

    aggregate = federation.round(1, deliver)
    assert federation.sites["site-02"].trained == 1
    assert "the masked vector or the request for it was damaged" in aggregate.left_out["site-02"]
    check_sum(federation, aggregate.total, all_but("site-02"))


def test_the_rings_last_words_alone_would_let_noise_pass() -> None:
    """Why the fingerprint is bound to the request: at 16 bits one random ring vector in five."""
    agreement = consortium(5)[0]
    terms = SecureAggregationTerms(ring_bits=16)
    ring = round_encoding(plan_of(agreement), {"update": MODEL_SIZE}, terms)
    rng, passed = np.random.default_rng(0), 0
    for _ in range(1000):
        try:
            ring.decode(rng.integers(0, 1 << 16, ring.length, np.uint16))
        except ProtocolError:
            continue
        passed += 1
    assert 150 < passed < 250


# Replies


@pytest.mark.parametrize(
    "change", [{"run_id": "run-2"}, {"round_number": 2}, {"session": "0" * 64}], ids=str
)
@pytest.mark.parametrize("stage", STAGES)
def test_a_reply_of_another_run_round_or_session(stage: str, change: dict[str, object]) -> None:
    if stage == "advertise" and "session" in change:
        change = {"round_number": 3}  # there is no session yet
    federation = Federation.of(5)
    deliver = altering(federation, {(stage, "site-02"): lambda m: with_header(m, **change)})
    aggregate = federation.round(1, deliver)
    noted = aggregate.notes if stage == "unmask" else aggregate.left_out
    assert noted["site-02"] == (
        f"{stage}: nonsense: the reply belongs to another run, round or session"
    )
    check_sum(
        federation, aggregate.total, list(names(5)) if stage == "unmask" else all_but("site-02")
    )


@pytest.mark.parametrize("array", ["masked", "fingerprint"])
def test_a_vector_that_was_damaged_on_its_way_back(array: str) -> None:
    federation = Federation.of(5)
    aggregate = federation.round(1, altering(federation, {("mask", "site-02"): flipped(array)}))
    assert "damaged on its way" in aggregate.left_out["site-02"]
    check_sum(federation, aggregate.total, all_but("site-02"))


def test_keys_that_their_site_did_not_sign() -> None:
    federation = Federation.of(5)
    deliver = altering(federation, {("advertise", "site-02"): flipped("signature")})
    aggregate = federation.round(1, deliver)
    assert aggregate.left_out["site-02"].startswith("advertise: the signature is not that of")
    check_sum(federation, aggregate.total, all_but("site-02"))


@pytest.mark.parametrize("half", [slice(0, 32), slice(32, 64), slice(0, 64)])
def test_a_key_of_low_order_leaves_out_its_site_alone(half: slice) -> None:
    federation = Federation.of(5)
    identity = federation.sites["site-03"].aggregation._identity

    def low_order(message: Message) -> Message:
        keys = message.arrays["keys"]
        keys[half] = 0
        text = RoundKeys.signed_text("run-1", 1, "site-03", keys.tobytes())
        message.arrays["signature"] = np.frombuffer(identity.sign(text), np.uint8)
        return message

    aggregate = federation.round(1, altering(federation, {("advertise", "site-03"): low_order}))
    assert aggregate.left_out == {"site-03": "advertise: a site's round key is of low order"}
    check_sum(federation, aggregate.total, all_but("site-03"))


def test_a_site_without_an_identity_is_left_out() -> None:
    federation = Federation.of(4)

    def with_a_stranger(stage: Stage) -> list[Answer]:
        known = {site: m for site, m in stage.requests.items() if site != "zz-new"}
        answers = federation.ask(Stage(stage.name, known))
        return answers + [Answer("zz-new", answers[0].outcome)] * ("zz-new" in stage.requests)

    aggregate = federation.round(1, with_a_stranger, cohort=(*names(4), "zz-new"))
    assert aggregate.left_out == {
        "zz-new": "advertise: nonsense: 'zz-new' has no identity in the agreement"
    }
    check_sum(federation, aggregate.total, list(names(4)))


def test_only_the_first_answer_of_an_asked_site_counts() -> None:
    federation = Federation.of(4)

    def twice_and_more(stage: Stage) -> list[Answer]:
        answers = federation.ask(stage)
        again = [Answer(answer.site, answers[0].outcome) for answer in answers]
        return [Answer("zz-new", answers[0].outcome), *answers, *answers, *again]

    aggregate = federation.round(1, twice_and_more)
    assert aggregate.left_out == aggregate.notes == {}
    check_sum(federation, aggregate.total, list(names(4)))


@pytest.mark.parametrize("stage", STAGES)
def test_an_asked_site_without_any_answer(stage: str) -> None:
    federation = Federation.of(5)

    def forgetting(asked: Stage) -> list[Answer]:
        lost = "site-02" if asked.name == stage else ""
        return [answer for answer in federation.ask(asked) if answer.site != lost]

    aggregate = federation.round(1, forgetting)
    noted = aggregate.notes if stage == "unmask" else aggregate.left_out
    assert noted == {"site-02": f"{stage}: no_answer"}
    check_sum(
        federation, aggregate.total, list(names(5)) if stage == "unmask" else all_but("site-02")
    )


def test_answers_in_any_order() -> None:
    federation = Federation.of(5)
    aggregate = federation.round(1, lambda stage: federation.ask(stage)[::-1])
    assert aggregate.left_out == aggregate.notes == {}
    check_sum(federation, aggregate.total, list(names(5)))


# Too few


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("advertise", "4 sites sent round keys, 5 are needed"),
        ("share", "4 of 5 sites shared, at least 5 must"),
        ("mask", "4 of 5 sites sent a masked vector, at least 5 must"),
    ],
)
def test_the_agreed_cohort_is_kept_in_every_stage(stage: str, said: str) -> None:
    federation = Federation.of(5, smallest_cohort=5)
    with pytest.raises(CohortError, match=said):
        federation.round(1, dropping(federation, stage, "site-02"))
    assert federation.stages == STAGES[: STAGES.index(stage) + 1]
    assert federation.record.left_out == {"site-02": f"{stage}: late: no answer in time"}


def test_two_thirds_must_share() -> None:
    federation = Federation.of(5)
    with pytest.raises(CohortError, match="3 of 5 sites shared, at least 4 must"):
        federation.round(1, dropping(federation, "share", "site-01", "site-02"))
    assert federation.stages == ["advertise", "share"]


# Opened shares


def with_owners(more: tuple[str, ...], message: Message) -> Message:
    """The opened shares, and some that are said to be of other owners."""
    shares = message.arrays["shares"]
    arrays = {**message.arrays, "shares": np.concatenate([shares, shares[: len(more)]])}
    return replace(with_header(message, owners=[*message.header["owners"], *more]), arrays=arrays)


def test_shares_of_foreign_owners_leave_the_good_ones_of_the_reply() -> None:
    """Three shares open a secret of five sites; site-00 is silent, so all others are needed."""
    federation = Federation.of(5)

    foreign = partial(with_owners, ("site-02", "zz-new"))
    changed = altering(federation, {("unmask", "site-02"): foreign})

    def deliver(stage: Stage) -> list[Answer]:
        lost = ("site-00",) if stage.name == "unmask" else ()
        return [Answer(a.site, LATE) if a.site in lost else a for a in changed(stage)]

    aggregate = federation.round(1, deliver)
    assert aggregate.notes["site-02"] == (
        "unmask: nonsense: the shares of site-02, zz-new are not those committed to"
    )
    check_sum(federation, aggregate.total, list(names(5)))


def test_shares_of_an_owner_that_did_not_share() -> None:
    federation = Federation.of(5)
    changed = altering(federation, {("unmask", "site-01"): partial(with_owners, ("site-04",))})

    def deliver(stage: Stage) -> list[Answer]:
        lost = ("site-04",) if stage.name == "share" else ()
        return [Answer(a.site, LATE) if a.site in lost else a for a in changed(stage)]

    aggregate = federation.round(1, deliver)
    assert "the shares of site-04 are not those committed to" in aggregate.notes["site-01"]
    check_sum(federation, aggregate.total, list(names(5)[:4]))


def test_a_dead_site_that_shared_another_key_than_it_published() -> None:
    federation = Federation.of(5)

    def deliver(stage: Stage) -> Answers:
        if stage.name == "share":
            secrets = federation.sites["site-03"].aggregation._advertised["run-1", 1]
            secrets._masking_key = X25519PrivateKey.generate()
        return dropping(federation, "mask", "site-03")(stage)

    with pytest.raises(AggregationError, match="'site-03' shared another secret than it published"):
        federation.round(1, deliver)


# What prepares the next round


def test_a_bad_key_for_the_next_round_costs_its_exchanges_alone() -> None:
    federation = Federation.of(5)
    first = federation.round(1, altering(federation, {("mask", "site-02"): flipped("signature")}))
    assert list(first.notes) == ["site-02"]
    assert first.notes["site-02"].startswith("keys of the next round: the signature is not that")
    check_sum(federation, first.total, list(names(5)))
    check_sum(federation, federation.round(2).total, list(names(5)), 2)
    assert federation.stages == [*STAGES, *STAGES]


def test_a_site_that_refuses_the_next_roster_is_noted() -> None:
    federation = Federation.of(5)

    def deliver(stage: Stage) -> list[Answer]:
        if stage.name == "unmask":
            changed = flipped("roster_signatures")(carried(stage.requests["site-02"]))
            stage = Stage(stage.name, {**stage.requests, "site-02": changed})
        return federation.ask(stage)

    first = federation.round(1, deliver)
    assert first.notes["site-02"].startswith("refuses the next round's keys: bad_signature")
    check_sum(federation, first.total, list(names(5)))
    check_sum(federation, federation.round(2).total, list(names(5)), 2)
    assert federation.stages == [*STAGES, *STAGES]


def test_a_prepared_round_is_used_once() -> None:
    """It fails, is asked for again, and takes keys of its own."""
    federation = Federation.of(5)
    federation.round(1)
    with pytest.raises(CohortError, match="3 of 5 sites sent a masked vector"):
        federation.round(2, dropping(federation, "mask", "site-01", "site-02"))
    check_sum(federation, federation.round(2).total, list(names(5)), 2)
    assert federation.stages == [*STAGES, "mask", *STAGES]


def test_what_was_prepared_for_a_round_serves_no_other_round_or_run() -> None:
    federation = Federation.of(4)
    federation.round(1)
    check_sum(federation, federation.round(3).total, list(names(4)), 3)
    federation = Federation.of(4)
    federation.round(1)
    request = train_request(federation.agreement, 2)
    other = replace(request, plan=request.plan.model_copy(update={"run_id": "run-2"}))
    drive(federation.coordinator.aggregate(other, SumRecord()), federation._noting(federation.ask))
    assert federation.stages == [*STAGES, *STAGES]


def test_the_last_round_asks_for_no_keys() -> None:
    federation = Federation.of(4, rounds=1)
    seen: list[Stage] = []
    federation.round(1, lambda stage: seen.append(stage) or federation.ask(stage))
    assert seen[-1].requests["site-00"].header["following"] is None


def test_a_masked_vector_is_gone_before_the_next_one_arrives() -> None:
    """Neither half of the coordinator keeps one, so its memory does not hold two."""
    settings = round_settings(aggregation="secure")
    agents = {
        site: SiteAgent(
            site, SECURE_AGREEMENT, PullTrainer(1.0), MemorySiteState(), secure_half(site)
        )
        for site in SITES
    }
    held: list[weakref.ref[np.ndarray]] = []

    def answers(stage: Stage) -> Iterator[Answer]:
        for site, message in stage.requests.items():
            assert [each() for each in held] == [None] * len(held)
            reply = carried(agents[site].handle(carried(message)))
            if reply.kind == "masked":
                held.append(weakref.ref(reply.arrays["masked"]))
            answer = Answer(site, reply)
            del reply
            yield answer
            del answer

    steps = new_coordinator(settings).round(SITES)
    stage = next(steps)
    while stage.name != "unmask":
        stage = steps.send(answers(stage))
    assert [each() for each in held] == [None] * len(SITES)
