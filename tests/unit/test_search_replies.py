"""What an asker takes of a router's answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.errors import ProtocolError, RefusedError
from fedhash.search.answers import Found, Gathered, Merged, Refusal, SiteResult
from fedhash.search.hit import Hit, merge
from fedhash.search.query import Query
from fedhash.search.replies import read_merged
from fedhash.search.signed_answers import sign_found
from fedhash.search.wire.answers import encode_reply
from fedhash.search.wire.queries import SignedQuery, decode_signed
from tests.search_consortium import SITES, agreement, asked, brute_force, identity, query

CODES = st.lists(st.binary(min_size=2, max_size=2), max_size=6)
HELD = {"hospital-a": [b"\x00\x00", b"\x01\x00", b"\x0f\x00"], "hospital-b": [b"\x00\x03"]}
WANTED = query(radius=4)
SIGNED = decode_signed(asked(of=WANTED))


def read(wanted: Query, signed: SignedQuery, gathered: Gathered) -> Merged:
    return read_merged(wanted, signed, agreement().sites, encode_reply(gathered))


def gathered(found: dict[str, Found]) -> Gathered:
    """Of the sites of the agreement; those that are not in `found` are late."""
    results = [
        SiteResult(site, "answered", "", len(found[site].hits), found[site].cut_to_bits)
        if site in found
        else SiteResult(site, "late")
        for site in SITES
    ]
    return Gathered(tuple(results), found)


def honest(held: dict[str, list[bytes]], wanted: Query, signed: SignedQuery) -> dict[str, Found]:
    return {
        site: sign_found(signed, Found(tuple(brute_force(site, codes, wanted))), identity(site))
        for site, codes in held.items()
    }


@given(
    held=st.dictionaries(st.sampled_from(SITES), CODES),
    k=st.integers(1, 8),
    radius=st.none() | st.integers(0, 16),
)
def test_what_sites_signed_is_merged_as_one_index(
    held: dict[str, list[bytes]], k: int, radius: int | None
) -> None:
    wanted = query(k=k, radius=radius)
    signed = decode_signed(asked(of=wanted))
    found = honest(held, wanted, signed)
    merged = read(wanted, signed, gathered(found))
    assert list(merged.hits) == merge([each.hits for each in found.values()], k)
    assert merged.sites == gathered(found).sites


def another_study(found: Found) -> Found:
    return replace(found, hits=(replace(found.hits[0], handle="ab" * 16), *found.hits[1:]))


def fewer(found: Found) -> Found:
    return replace(found, hits=found.hits[1:])


def other_order(found: Found) -> Found:
    return replace(found, hits=found.hits[::-1])


def cut(found: Found) -> Found:
    return replace(found, cut_to_bits=3)


def unsigned(found: Found) -> Found:
    return replace(found, signature=bytes(64))


def another_sites(found: Found) -> Found:
    return sign_found(SIGNED, found, identity("hospital-b"))


def to_another_query(found: Found) -> Found:
    return sign_found(decode_signed(asked(of=WANTED)), found, identity("hospital-a"))


@pytest.mark.parametrize(
    "change",
    [another_study, fewer, other_order, cut, unsigned, another_sites, to_another_query],
)
def test_what_a_site_did_not_sign_for_this_query_does_not_count(
    change: Callable[[Found], Found],
) -> None:
    found = honest(HELD, WANTED, SIGNED)
    changed = found | {"hospital-a": change(found["hospital-a"])}
    merged = read(WANTED, SIGNED, gathered(changed))
    assert merged.hits == found["hospital-b"].hits
    assert merged.missing == (
        SiteResult("hospital-a", "invalid", "bad_signature"),
        SiteResult("hospital-c", "late"),
    )


@pytest.mark.parametrize(
    "hits",
    [
        (Hit("hospital-a", "ab" * 16, 5, 0),),  # beyond the radius
        (Hit("hospital-a", "ab" * 16, 0, 1000),),  # a score that no code has
        tuple(Hit("hospital-a", f"{n:032x}", 0, -8) for n in range(6)),  # more than k
        2 * (Hit("hospital-a", "ab" * 16, 0, -8),),
    ],
)
def test_what_no_site_can_find_does_not_count_though_it_is_signed(hits: tuple[Hit, ...]) -> None:
    found = honest(HELD, WANTED, SIGNED)
    lie = sign_found(SIGNED, Found(hits), identity("hospital-a"))
    merged = read(WANTED, SIGNED, gathered(found | {"hospital-a": lie}))
    assert merged.hits == found["hospital-b"].hits
    assert merged.missing[0] == SiteResult("hospital-a", "invalid", "impossible")


def test_other_sites_than_the_agreement_has_are_no_answer() -> None:
    whole = gathered(honest(HELD, WANTED, SIGNED))
    for sites in (whole.sites[:2], (*whole.sites, SiteResult("hospital-d", "late")), ()):
        names = {each.site for each in sites}
        found = {site: each for site, each in whole.found.items() if site in names}
        with pytest.raises(ProtocolError, match="the agreement has hospital-a, hospital-b"):
            read(WANTED, SIGNED, Gathered(sites, found))


def test_a_refusal_of_the_router_is_one() -> None:
    with pytest.raises(RefusedError, match="the router refuses the query: wait") as refused:
        read_merged(WANTED, SIGNED, agreement().sites, encode_reply(Refusal("busy", "wait")))
    assert refused.value.reason == "busy"
