"""The site's rules clause by clause: each case here breaks one clause and keeps all others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from secure_sites import (
    TERMS,
    CheatingCoordinator,
    Federation,
    consortium,
    names,
    with_header,
)

from fedhash.errors import CheckpointError
from fedhash.rounds.aggregation import Contribution
from fedhash.secagg.floors import smallest_cohort, smallest_sum
from fedhash.secagg.messages import AdvertiseRequest, MaskedReply, ShareRequest, UnmaskedReply
from fedhash.secagg.opened_rounds import MemoryOpenedRounds, OpenedRound
from fedhash.secagg.roster import KeyRoster, RoundKeys

VICTIM = "site-00"


@pytest.mark.parametrize(("agreed", "least"), [(1, 3), (2, 3), (3, 3), (5, 5)])
def test_a_round_begins_with_what_was_agreed_and_never_with_two(agreed: int, least: int) -> None:
    assert smallest_cohort(consortium(6, smallest_cohort=agreed)[0]) == least


@pytest.mark.parametrize(
    ("sites", "agreed", "least"),
    [
        (10, 3, 7),  # more than two thirds
        (10, 9, 9),  # what was agreed
        (2, 1, 3),  # never two
    ],
)
def test_a_sum_takes_the_largest_of_three_floors(sites: int, agreed: int, least: int) -> None:
    assert smallest_sum(sites, consortium(10, smallest_cohort=agreed)[0]) == least


def test_a_cohort_below_the_agreed_one() -> None:
    cheat = CheatingCoordinator(5, smallest_cohort=5)
    keys = cheat.advertise()
    del keys["site-04"]
    ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
    assert cheat.refusal(VICTIM, ask) == "bad_cohort"


def test_two_sites_are_too_few_whatever_was_agreed() -> None:
    cheat = CheatingCoordinator(3, smallest_cohort=1)
    keys = cheat.advertise()
    del keys["site-02"]
    ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
    assert cheat.refusal(VICTIM, ask) == "bad_cohort"


def test_a_roster_out_of_order() -> None:
    cheat = CheatingCoordinator()
    roster = cheat.roster(cheat.advertise())
    turned = replace(
        roster,
        sites=roster.sites[::-1],
        keys=roster.keys[::-1],
        signatures=roster.signatures[::-1],
    )
    assert cheat.refusal(VICTIM, ShareRequest("run-1", 1, turned).to_message()) == "bad_message"


def test_keys_signed_for_another_run() -> None:
    cheat = CheatingCoordinator()
    keys = cheat.advertise()
    identity = cheat.federation.sites["site-01"].aggregation._identity
    text = RoundKeys.signed_text("run-2", 1, "site-01", keys["site-01"].keys.tobytes())
    foreign = np.frombuffer(identity.sign(text), np.uint8)
    keys["site-01"] = replace(keys["site-01"], signature=foreign)
    ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
    assert cheat.refusal(VICTIM, ask) == "bad_signature"


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("stage", ["share", "mask", "unmask"])
def test_new_keys_end_what_was_under_way(stage: str, number: int) -> None:
    """Whichever round they are asked for: an attempt that was given up can never be opened."""
    cheat = CheatingCoordinator()
    roster = cheat.roster(cheat.advertise())
    ask = ShareRequest("run-1", 1, roster).to_message()
    if stage != "share":
        ask = cheat.mask_request(roster, cheat.share(roster)).to_message()
    if stage == "unmask":
        assert all(cheat.send(site, ask).kind == "masked" for site in cheat.sites)
        ask = cheat.unmask_request(roster, cheat.sites).to_message()
    cheat.send(VICTIM, AdvertiseRequest("run-1", number).to_message())
    same_round = "foreign_keys" if stage == "share" else "wrong_stage"
    assert cheat.refusal(VICTIM, ask) == (same_round if number == 1 else "no_session")


def test_an_unmask_request_of_another_session() -> None:
    cheat = CheatingCoordinator()
    roster = cheat.up_to_mask()
    ask = with_header(cheat.unmask_request(roster, cheat.sites).to_message(), session="0" * 64)
    assert cheat.refusal(VICTIM, ask) == "wrong_stage"


def test_a_round_is_closed_by_the_vector_of_the_next_one() -> None:
    """The next round's stages may stand alone, before the sum of this one was ever opened."""
    cheat = CheatingCoordinator()
    roster, request = cheat.up_to_share()
    late = cheat.unmask_request(roster, cheat.sites).to_message()
    keys = {}
    for site in cheat.sites:
        keys[site] = RoundKeys.from_arrays(cheat.send(site, request.to_message()).arrays)
    roster, request = cheat.up_to_share(keys, number=2)
    for site in cheat.sites:
        assert cheat.send(site, request.to_message()).kind == "masked"
    assert cheat.refusal(VICTIM, late) == "no_session"


