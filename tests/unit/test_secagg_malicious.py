"""A coordinator that cheats, against honest sites: each play is refused by its own typed error.

The coordinator here holds every message that passes and may send anything to anyone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from secure_sites import (
    MODEL_SIZE,
    TERMS,
    CheatingCoordinator,
    train_request,
    with_header,
)

from fedhash.learning.loss import Margins
from fedhash.rounds.messages import Message
from fedhash.secagg.encoding import round_encoding
from fedhash.secagg.identity import SiteIdentity
from fedhash.secagg.messages import ShareRequest, SharesReply, UnmaskedReply
from fedhash.secagg.opened_rounds import OpenedRound
from fedhash.secagg.roster import KeyRoster, RoundKeys

VICTIM = "site-00"


@pytest.fixture
def cheat() -> CheatingCoordinator:
    return CheatingCoordinator()


def forged_keys() -> np.ndarray:
    keys = [X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2)]
    return np.frombuffer(b"".join(keys), np.uint8)


def test_swapped_keys_of_a_neighbour(cheat: CheatingCoordinator) -> None:
    keys = cheat.advertise()
    keys["site-01"] = replace(keys["site-01"], keys=forged_keys())
    ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
    assert cheat.refusal(VICTIM, ask) == "bad_signature"


def test_another_sites_signature_under_a_neighbours_name(cheat: CheatingCoordinator) -> None:
    keys = cheat.advertise()
    keys["site-01"] = keys["site-02"]
    ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
    assert cheat.refusal(VICTIM, ask) == "bad_signature"


def test_unsigned_keys(cheat: CheatingCoordinator) -> None:
    keys = cheat.advertise()
    keys["site-01"] = replace(keys["site-01"], signature=np.zeros(64, np.uint8))
    ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
    assert cheat.refusal(VICTIM, ask) == "bad_signature"


def test_keys_of_another_round(cheat: CheatingCoordinator) -> None:
    stale = cheat.advertise(number=2)
    keys = cheat.advertise(number=1) | {"site-01": stale["site-01"]}
    ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
    assert cheat.refusal(VICTIM, ask) == "bad_signature"


def test_a_relay_that_shows_the_victim_other_keys_for_itself(cheat: CheatingCoordinator) -> None:
    keys = cheat.advertise()
    keys[VICTIM] = replace(keys[VICTIM], keys=forged_keys())
    ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
    assert cheat.refusal(VICTIM, ask) == "foreign_keys"


def test_a_roster_without_the_victim(cheat: CheatingCoordinator) -> None:
    keys = cheat.advertise()
    del keys[VICTIM]
    ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
    assert cheat.refusal(VICTIM, ask) == "foreign_keys"


def test_invented_sites(cheat: CheatingCoordinator) -> None:
    keys = cheat.advertise()
    identity = SiteIdentity.generate()
    forged = forged_keys()
    text = RoundKeys.signed_text("run-1", 1, "zz-sybil", forged.tobytes())
    keys["zz-sybil"] = RoundKeys(forged, np.frombuffer(identity.sign(text), np.uint8))
    ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
    assert cheat.refusal(VICTIM, ask) == "unknown_site"


@pytest.mark.parametrize("size", [1, 2])
def test_a_cohort_of_one_or_two(cheat: CheatingCoordinator, size: int) -> None:
    keys = cheat.advertise()
    few = {site: keys[site] for site in cheat.sites[:size]}
    roster = KeyRoster(
        tuple(few),
        1,
        1,
        np.stack([each.keys for each in few.values()]),
        np.stack([each.signature for each in few.values()]),
    )
    assert cheat.refusal(VICTIM, ShareRequest("run-1", 1, roster).to_message()) == "bad_cohort"


@pytest.mark.parametrize(("degree", "threshold"), [(0, -1), (0, -2), (-1, 0), (-2, -1)])
def test_a_lowered_threshold_or_degree(
    cheat: CheatingCoordinator, degree: int, threshold: int
) -> None:
    roster = cheat.roster(cheat.advertise())
    lowered = replace(roster, degree=roster.degree + degree, threshold=roster.threshold + threshold)
    ask = ShareRequest("run-1", 1, lowered).to_message()
    assert cheat.refusal(VICTIM, ask) == "other_threshold"


def test_a_key_of_low_order_signed_by_a_corrupt_site(cheat: CheatingCoordinator) -> None:
    """A corrupt site may sign what it likes; the secret with the zero point would be known."""
    keys = cheat.advertise()
    zero = np.zeros(64, np.uint8)
    identity = cheat.federation.sites["site-01"].aggregation._identity
    signature = identity.sign(RoundKeys.signed_text("run-1", 1, "site-01", zero.tobytes()))
    keys["site-01"] = RoundKeys(zero, np.frombuffer(signature, np.uint8))
    ask = ShareRequest("run-1", 1, cheat.roster(keys)).to_message()
    assert cheat.refusal(VICTIM, ask) == "bad_key"


def test_shares_asked_for_twice(cheat: CheatingCoordinator) -> None:
    roster = cheat.roster(cheat.advertise())
    ask = ShareRequest("run-1", 1, roster).to_message()
    assert cheat.send(VICTIM, ask).kind == "shares"
    assert cheat.refusal(VICTIM, ask) == "wrong_stage"


def test_a_replayed_mask_stage(cheat: CheatingCoordinator) -> None:
    _, request = cheat.up_to_share()
    assert cheat.send(VICTIM, request.to_message()).kind == "masked"
    assert cheat.refusal(VICTIM, request.to_message()) == "wrong_stage"
    assert cheat.federation.sites[VICTIM].trained == 1


def test_stages_out_of_their_order(cheat: CheatingCoordinator) -> None:
    roster = cheat.roster(cheat.advertise())
    unmask = cheat.unmask_request(roster, cheat.sites).to_message()
    assert cheat.refusal(VICTIM, unmask) == "wrong_stage"


def test_a_round_that_was_never_set_up(cheat: CheatingCoordinator) -> None:
    _, request = cheat.up_to_share()
    stale = replace(request, train=replace(request.train, round_number=2))
    assert cheat.refusal(VICTIM, stale.to_message()) == "no_session"


def test_another_session_of_the_same_round(cheat: CheatingCoordinator) -> None:
    _, old = cheat.up_to_share()
    cheat.up_to_share()
    assert cheat.refusal(VICTIM, old.to_message()) == "wrong_stage"


def test_keys_replayed_from_an_earlier_attempt_open_no_shares(cheat: CheatingCoordinator) -> None:
    """Signed for the same run and round, so the signature holds; the session does not."""
    old = cheat.advertise()
    new = cheat.advertise()
    roster = cheat.roster({**old, VICTIM: new[VICTIM]})
    ask = ShareRequest("run-1", 1, roster).to_message()
    own = SharesReply.from_message(cheat.send(VICTIM, ask), roster.degree).shares
    assert all(cheat.refusal(site, ask) == "foreign_keys" for site in cheat.sites[1:])
    request = cheat.mask_request(roster, dict.fromkeys(cheat.sites, own))
    assert cheat.refusal(VICTIM, request.to_message()) == "unreadable_shares"
    assert cheat.federation.sites[VICTIM].trained == 0


def test_the_request_for_a_vector_in_the_clear(cheat: CheatingCoordinator) -> None:
    message = train_request(cheat.agreement).to_message()
    assert cheat.refusal(VICTIM, message) == "other_aggregation"
    assert cheat.federation.sites[VICTIM].trained == 0


def test_a_foreign_ring_layout(cheat: CheatingCoordinator) -> None:
    _, request = cheat.up_to_share()
    foreign = replace(request, encoding_digest="0" * 64)
    assert cheat.refusal(VICTIM, foreign.to_message()) == "other_layout"


def test_a_roster_beyond_the_plans_sites_could_wrap(cheat: CheatingCoordinator) -> None:
    _, request = cheat.up_to_share()
    plan = request.train.plan.model_copy(update={"sites": cheat.sites[:3]})
    digest = round_encoding(plan, request.train.blocks, TERMS).digest()
    narrow = replace(request, train=replace(request.train, plan=plan), encoding_digest=digest)
    assert cheat.refusal(VICTIM, narrow.to_message()) == "other_layout"


def test_only_corrupt_neighbours_left_after_the_share_stage(cheat: CheatingCoordinator) -> None:
    _, request = cheat.up_to_share()
    few = replace(request, sharers=cheat.sites[:2], sealed=request.sealed[:2])
    assert cheat.refusal(VICTIM, few.to_message()) == "too_few_sharers"


def test_malformed_shares(cheat: CheatingCoordinator) -> None:
    _, request = cheat.up_to_share()
    noise = np.random.default_rng(0).integers(0, 256, request.sealed.shape, np.uint8)
    garbage = replace(request, sealed=noise).to_message()
    assert cheat.refusal(VICTIM, garbage) == "unreadable_shares"
    message = request.to_message()
    cut = replace(message, arrays={**message.arrays, "sealed": request.sealed[:, :, :-1]})
    assert cheat.refusal(VICTIM, cut) == "bad_message"
    narrow = replace(request, sealed=request.sealed[:, :-1]).to_message()
    assert cheat.refusal(VICTIM, narrow) == "too_few_sharers"


def test_shares_of_another_pair_do_not_open(cheat: CheatingCoordinator) -> None:
    """The coordinator cannot give the victim shares that were sealed for somebody else."""
    _, request = cheat.up_to_share()
    turned = replace(request, sealed=np.roll(request.sealed, 1, axis=1))
    assert cheat.refusal(VICTIM, turned.to_message()) == "unreadable_shares"


def test_the_victim_said_to_be_alive_and_then_dead(cheat: CheatingCoordinator) -> None:
    roster = cheat.up_to_mask()
    alive = cheat.unmask_request(roster, cheat.sites).to_message()
    dead = cheat.unmask_request(roster, cheat.sites[1:]).to_message()
    for site in cheat.sites[1:]:
        assert cheat.send(site, alive).kind == "unmasked"
        assert cheat.refusal(site, dead) == "no_session"


def test_two_survivor_lists_never_open_both_secrets_of_a_victim(cheat: CheatingCoordinator) -> None:
    """However the neighbours are divided, fewer than the threshold open one of the two."""
    threshold = cheat.graph.threshold
    for told_dead in range(5):
        cheat = CheatingCoordinator()
        roster = cheat.up_to_mask()
        kinds = {True: 0, False: 0}
        for place, site in enumerate(cheat.sites[1:]):
            dead = place < told_dead
            survivors = cheat.sites[1:] if dead else cheat.sites
            answer = cheat.send(site, cheat.unmask_request(roster, survivors).to_message())
            reply = UnmaskedReply.from_message(answer, 1)
            assert VICTIM in reply.owners
            kinds[dead] += 1
        assert min(kinds.values()) < threshold


def test_survivors_too_few(cheat: CheatingCoordinator) -> None:
    roster = cheat.up_to_mask()
    for survivors in (cheat.sites[:1], cheat.sites[:3], cheat.sites[1:]):
        ask = cheat.unmask_request(roster, survivors).to_message()
        assert cheat.refusal(VICTIM, ask) == "too_few_survivors"


def test_survivors_that_never_shared(cheat: CheatingCoordinator) -> None:
    roster = cheat.up_to_mask()
    ask = cheat.unmask_request(roster, (*cheat.sites, "zz-sybil")).to_message()
    assert cheat.refusal(VICTIM, ask) == "too_few_survivors"


def test_the_same_round_opened_again_over_other_sites(cheat: CheatingCoordinator) -> None:
    """The difference of the two sums would be one site's update."""
    cheat.up_to_unmask()
    roster = cheat.up_to_mask()
    fewer = cheat.unmask_request(roster, cheat.sites[:4]).to_message()
    assert cheat.refusal(VICTIM, fewer) == "opened_otherwise"
    same = cheat.unmask_request(roster, cheat.sites).to_message()
    assert cheat.send(VICTIM, same).kind == "unmasked"


