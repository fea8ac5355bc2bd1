"""The router's core: any order of sites, queries, answers and faults, against a plain model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedhash.errors import MessageError, ProtocolError, RefusedError
from fedhash.search import Hit, Query
from fedhash.search.allowance import Allowance
from fedhash.search.answers import Found, Gathered, Refusal
from fedhash.search.routing import Router, answer_fault
from fedhash.search.terms import RouterLimits
from fedhash.search.wire.answers import encode_answer, encode_holds, read_to_site
from fedhash.search.wire.queries import decode_query
from tests.search_consortium import (
    NOW_MS,
    RELEASE,
    SITES,
    agreement,
    asked,
    brute_force,
    handle,
    query,
)

HOSTILE_MESSAGES = int(os.environ.get("FEDHASH_HOSTILE_MESSAGES", "200"))
TERMS = agreement()
LIMITS = RouterLimits(queries_in_flight=3, queries_per_minute=1000, site_queue=2, site_window=2)
codes = st.sampled_from([b"\x00\x00", b"\x01\x00", b"\x00\x80", b"\xff\xff", b"\x0f\x0f"])


def attached(router: Router, site: str, release: str | None = RELEASE) -> int:
    stream = router.attach(site)
    router.received(stream, encode_holds(release))
    return stream


def outcomes(gathered: Gathered) -> dict[str, str]:
    return {each.site: each.outcome for each in gathered.sites}


@dataclass
class ModelQuery:
    """What the model knows of a query: the outcome of each site, or None while it is awaited."""

    asked: Query
    requester: str
    deadline_ms: int
    outcomes: dict[str, str | None] = field(default_factory=dict)
    cancelled: bool = False


class RouterMachine(RuleBasedStateMachine):
    """Sites come, go, answer honestly, lie and fall silent; the result is always explained."""

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.router = Router(TERMS, LIMITS)
        self.codes = {site: data.draw(st.lists(codes, max_size=6), label=site) for site in SITES}
        self.now_ms = NOW_MS
        self.streams: dict[str, int] = {}
        self.releases: dict[str, str | None] = {}
        self.owed: dict[str, dict[int, int]] = {}  # site: number on the stream to ticket
        self.waiting: dict[str, list[int]] = {}  # site: tickets in its queue
        self.queries: dict[int, ModelQuery] = {}
        self.ever: dict[int, ModelQuery] = {}  # finished ones too: a site may still answer them

    def alive(self) -> dict[int, ModelQuery]:
        return {
            ticket: each
            for ticket, each in self.queries.items()
            if not each.cancelled and None in each.outcomes.values()
        }

    def leave(self, site: str) -> None:
        for each in self.queries.values():
            if each.outcomes.get(site, "") is None and not each.cancelled:
                each.outcomes[site] = "left"

    @rule(site=st.sampled_from(SITES), release=st.sampled_from([RELEASE, "other", None]))
    def attach(self, site: str, release: str | None) -> None:
        if site in self.streams:
            self.leave(site)
        self.streams[site] = attached(self.router, site, release)
        self.releases[site], self.owed[site], self.waiting[site] = release, {}, []

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        site = data.draw(st.sampled_from(sorted(self.streams)))
        self.router.detach(self.streams.pop(site))
        self.leave(site)

    @rule(
        requester=st.sampled_from(SITES),
        k=st.integers(1, 8),
        radius=st.none() | st.integers(0, 16),
        life_ms=st.integers(1, 3000),
    )
    def ask(self, requester: str, k: int, radius: int | None, life_ms: int) -> None:
        of = query(k=k, radius=radius)
        data = asked(requester, TERMS, of=of, now_ms=self.now_ms, life_ms=life_ms)
        under_way = [q for q in self.alive().values() if q.requester == requester]
        if len(under_way) >= LIMITS.queries_in_flight:
            with pytest.raises(RefusedError, match="wait for an answer"):
                self.router.ask(requester, data, self.now_ms)
            return
        ticket = self.router.ask(requester, data, self.now_ms)
        model = ModelQuery(of, requester, self.now_ms + life_ms)
        for site in SITES:
            if site not in self.streams:
                model.outcomes[site] = "not_attached"
            elif self.releases[site] != RELEASE:
                model.outcomes[site] = "other_release"
            elif len(self.live_queue(site)) >= LIMITS.site_queue:
                model.outcomes[site] = "busy"
            else:
                model.outcomes[site] = None
                self.waiting[site].append(ticket)
        self.queries[ticket] = self.ever[ticket] = model

    def live_queue(self, site: str) -> list[int]:
        return [ticket for ticket in self.waiting[site] if ticket in self.alive()]

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        site = data.draw(st.sampled_from(sorted(self.streams)))
        queue, owed = self.live_queue(site), self.owed[site]
        sent = self.router.next_for(self.streams[site])
        if not queue or len(owed) >= LIMITS.site_window:
            assert sent is None
            return
        number, signed = read_to_site(sent)
        assert decode_query(signed.content).query.k == self.queries[queue[0]].asked.k
        assert number not in owed
        owed[number] = queue[0]
        self.waiting[site] = queue[1:]

    @precondition(lambda self: any(self.owed.values()))
    @rule(data=st.data(), how=st.sampled_from(["honest", "honest", "refuse", "lie", "again"]))
    def answer(self, data: st.DataObject, how: str) -> None:
        sites = [site for site in sorted(self.streams) if self.owed[site]]
        if not sites:
            return
        site = data.draw(st.sampled_from(sites))
        number = data.draw(st.sampled_from(sorted(self.owed[site])))
        ticket = self.owed[site].pop(number)
        model = self.ever[ticket]
        honest = Found(tuple(brute_force(site, self.codes[site], model.asked)))
        content: Found | Refusal = honest
        outcome = "answered"
        if how == "refuse":
            content, outcome = Refusal("k_above_limit", "no"), "refused"
        elif how == "lie":
            content, outcome = lie(data.draw(LIES), site, honest, model.asked), "invalid"
        message = encode_answer(number, content)
        self.router.received(self.streams[site], message)
        if how == "again":  # the number is no more owed: counted and dropped
            self.router.received(self.streams[site], message)
        if ticket in self.alive() and model.outcomes[site] is None:
            model.outcomes[site] = outcome

    @precondition(lambda self: self.alive())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.alive())))
        self.router.cancel(ticket)
        self.queries[ticket].cancelled = True

    @rule(passed_ms=st.integers(0, 2000))
    def wait(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.router.expire(self.now_ms)
        for model in self.alive().values():
            if self.now_ms >= model.deadline_ms:
                model.outcomes = {s: o or "late" for s, o in model.outcomes.items()}

    @invariant()
    def results_are_those_of_one_index(self) -> None:
        assert self.router.under_way == len(self.alive())
        for ticket, gathered in self.router.take_finished():
            model = self.queries.pop(ticket)
            assert not model.cancelled
            assert outcomes(gathered) == model.outcomes
            one_index = [
                hit
                for site, outcome in model.outcomes.items()
                if outcome == "answered"
                for hit in brute_force(site, self.codes[site], replace(model.asked, k=1000))
            ]
            expected = sorted(one_index, key=lambda hit: hit.rank)[: model.asked.k]
            assert list(gathered.merged(model.asked.k).hits) == expected
        for ticket, model in self.queries.items():
            assert model.cancelled or None in model.outcomes.values(), ticket

    def teardown(self) -> None:
        self.now_ms += 10_000
        if hasattr(self, "router"):
            self.wait(0)
            self.results_are_those_of_one_index()
            assert self.router.under_way == 0


# Drawn by name: checked types draw at random, which Hypothesis refuses within a strategy.
LIES = st.sampled_from(["many", "twice", "unsorted", "far", "low", "high", "cut"])


def lie(kind: str, site: str, honest: Found, of: Query) -> Found:
    """An answer that no honest site gives."""
    if kind == "many":
        return Found(tuple(Hit(site, handle(site, n), 0, 8) for n in range(of.k + 1)))
    if kind == "twice" and honest.hits:
        first = honest.hits[0]
        return Found((first, first))
    if kind == "unsorted" and len(honest.hits) > 1:
        return Found(honest.hits[::-1])
    if kind == "far":
        return Found((Hit(site, handle(site, 0), 17, 0),))
    if kind == "cut" and of.radius is not None:
        return Found(honest.hits, of.radius)
    return Found((Hit(site, handle(site, 0), 0, -1000 if kind == "low" else 1000),))


RouterMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
TestRouter = RouterMachine.TestCase


def test_two_sites_are_merged_and_the_third_is_named() -> None:
    router = Router(TERMS, LIMITS)
    streams = {site: attached(router, site) for site in SITES[:2]}
    ticket = router.ask("hospital-a", asked(), NOW_MS)
    held = {site: [b"\x00\x00", b"\x01\x00"] for site in streams}
    for site, stream in streams.items():
        number, signed = read_to_site(router.next_for(stream))
        wanted = decode_query(signed.content).query
        assert router.next_for(stream) is None
        answer = Found(tuple(brute_force(site, held[site], wanted)))
        router.received(stream, encode_answer(number, answer))
    ((finished, gathered),) = router.take_finished()
    assert finished == ticket
    merged = gathered.merged(query().k)
    assert [hit.distance for hit in merged.hits] == [0, 0, 1, 1]
    assert [each.site for each in merged.missing] == ["hospital-c"]


def test_a_new_stream_of_a_site_takes_the_place_of_the_old_one() -> None:
    router = Router(TERMS, LIMITS)
    old = attached(router, "hospital-a")
    router.ask("hospital-b", asked("hospital-b"), NOW_MS)
    new = attached(router, "hospital-a")
    ((_, gathered),) = router.take_finished()
    assert outcomes(gathered)["hospital-a"] == "left"
    with pytest.raises(ProtocolError, match="replaced by a newer one"):
        router.next_for(old)
    with pytest.raises(ProtocolError, match="replaced by a newer one"):
        router.received(old, encode_holds(RELEASE))
    router.detach(old)
    assert router.next_for(new) is None
    assert [each.site for each in router.attached()] == ["hospital-a"]


def test_a_site_that_stopped_answering_gets_no_more() -> None:
    router = Router(TERMS, LIMITS)
    stream = attached(router, "hospital-a")
    now = NOW_MS
    for outcome in ("late", "late", "late", "late"):
        router.ask("hospital-b", asked("hospital-b", now_ms=now, life_ms=10), now)
        router.next_for(stream)
        now += 10
        router.expire(now)
        ((_, gathered),) = router.take_finished()
        assert outcomes(gathered)["hospital-a"] == outcome
    (site,) = router.attached()
    assert (site.unanswered, site.queued) == (LIMITS.site_window, 0)


@pytest.mark.parametrize(
    ("reason", "requester", "data"),
    [
        ("not_the_requester", "hospital-b", asked("hospital-a")),
        ("bad_signature", "hospital-a", asked("hospital-a", key="hospital-b")),
        ("unknown_requester", "hospital-z", asked("hospital-z")),
        ("other_agreement", "hospital-a", asked(terms=agreement(version=2))),
        ("unknown_purpose", "hospital-a", asked(purpose="marketing")),
        ("purpose_not_allowed", "hospital-b", asked("hospital-b", purpose="research")),
        ("purpose_not_allowed", "coordinator", asked("coordinator", purpose="care")),
        ("late", "hospital-a", asked(now_ms=NOW_MS - 10_000)),
        ("clock", "hospital-a", asked(now_ms=NOW_MS + 5001)),
    ],
)
def test_a_query_that_breaks_a_rule_goes_nowhere(reason: str, requester: str, data: bytes) -> None:
    router = Router(TERMS, LIMITS)
    stream = attached(router, "hospital-c")
    with pytest.raises(RefusedError) as refused:
        router.ask(requester, data, NOW_MS)
    assert refused.value.reason == reason
    assert router.next_for(stream) is None
    assert router.under_way == 0


def test_the_coordinator_may_ask_for_what_the_agreement_says() -> None:
    router = Router(TERMS, LIMITS)
    router.ask("coordinator", asked("coordinator", purpose="research"), NOW_MS)
    without = agreement(search=None)
    with pytest.raises(RefusedError, match="no section search"):
        Router(without, LIMITS).ask("hospital-a", asked(terms=without), NOW_MS)


def test_only_sites_of_the_agreement_attach() -> None:
    with pytest.raises(RefusedError, match="lists no site 'hospital-z'"):
        Router(TERMS, LIMITS).attach("hospital-z")


def test_a_requester_has_so_many_queries_a_minute() -> None:
    router = Router(TERMS, RouterLimits(queries_per_minute=2))
    for _ in range(2):
        router.ask("hospital-a", asked(), NOW_MS)
    with pytest.raises(RefusedError, match="more than 2 queries a minute"):
        router.ask("hospital-a", asked(), NOW_MS)
    router.ask("hospital-b", asked("hospital-b"), NOW_MS)
    router.ask("hospital-a", asked(now_ms=NOW_MS + 30_000), NOW_MS + 30_000)


@given(st.integers(1, 5), st.integers(1, 50), st.lists(st.integers(0, 30), max_size=40))
def test_an_allowance_gives_at_most_twice_its_count_in_a_window(
    count: int, window_ms: int, steps: list[int]
) -> None:
    allowance, now, taken = Allowance(count, window_ms), 0, []
    for step in steps:
        now += step
        if allowance.take(now):
            taken.append(now)
    for start in taken:
        assert sum(start <= each < start + window_ms for each in taken) <= 2 * count


@given(
    st.lists(st.integers(-4096, 4096), min_size=16, max_size=16),
    st.binary(min_size=2, max_size=2),
    st.lists(st.binary(min_size=2, max_size=2), max_size=20),
)
def test_honest_answers_have_no_fault(weights: list[int], code: bytes, held: list[bytes]) -> None:
    of = query(code=code, weights=np.array(weights, dtype=np.int16), k=10)
    assert answer_fault(of, Found(tuple(brute_force("hospital-a", held, of)))) is None


@settings(max_examples=HOSTILE_MESSAGES, deadline=None)
@given(st.binary(max_size=200), st.booleans(), st.integers(0, 300), st.integers(0, 255))
def test_hostile_messages_to_the_core(noise: bytes, fresh: bool, position: int, flip: int) -> None:
    """From a site and from an asker: refused by type, and the honest site's answer arrives."""
    router = Router(TERMS, LIMITS)
    hostile, honest = (attached(router, site) for site in SITES[:2])
    data = asked("hospital-b")
    changed = bytearray(data)
    changed[position % len(changed)] ^= flip or 1
    for sent in (noise, bytes(changed)):
        with pytest.raises((MessageError, RefusedError)):
            router.ask("hospital-b", sent, NOW_MS)
    router.ask("hospital-b", data, NOW_MS)
    if fresh:
        router.next_for(hostile)
    try:
        router.received(hostile, noise)
    except MessageError:
        router.detach(hostile)
    number, _ = read_to_site(router.next_for(honest))
    router.received(honest, encode_answer(number, Found((Hit("x", handle("x", 1), 0, 8),))))
    router.expire(NOW_MS + 10_000)
    ((_, gathered),) = router.take_finished()
    assert outcomes(gathered)["hospital-b"] == "answered"
    assert [hit.site for hit in gathered.merged(5).hits] == ["hospital-b"]


def test_a_clock_that_was_far_ahead_keeps_nobody_waiting_for_that_time() -> None:
    allowance = Allowance(count=2, window_ms=1000)
    year_ms = 365 * 86_400_000
    assert [allowance.take(year_ms) for _ in range(3)] == [True, True, False]
    assert not allowance.take(0), "to set a clock back gives nothing"
    assert allowance.take(500)
    assert not allowance.take(600)
