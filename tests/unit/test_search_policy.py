"""What a site answers to others: its gate, the bucket, the log."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhash.agreement import Agreement
from fedhash.audit_log import AuditLog, read_audit_log
from fedhash.errors import RefusedError
from fedhash.index import Archive, SiteSearcher
from fedhash.index.answering import QueryDesk
from fedhash.search import Query
from fedhash.search.answers import Found, Refusal
from fedhash.search.policy import QueryPolicy
from fedhash.search.terms import QueryLimits
from fedhash.search.wire.queries import SignedQuery, decode_signed
from tests.search_consortium import (
    NOW_MS,
    RELEASE,
    agreement,
    archive,
    asked,
    brute_force,
    handle,
    query,
)

LIMITS = QueryLimits(purposes=("care",), largest_k=10, smallest_bucket=2, queries_per_hour=5)
FIRST = NOW_MS - 60_000


def policy(terms: Agreement | None = None, limits: QueryLimits = LIMITS) -> QueryPolicy:
    return QueryPolicy(terms or agreement(), limits, started_ms=FIRST)


def signed(*args: object, **changes: object) -> SignedQuery:
    return decode_signed(asked(*args, **changes))


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("other_agreement", signed(terms=agreement(version=2))),
        ("unknown_requester", signed("hospital-z")),
        ("bad_signature", signed("hospital-a", key="hospital-b")),
        ("late", signed(now_ms=NOW_MS - 10_000)),
        ("clock", signed(now_ms=NOW_MS + 5001)),
        ("too_old", signed(now_ms=FIRST - 1, life_ms=60_000)),
        ("unknown_purpose", signed(purpose="marketing")),
        ("purpose_not_allowed", signed("hospital-b", purpose="research")),
        ("purpose_not_answered", signed("hospital-a", purpose="research")),
        ("k_above_limit", signed(of=query(k=11))),
        ("unknown_modality", signed(of=query(modality="signal"))),
        (
            "other_code_length",
            signed(of=replace(query(), code=bytes(4), weights=query().weights.repeat(2))),
        ),
        ("other_release", signed(of=query(release_id="r2"))),
    ],
)
def test_the_first_broken_rule_names_the_refusal(reason: str, sent: SignedQuery) -> None:
    gate = policy()
    now_ms = NOW_MS - 1 if reason == "too_old" else NOW_MS
    with pytest.raises(RefusedError) as refused:
        gate.admit(sent, RELEASE, min(now_ms, FIRST + 1) if reason == "too_old" else now_ms)
    assert refused.value.reason == reason


def test_a_site_that_began_with_a_clock_ahead_says_so_until_it_is_restarted() -> None:
    """And a restart opens nothing to what was answered before it."""
    ahead = QueryPolicy(agreement(), LIMITS, started_ms=NOW_MS + 86_400_000)
    before = signed()
    for now_ms in (NOW_MS, NOW_MS + 9_000):
        with pytest.raises(RefusedError, match=r"check its clock and restart.*nothing") as refused:
            ahead.admit(before, RELEASE, now_ms)
        assert refused.value.reason == "own_clock"
    restarted = QueryPolicy(agreement(), LIMITS, started_ms=NOW_MS + 9_000)
    with pytest.raises(RefusedError, match="before this site began"):
        restarted.admit(before, RELEASE, NOW_MS + 9_001)
    restarted.admit(signed(now_ms=NOW_MS + 9_001), RELEASE, NOW_MS + 9_001)


def test_a_clock_that_is_set_back_repeats_no_query() -> None:
    gate, sent = policy(), signed()
    gate.admit(sent, RELEASE, NOW_MS)
    gate.admit(signed(now_ms=NOW_MS + 3_600_000), RELEASE, NOW_MS + 3_600_000)  # forgets the first
    for now_ms, reason in ((NOW_MS, "own_clock"), (NOW_MS + 9_999, "too_old")):
        with pytest.raises(RefusedError) as refused:
            gate.admit(sent, RELEASE, now_ms)
        assert refused.value.reason == reason
    assert len(gate._nonces) == 1


@settings(max_examples=40)
@given(st.lists(st.sampled_from([-66_000, -30_000, -1, 0, 1, 30_000, 66_000]), max_size=20))
def test_whatever_the_clock_does_no_query_is_answered_twice(steps: list[int]) -> None:
    """Each query is tried again at every reading of the clock that follows."""
    gate = policy(limits=LIMITS.model_copy(update={"queries_per_hour": 100_000}))
    now_ms, sent, answered = NOW_MS, [], []
    for step in steps:
        now_ms += step
        sent.append(signed(now_ms=now_ms, life_ms=60_000))
        for each in sent:
            with contextlib.suppress(RefusedError):
                gate.admit(each, RELEASE, now_ms)
                answered.append(each)
    assert len(set(answered)) == len(answered)


@settings(max_examples=40)
@given(st.lists(st.integers(0, 120_000), max_size=30))
def test_a_clock_that_goes_forward_refuses_nothing_new(steps: list[int]) -> None:
    gate = policy(limits=LIMITS.model_copy(update={"queries_per_hour": 100_000}))
    now_ms = NOW_MS
    for step in steps:
        now_ms += step
        for asked_ms in (now_ms - 59_999, now_ms, now_ms + 5_000):
            gate.admit(signed(now_ms=max(asked_ms, FIRST), life_ms=60_000), RELEASE, now_ms)


def test_a_site_without_an_index_says_so() -> None:
    with pytest.raises(RefusedError, match="no index yet"):
        policy().admit(signed(), None, NOW_MS)


def test_an_agreement_without_search_lets_nobody_ask() -> None:
    with pytest.raises(RefusedError, match="agree on one"):
        policy(agreement(search=None))


def test_a_query_is_answered_once() -> None:
    gate, sent = policy(), signed()
    assert gate.admit(sent, RELEASE, NOW_MS).requester == "hospital-a"
    for later in (NOW_MS, NOW_MS + 9_999):
        with pytest.raises(RefusedError, match="answered before"):
            gate.admit(sent, RELEASE, later)
    with pytest.raises(RefusedError, match="ended"):
        gate.admit(sent, RELEASE, NOW_MS + 10_000)


def test_nonces_are_forgotten_when_no_query_can_bear_them() -> None:
    gate = policy(limits=LIMITS.model_copy(update={"queries_per_hour": 100_000}))
    for step in range(30):
        now = NOW_MS + 10_000 * step
        gate.admit(signed(now_ms=now), RELEASE, now)
        assert len(gate._nonces) <= 7
        assert len(gate._nonces) == len(gate._forget)


def test_each_requester_has_so_many_queries_an_hour() -> None:
    gate = policy()
    for _ in range(5):
        gate.admit(signed(), RELEASE, NOW_MS)
    for _ in range(3):
        with pytest.raises(RefusedError, match="more than 5 queries an hour"):
            gate.admit(signed(), RELEASE, NOW_MS)
    assert len(gate._nonces) == 5, "a flood is not remembered"
    gate.admit(signed("hospital-b"), RELEASE, NOW_MS)
    later = NOW_MS + 3_600_000 // 5
    gate.admit(signed(now_ms=later), RELEASE, later)


def test_the_smaller_limit_binds() -> None:
    terms = agreement(
        largest_k=4,
        search={"purposes": {"care": "all"}, "queries_per_hour": 1, "smallest_bucket": 7},
    )
    gate = policy(terms)
    assert gate.smallest_bucket == 7
    assert policy().smallest_bucket == 2
    with pytest.raises(RefusedError, match="this site gives 4"):
        gate.admit(signed(terms=terms), RELEASE, NOW_MS)
    with pytest.raises(RefusedError, match="more than 1 queries an hour"):
        gate.admit(signed(terms=terms), RELEASE, NOW_MS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"purposes": {}}}, "at least 1"),
        ({"search": {"purposes": {"care": ("coordinator",)}}}, "no coordinator_key"),
        ({"search": {"purposes": {"care": "all"}, "coordinator_key": "01" + 62 * "0"}}, "small or"),
        ({"sites": {"coordinator": agreement().sites["hospital-a"]}}, "rename it"),
    ],
)
def test_wrong_terms_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agreement(**changes)


# Few codes, so that buckets are often small but not always empty.
people = st.lists(
    st.tuples(
        st.sampled_from(["p1", "p2", "p3", "p4", "p5"]),
        st.sampled_from([b"\x00\x00", b"\x01\x00", b"\x0f\x0f", b"\xff\xff"]),
        st.fixed_dictionaries({"sex": st.sampled_from("fm")}, optional={"age": st.just("50")}),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(
    people,
    st.sampled_from([{}, {"sex": "f"}, {"sex": "m", "age": "50"}, {"age": "50"}, {"none": "x"}]),
    st.none() | st.integers(0, 16),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_an_answer_rests_on_a_whole_bucket_or_is_empty(
    held: list[tuple[str, bytes, dict[str, str]]],
    filters: dict[str, str],
    radius: int | None,
    bucket: int,
    k: int,
) -> None:
    wanted = query(k=k, radius=radius, filters=filters)

    def patients(conditions: dict[str, str], but: str | None = None) -> set[str]:
        near = brute_force("a", [code for _, code, _ in held], replace(wanted, k=99))
        reached = {hit.handle for hit in near}
        return {
            patient
            for number, (patient, _, attributes) in enumerate(held)
            if handle("a", number) in reached
            and all(attributes.get(n) == v for n, v in conditions.items() if n != but)
            and (but is None or attributes.get(but) != conditions[but])
        }

    enough = len(patients(filters)) >= bucket and not any(
        0 < len(patients(filters, name)) < bucket for name in filters
    )
    with tempfile.TemporaryDirectory() as folder, archive(Path(folder), "a", held) as index:
        found = index.search(wanted, bucket)
        plain = index.search(wanted)
    assert found == (plain if enough or bucket == 1 else [])


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Archive]:
    held = [
        (f"p{n}", b"\x00\x00" if n < 4 else b"\xff\xff", {"sex": "fm"[n % 2]}) for n in range(5)
    ]
    with archive(tmp_path, "hospital-c", held) as made:
        yield made


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    with AuditLog(tmp_path / "audit.jsonl") as opened:
        yield opened


def entries(folder: Path) -> list[dict[str, object]]:
    return [entry.content for entry in read_audit_log(folder / "audit.jsonl")]


def test_answers_and_refusals_are_written_down(
    tmp_path: Path, index: Archive, log: AuditLog
) -> None:
    desk = QueryDesk(policy(), log.append)
    searcher = SiteSearcher("hospital-c", index, agreement(), smallest_kappa=0.0)
    found = desk.answer(signed(of=query(k=2)), lambda: searcher, NOW_MS)
    assert isinstance(found, Found)
    assert [hit.distance for hit in found.hits] == [0, 0]
    assert found.cut_to_bits == 4
    lone = desk.answer(signed(of=query(code=b"\xff\xff")), lambda: searcher, NOW_MS)
    assert lone == Found((), 4), "one patient is no bucket"
    refused = desk.answer(signed(of=query(k=11)), lambda: searcher, NOW_MS)
    assert isinstance(refused, Refusal)
    malformed = desk.answer(SignedQuery(b"\xff", bytes(64)), lambda: searcher, NOW_MS)
    assert isinstance(malformed, Refusal)
    assert [refused.reason, malformed.reason] == ["k_above_limit", "malformed"]
    written = entries(tmp_path)
    assert written[0]["handles"] == [hit.handle for hit in found.hits]
    assert (written[0]["requester"], written[0]["purpose"]) == ("hospital-a", "care")
    assert [each.get("refused") for each in written] == [None, None, "k_above_limit", "malformed"]
    assert "code" not in str(written).replace("decode", "").replace("byte form", "")
    assert desk.outcomes == {"answered": 2, "k_above_limit": 1, "malformed": 1}


def test_without_a_log_entry_there_is_no_answer(index: Archive, log: AuditLog) -> None:
    desk = QueryDesk(policy(), log.append)
    log.close()
    answer = desk.answer(signed(), lambda: SiteSearcher("hospital-c", index, agreement()), NOW_MS)
    assert answer == Refusal("not_recorded", "this site cannot write its audit log")


def test_a_closed_archive_is_a_refusal_that_tells_nothing(
    tmp_path: Path, index: Archive, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        from fedhash.errors import ArchiveError

        raise ArchiveError("/secret/path is damaged")

    monkeypatch.setattr(Archive, "search", broken)
    desk = QueryDesk(policy(), log.append)
    answer = desk.answer(signed(), lambda: SiteSearcher("hospital-c", index, agreement()), NOW_MS)
    assert isinstance(answer, Refusal)
    assert answer.reason == "failed"
    assert "/secret" not in answer.message + str(entries(tmp_path))


def test_a_flood_of_hostile_queries_does_not_fill_the_log(
    tmp_path: Path, log: AuditLog, index: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhash.index.answering._REFUSALS_WRITTEN", 20)
    desk = QueryDesk(policy(), log.append)
    searcher = SiteSearcher("hospital-c", index, agreement())
    for number in range(100):
        desk.answer(SignedQuery(bytes([number]), bytes(64)), lambda: searcher, NOW_MS)
    assert len(entries(tmp_path)) == 20
    desk.answer(signed(), lambda: searcher, NOW_MS)
    assert entries(tmp_path)[-1]["refusals_left_out"] == 80


def test_settling_waits_for_what_has_begun_and_for_nothing_later(
    tmp_path: Path, index: Archive, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = QueryDesk(policy(), log.append)
    searching, go_on, search = Event(), Event(), Archive.search

    def slow(*arguments: Any) -> Any:
        found = search(*arguments)
        if not searching.is_set():  # the first alone
            searching.set()
            assert go_on.wait(20)
        return found

    monkeypatch.setattr(Archive, "search", slow)
    searcher = SiteSearcher("hospital-c", index, agreement())

    def settled() -> int:
        desk.settle()
        return len(entries(tmp_path))

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(desk.answer, signed(), lambda: searcher, NOW_MS)
        assert searching.wait(20)
        index.remove_patient("p0")
        at_the_end = threads.submit(settled)
        with pytest.raises(TimeoutError):
            at_the_end.result(0.1)
        later = desk.answer(signed(), lambda: searcher, NOW_MS)
        go_on.set()
        gone = handle("hospital-c", 0)
        assert gone in {hit.handle for hit in first.result(20).hits}
        assert gone not in {hit.handle for hit in later.hits}
        assert at_the_end.result(20) == 2, "the answer was written down before it returned"
    desk.settle()


def test_the_site_s_own_users_have_no_bucket(index: Archive) -> None:
    own = SiteSearcher("hospital-c", index, agreement())
    assert len(own.answer(query(code=b"\xff\xff", radius=0)).hits) == 1


def test_a_query_made_for_one_filter_that_splits_off_one_patient_is_empty(index: Archive) -> None:
    wanted: Query = query(radius=0, filters={"sex": "f"})
    assert len(index.search(wanted, 2)) == 2
    assert index.search(wanted, 3) == []