@pytest.mark.parametrize(
    "changes",
    [
        {"counted": {VICTIM: 1}},
        {"model": np.ones(MODEL_SIZE, np.float32)},
        {"margins": Margins.constant(2, 0.3)},
    ],
)
def test_the_same_round_opened_again_for_another_task(
    cheat: CheatingCoordinator, changes: dict[str, object]
) -> None:
    """What only one site answers otherwise would stand in the difference of the two sums."""
    cheat.up_to_unmask()
    roster = cheat.up_to_mask(**changes)
    for site in cheat.sites:
        ask = cheat.unmask_request(roster, cheat.sites).to_message()
        assert cheat.refusal(site, ask) == "opened_otherwise"


def test_the_same_round_opened_again_after_a_sites_data_changed(cheat: CheatingCoordinator) -> None:
    """The difference of the two sums would be that of the site's two vectors."""
    cheat.up_to_unmask()
    victim = cheat.federation.sites[VICTIM]
    victim.contribution = replace(victim.contribution, weight=victim.contribution.weight + 1)
    roster = cheat.up_to_mask()
    ask = cheat.unmask_request(roster, cheat.sites).to_message()
    assert cheat.refusal(VICTIM, ask) == "opened_otherwise"


def test_the_same_round_opened_again_for_another_cohort(cheat: CheatingCoordinator) -> None:
    """A lost round is asked again of those who can be reached; the sum's sites must be the same."""
    cheat.up_to_unmask()
    roster = cheat.up_to_mask(cohort=cheat.sites[:4])
    ask = cheat.unmask_request(roster, cheat.sites).to_message()
    assert cheat.send(VICTIM, ask).kind == "unmasked"