def test_a_model_of_another_size_has_another_layout() -> None:
    cheat = CheatingCoordinator()
    _, request = cheat.up_to_share()
    long = replace(request.train, model=np.zeros(7, np.float32))
    ask = replace(request, train=long).to_message()
    assert cheat.refusal(VICTIM, ask) == "other_layout"
    assert cheat.federation.sites[VICTIM].trained == 0


# Of seven sites five must be in a sum, and each needs five of its six neighbours.


@pytest.mark.parametrize(
    "kept",
    [
        (0, 1, 2, 3, 4),  # five sites, four of them neighbours
        (1, 2, 3, 4, 5, 6),  # six neighbours, and not the site itself
    ],
)
def test_sharers_that_miss_one_clause(kept: tuple[int, ...]) -> None:
    cheat = CheatingCoordinator(7)
    _, request = cheat.up_to_share()
    some = replace(
        request,
        sharers=tuple(cheat.sites[place] for place in kept),
        sealed=request.sealed[list(kept)],
    )
    assert cheat.refusal(VICTIM, some.to_message()) == "too_few_sharers"
    assert cheat.send(VICTIM, request.to_message()).kind == "masked"


def test_sharers_from_outside_the_roster() -> None:
    cheat = CheatingCoordinator()
    _, request = cheat.up_to_share()
    more = replace(
        request,
        sharers=(*request.sharers, "zz-sybil"),
        sealed=np.concatenate([request.sealed, request.sealed[:1]]),
    )
    assert cheat.refusal(VICTIM, more.to_message()) == "too_few_sharers"


def test_sharers_below_the_agreed_cohort() -> None:
    """Three neighbours would do for five sites, but all five were agreed on."""
    cheat = CheatingCoordinator(5, smallest_cohort=5)
    _, request = cheat.up_to_share()
    four = replace(request, sharers=cheat.sites[:4], sealed=request.sealed[:4])
    assert cheat.refusal(VICTIM, four.to_message()) == "too_few_sharers"


def test_rows_of_shares_for_more_neighbours_than_there_are() -> None:
    cheat = CheatingCoordinator()
    _, request = cheat.up_to_share()
    wide = np.concatenate([request.sealed, request.sealed[:, :1]], axis=1)
    ask = replace(request, sealed=wide).to_message()
    assert cheat.refusal(VICTIM, ask) == "too_few_sharers"


@pytest.mark.parametrize("kept", [(0, 1, 2, 3, 4), (1, 2, 3, 4, 5, 6)])
def test_survivors_that_miss_one_clause(kept: tuple[int, ...]) -> None:
    cheat = CheatingCoordinator(7)
    roster = cheat.up_to_mask()
    ask = cheat.unmask_request(roster, tuple(cheat.sites[place] for place in kept)).to_message()
    assert cheat.refusal(VICTIM, ask) == "too_few_survivors"


def test_survivors_below_the_agreed_cohort() -> None:
    cheat = CheatingCoordinator(5, smallest_cohort=5)
    roster = cheat.up_to_mask()
    ask = cheat.unmask_request(roster, cheat.sites[:4]).to_message()
    assert cheat.refusal(VICTIM, ask) == "too_few_survivors"


def test_survivors_out_of_order() -> None:
    cheat = CheatingCoordinator()
    roster = cheat.up_to_mask()
    ask = cheat.unmask_request(roster, cheat.sites[::-1]).to_message()
    assert cheat.refusal(VICTIM, ask) == "bad_message"


