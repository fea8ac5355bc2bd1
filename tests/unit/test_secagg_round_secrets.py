"""What a site's secrets of one round are made of, and what opens them."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from secure_sites import TERMS, consortium

from fedhash.secagg.graph import plan_graph
from fedhash.secagg.roster import KeyRoster, SealedShares
from fedhash.secagg.round_secrets import RoundSecrets
from fedhash.secagg.shamir import combine

OWNER = "site-00"


def sharing(count: int) -> tuple[KeyRoster, dict[str, RoundSecrets], dict[str, SealedShares]]:
    """Sites that all shared and hold each other's shares."""
    _, identities = consortium(count)
    sites = {site: RoundSecrets(site, key, "run-1", 1) for site, key in identities.items()}
    graph = plan_graph(count, TERMS)
    roster = KeyRoster(
        tuple(sites),
        graph.degree,
        graph.threshold,
        np.stack([each.public.keys for each in sites.values()]),
        np.stack([each.public.signature for each in sites.values()]),
    )
    shares = {site: each.share(roster) for site, each in sites.items()}
    for each in sites.values():
        each.receive({other: shares[other].sealed[each.rows[other]] for other in each.neighbours})
    return roster, sites, shares


def opened(sites: dict[str, RoundSecrets], survivors: tuple[str, ...]) -> dict[int, np.ndarray]:
    """The owner's shares as its neighbours open them, by their points."""
    found = {}
    for point, holder in enumerate(sites[OWNER].neighbours, start=1):
        owners, shares = sites[holder].open(survivors)
        found[point] = shares[owners.index(OWNER)]
    return found


def test_the_threshold_opens_what_the_lists_say_and_one_share_less_opens_nothing() -> None:
    roster, sites, shares = sharing(6)
    everyone = tuple(sites)
    seeds = opened(sites, everyone)
    masking_keys = opened(sites, everyone[1:])
    for points in combinations(seeds, roster.threshold):
        seed = combine(points, np.stack([seeds[point] for point in points]))
        key = combine(points, np.stack([masking_keys[point] for point in points]))
        assert hashlib.sha256(seed).digest() == shares[OWNER].seed_commitment.tobytes()
        public = X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
        assert public == roster.keys_of(OWNER)[32:]
        fewer = points[1:]
        assert combine(fewer, np.stack([seeds[point] for point in fewer])) != seed
        assert combine(fewer, np.stack([masking_keys[point] for point in fewer])) != key


def test_the_commitments_are_to_the_shares_that_each_neighbour_holds() -> None:
    _, sites, shares = sharing(5)
    for kind, survivors in enumerate([tuple(sites), tuple(sites)[1:]]):
        for point, share in opened(sites, survivors).items():
            committed = shares[OWNER].commitments[point - 1, kind].tobytes()
            assert hashlib.sha256(share.tobytes()).digest() == committed


def test_no_two_secrets_are_the_same() -> None:
    _, sites, shares = sharing(5)
    _, _, again = sharing(5)
    seeds = [each.seed_commitment.tobytes() for each in (*shares.values(), *again.values())]
    assert len(set(seeds)) == 10
    keys = [half for each in sites.values() for half in np.split(each.public.keys, 2)]
    assert len({half.tobytes() for half in keys}) == 10