def test_an_older_round_than_the_one_that_was_opened(cheat: CheatingCoordinator) -> None:
    for site in cheat.sites:
        opened = cheat.federation.sites[site].aggregation._opened
        opened.keep("run-1", OpenedRound(2, cheat.sites, "0" * 64, "0" * 32))
    roster = cheat.up_to_mask()
    ask = cheat.unmask_request(roster, cheat.sites).to_message()
    assert cheat.refusal(VICTIM, ask) == "opened_otherwise"


def test_the_next_rounds_keys_are_vetted_as_well(cheat: CheatingCoordinator) -> None:
    """They come with the unmask stage: the sum is opened, the forged roster gets no shares."""
    roster, request = cheat.up_to_share()
    keys = {}
    for site in cheat.sites:
        arrays = cheat.send(site, request.to_message()).arrays
        keys[site] = RoundKeys.from_arrays(arrays)
    keys["site-01"] = replace(keys["site-01"], keys=forged_keys())
    ask = replace(cheat.unmask_request(roster, cheat.sites), following=cheat.roster(keys))
    reply = UnmaskedReply.from_message(cheat.send(VICTIM, ask.to_message()), 4)
    assert reply.following is None
    assert reply.refusal is not None
    assert reply.refusal.startswith("bad_signature")


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: with_header(m, session="x"),
        lambda m: with_header(m, sharers=["site-01", "site-00"]),
        lambda m: with_header(m, sharers=m.header["sharers"][::-1]),
        lambda m: with_header(m, train={}),
        lambda m: replace(m, arrays={**m.arrays, "more": np.zeros(1)}),
        lambda m: replace(m, arrays={**m.arrays, "sealed": m.arrays["sealed"].astype(np.int64)}),
        lambda m: replace(m, arrays={**m.arrays, "sealed": m.arrays["sealed"][:, 0, 0]}),
        lambda m: replace(m, kind="masks"),
    ],
)
def test_messages_out_of_form(
    cheat: CheatingCoordinator, damage: Callable[[Message], Message]
) -> None:
    _, request = cheat.up_to_share()
    assert cheat.refusal(VICTIM, damage(request.to_message())) == "bad_message"
    assert cheat.send(VICTIM, request.to_message()).kind == "masked"  # and no harm was done