def test_survivors_of_the_roster_that_did_not_share() -> None:
    cheat = CheatingCoordinator()
    roster, request = cheat.up_to_share()
    four = replace(request, sharers=cheat.sites[:4], sealed=request.sealed[:4])
    for site in cheat.sites[:4]:
        assert cheat.send(site, four.to_message()).kind == "masked"
    ask = cheat.unmask_request(roster, cheat.sites).to_message()
    assert cheat.refusal(VICTIM, ask) == "too_few_survivors"


def test_survivors_whose_shares_the_site_could_not_open_are_no_neighbours() -> None:
    """Four of five survive, three beside the site; of one it holds no share, so two count."""
    cheat = CheatingCoordinator()
    roster, request = cheat.up_to_share()
    sealed = request.sealed.copy()
    sealed[1, 0, -1] ^= 1  # what site-01 sealed for its first neighbour, the victim
    ask = replace(request, sealed=sealed).to_message()
    assert cheat.send(VICTIM, ask).kind == "masked"
    survivors = tuple(site for site in cheat.sites if site != "site-02")
    fewer = cheat.unmask_request(roster, survivors).to_message()
    assert cheat.refusal(VICTIM, fewer) == "too_few_survivors"
    reply = cheat.send(VICTIM, cheat.unmask_request(roster, cheat.sites).to_message())
    assert UnmaskedReply.from_message(reply, 1).owners == ("site-02", "site-03", "site-04")


def test_nothing_is_opened_that_cannot_be_remembered() -> None:
    class Full(MemoryOpenedRounds):
        def keep(self, run_id: str, opened: OpenedRound) -> None:
            raise CheckpointError(f"{run_id}: round {opened.round_number} cannot be written")

    cheat = CheatingCoordinator()
    cheat.federation.sites[VICTIM].aggregation._opened = Full()
    roster = cheat.up_to_mask()
    with pytest.raises(CheckpointError, match="run-1: round 1 cannot be written"):
        cheat.send(VICTIM, cheat.unmask_request(roster, cheat.sites).to_message())


def test_a_site_heavier_than_agreed_counts_as_the_heaviest() -> None:
    federation = Federation.of(4)
    site = federation.sites["site-03"]
    site.contribution = Contribution(site.contribution.vector, 20.0)
    aggregate = federation.round(1)
    assert aggregate.weight == 1 + 2 + 3 + 8
    np.testing.assert_array_equal(aggregate.total, federation.expected(names(4), 1).vector)


def test_the_last_round_makes_no_keys_for_another_one() -> None:
    cheat = CheatingCoordinator()
    _, request = cheat.up_to_share(cheat.advertise(number=3), number=3)
    reply = cheat.send(VICTIM, request.to_message())
    assert MaskedReply.from_message(reply, reply.arrays["masked"].size).following is None


def test_a_refusal_of_the_next_roster_fits_its_message() -> None:
    """The text quotes the coordinator's number, which has six hundred digits here."""
    cheat = CheatingCoordinator()
    roster, request = cheat.up_to_share()
    keys = {}
    for site in cheat.sites:
        keys[site] = RoundKeys.from_arrays(cheat.send(site, request.to_message()).arrays)
    long = replace(cheat.roster(keys), degree=10**600)
    ask = replace(cheat.unmask_request(roster, cheat.sites), following=long)
    reply = UnmaskedReply.from_message(cheat.send(VICTIM, ask.to_message()), 4)
    assert reply.refusal is not None
    assert reply.refusal.startswith("other_threshold: ")
    assert len(reply.refusal) == 500
    assert reply.shares.shape == (4, 32)


def test_a_roster_of_a_size_that_no_graph_joins() -> None:
    cheat = CheatingCoordinator(6, terms=TERMS.model_copy(update={"largest_dropout_share": 0.3}))
    keys = cheat.advertise()
    few = [keys[site] for site in cheat.sites[:4]]  # of four, one may drop out: no threshold
    keys_of, signatures = (
        np.stack([getattr(each, name) for each in few]) for name in ("keys", "signature")
    )
    roster = KeyRoster(cheat.sites[:4], 3, 3, keys_of, signatures)
    ask = ShareRequest("run-1", 1, roster).to_message()
    assert cheat.refusal(VICTIM, ask) == "other_threshold"
