"""What an asker takes of a router's answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.errors import ProtocolError, RefusedError
from fedhash.search.answers import Merged, Refusal, SiteResult
from fedhash.search.hit import Hit, merge
from fedhash.search.replies import merged_fault, read_merged
from fedhash.search.wire.answers import encode_reply
from tests.search_consortium import SITES, brute_force, query

CODES = st.lists(st.binary(min_size=2, max_size=2), max_size=6)


def honest(held: dict[str, list[bytes]], **changes: object) -> Merged:
    wanted = query(**changes)
    lists = {site: brute_force(site, codes, wanted) for site, codes in held.items()}
    answered = [SiteResult(site, "answered", "", len(hits)) for site, hits in lists.items()]
    others = [SiteResult(site, "late") for site in SITES if site not in lists]
    sites = sorted([*answered, *others], key=lambda result: result.site)
    return Merged(tuple(merge(lists.values(), wanted.k)), tuple(sites))


@given(
    held=st.dictionaries(st.sampled_from(SITES), CODES),
    k=st.integers(1, 8),
    radius=st.none() | st.integers(0, 16),
)
def test_what_an_honest_router_returns_has_no_fault(
    held: dict[str, list[bytes]], k: int, radius: int | None
) -> None:
    wanted, merged = query(k=k, radius=radius), honest(held, k=k, radius=radius)
    assert merged_fault(wanted, merged) is None
    assert read_merged(wanted, encode_reply(merged)) == merged


ANSWER = honest(
    {"hospital-a": [b"\x00\x00", b"\x01\x00", b"\x0f\x00"], "hospital-b": [b"\x00\x03"]}, radius=4
)


def hits(*chosen: Hit) -> Callable[[Merged], Merged]:
    return lambda merged: replace(merged, hits=chosen)


def result(place: int, **changes: object) -> Callable[[Merged], Merged]:
    def change(merged: Merged) -> Merged:
        sites = list(merged.sites)
        sites[place] = replace(sites[place], **changes)
        return replace(merged, sites=tuple(sites))

    return change


FIRST, *REST = ANSWER.hits


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (hits(*REST), "3 hits, 5 were asked for, and the sites gave 4"),
        (result(1, hits=0), "4 hits, 5 were asked for, and the sites gave 3"),
        (result(1, hits=2), "4 hits, 5 were asked for, and the sites gave 5"),
        (result(1, outcome="late"), r"'hospital-b' \(late\) is said to have given 1 hits"),
        (result(0, hits=6), "4 hits, 5 were asked for, and the sites gave 7"),
        (hits(replace(FIRST, site="hospital-c"), *REST), "1 hits of 'hospital-c', which gave 0"),
        (hits(FIRST, *REST[:-1], replace(REST[-1], distance=5)), "a hit at 5 bits"),
        (hits(replace(FIRST, score=FIRST.score + 1), *REST), "a score of"),
        (result(0, cut_to_bits=2), "a hit at 4 bits, the radius is 2"),
        (result(0, cut_to_bits=4), "does not cut the query's 4"),
    ],
)
def test_what_no_honest_router_returns_is_refused(
    change: Callable[[Merged], Merged], fault: str
) -> None:
    with pytest.raises(ProtocolError, match=f"cannot be right: .*({fault})"):
        read_merged(query(radius=4), encode_reply(change(ANSWER)))


def test_a_study_that_stands_twice_is_refused() -> None:
    twice = replace(FIRST, score=FIRST.score - 1)
    with pytest.raises(ProtocolError, match=r"a study stands twice|a score of"):
        read_merged(query(radius=4), encode_reply(hits(FIRST, twice, *REST[1:])(ANSWER)))


def test_a_refusal_of_the_router_is_one() -> None:
    with pytest.raises(RefusedError, match="the router refuses the query: wait") as refused:
        read_merged(query(), encode_reply(Refusal("busy", "wait")))
    assert refused.value.reason == "busy"
