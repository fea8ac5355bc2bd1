"""The query router without its network: who is attached, what is under way, what came back.

1. A site is known by its certificate, never by what it says. A new stream of a site takes the place
   of its former one. A site says which release it holds; codes of another one are never sent to it.
2. A requester is known by its certificate and may ask so many queries a minute and at a time; that
   is looked at before a query is read. The query must be signed by the same one, and be of the
   router's agreement. Sites check all of that again: they need not trust a router.
3. A query goes to all sites that hold its release. A site has `site_window` unanswered queries at
   most, and `site_queue` that wait; a site whose queue is full is `busy`, and the query goes on
   without it. A query that is over leaves its queue, and still counts in the window until the site
   answers: a site that stopped working gets no more.
4. A query ends when every site has answered or is out of reach, or at its deadline. What the sites
   that answered gave is passed on whole, under their signatures, for the asker to merge; every
   other site stands in the result with its outcome.
5. A site's answer counts once, for a query that was sent to it, and as a whole: at most k hits
   within the radius, in order, no study twice, with scores that the distance allows. Else it is
   `invalid` and the query goes on without it. Its signature is the asker's to check. Answers to
   anything else are counted and dropped.
6. Everything held is bounded by these limits and the number of members.

Time is passed in, and nothing here waits: after each call the caller sends what `next_for` gives
for each stream, and returns what `take_finished` gives.

    >>> stream = router.attach("hospital-a"); router.received(stream, encode_holds(release_id))
    >>> ticket = router.ask("hospital-b", signed_bytes, now_ms)
    >>> router.next_for(stream)          # the bytes for hospital-a, or None
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedhash.agreement import Agreement
from fedhash.codes import unpack_signs
from fedhash.errors import ProtocolError, RefusedError
from fedhash.search.allowance import Allowance
from fedhash.search.answers import Found, Gathered, Outcome, Refusal, SiteResult
from fedhash.search.asking import check_times, open_query
from fedhash.search.hit import Hit
from fedhash.search.query import Query
from fedhash.search.terms import RouterLimits
from fedhash.search.wire.answers import Answer, Holds, encode_to_site, read_from_site
from fedhash.search.wire.queries import AskedQuery, SignedQuery, decode_signed

__all__ = ["AttachedSite", "Router", "answer_fault"]


@dataclass(slots=True, eq=False)
class _Ticket:
    number: int
    requester: str
    asked: AskedQuery
    signed: SignedQuery
    waiting: set[str] = field(default_factory=set)
    results: dict[str, SiteResult] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)
    over: bool = False


@dataclass(slots=True, eq=False)
class _Stream:
    number: int
    site: str
    release: str | None = None
    queue: deque[_Ticket] = field(default_factory=deque)
    sent: dict[int, _Ticket] = field(default_factory=dict)
    count: int = 0
    strange_answers: int = 0
    invalid_answers: int = 0


@dataclass(frozen=True, slots=True)
class AttachedSite:
    """What a router tells of a site: release, queries that wait, that it works on, and faults."""

    site: str
    release: str | None
    queued: int
    unanswered: int
    invalid_answers: int
    strange_answers: int


class Router:
    """The router of one consortium.

    Attributes:
        agreement: What is agreed upon; the caller may exchange it for its successor.

    Args:
        agreement: The agreement that holds now.
        limits: What the router takes on.
    """

    def __init__(self, agreement: Agreement, limits: RouterLimits) -> None:
        self.agreement = agreement
        self._limits = limits
        self._streams: dict[int, _Stream] = {}
        self._of_site: dict[str, _Stream] = {}
        self._tickets: dict[int, _Ticket] = {}
        self._rates: dict[str, Allowance] = {}
        self._finished: list[tuple[int, Gathered]] = []
        self._counter = 0

    def attach(self, site: str) -> int:
        """A site opened a stream; its number, which the site's former stream loses.

        Raises:
            RefusedError: The agreement does not list the site ("unknown_site").
        """
        if site not in self.agreement.sites:
            raise RefusedError("unknown_site", f"the agreement lists no site {site!r}; enrol it")
        former = self._of_site.get(site)
        if former is not None:
            self.detach(former.number)
        self._counter += 1
        stream = _Stream(self._counter, site)
        self._streams[stream.number] = self._of_site[site] = stream
        return stream.number

    def detach(self, stream_number: int) -> None:
        """A stream ended; what it was asked goes on without it. Calling it twice does no harm."""
        stream = self._streams.pop(stream_number, None)
        if stream is None:
            return
        del self._of_site[stream.site]
        for ticket in [*stream.queue, *stream.sent.values()]:
            self._settle(ticket, stream.site, "left")

    def ask(self, requester: str, data: bytes, now_ms: int) -> int:
        """Take on a query; its ticket.

        Args:
            requester: Whom the certificate names.
            data: The signed query.
            now_ms: Unix time.

        Raises:
            MessageError: It is no query.
            RefusedError: A rule forbids it; `reason` names the rule.
        """
        self._check_rate(requester, now_ms)
        signed = decode_signed(data)
        terms = self.agreement.search
        if terms is None:
            raise RefusedError(
                "no_search", "the agreement has no section search, so no site answers another one"
            )
        keys = terms.askers(self.agreement.sites)
        asked = open_query(signed, self.agreement.digest(), keys)
        if asked.requester != requester:
            raise RefusedError(
                "not_the_requester",
                f"the query is of {asked.requester!r}, the certificate of {requester!r}",
            )
        terms.check_purpose(requester, asked.purpose)
        check_times(asked, now_ms)
        self._counter += 1
        ticket = _Ticket(self._counter, requester, asked, signed)
        self._tickets[ticket.number] = ticket
        for site in self.agreement.sites:
            self._fan_out(ticket, site)
        self._finish_if_done(ticket)
        return ticket.number

    def deadline_ms(self, ticket_number: int) -> int:
        """When a query ends at the latest; 0 where it has ended."""
        ticket = self._tickets.get(ticket_number)
        return 0 if ticket is None else ticket.asked.deadline_ms

    def cancel(self, ticket_number: int) -> None:
        """The asker has gone; nothing of the query is finished any more."""
        ticket = self._tickets.pop(ticket_number, None)
        if ticket is not None:
            self._forget(ticket)

    def received(self, stream_number: int, data: bytes) -> None:
        """A message of a site.

        Raises:
            MessageError: It is none; the caller ends the stream.
            ProtocolError: The stream is no more the site's.
        """
        stream = self._stream(stream_number)
        message = read_from_site(data, stream.site)
        if isinstance(message, Holds):
            stream.release = message.release
        else:
            self._answered(stream, message)

    def next_for(self, stream_number: int) -> bytes | None:
        """The next message for a site, or None while it has enough to do.

        Raises:
            ProtocolError: The stream is no more the site's.
        """
        stream = self._stream(stream_number)
        if not stream.queue or len(stream.sent) >= self._limits.site_window:
            return None
        ticket = stream.queue.popleft()
        stream.count += 1
        stream.sent[stream.count] = ticket
        return encode_to_site(stream.count, ticket.signed)

    def expire(self, now_ms: int) -> None:
        """End the queries whose deadline has passed."""
        for ticket in list(self._tickets.values()):
            if now_ms >= ticket.asked.deadline_ms:
                for site in sorted(ticket.waiting):
                    self._settle(ticket, site, "late")

    def take_finished(self) -> list[tuple[int, Gathered]]:
        """Tickets that ended since the last call, with their results."""
        finished, self._finished = self._finished, []
        return finished

    def attached(self) -> tuple[AttachedSite, ...]:
        """The sites that have a stream, sorted by name."""
        return tuple(
            AttachedSite(
                stream.site,
                stream.release,
                len(stream.queue),
                len(stream.sent),
                stream.invalid_answers,
                stream.strange_answers,
            )
            for _, stream in sorted(self._of_site.items())
        )

    @property
    def under_way(self) -> int:
        """Queries that have not ended."""
        return len(self._tickets)

    def _check_rate(self, requester: str, now_ms: int) -> None:
        at_once = sum(ticket.requester == requester for ticket in self._tickets.values())
        if at_once >= self._limits.queries_in_flight:
            raise RefusedError(
                "too_many_in_flight",
                f"{at_once} queries of {requester!r} are under way, at most "
                f"{self._limits.queries_in_flight} are taken on; wait for an answer",
            )
        rate = self._rates.get(requester)
        if rate is None:  # whoever has a certificate: as many as the consortium has members
            rate = Allowance(self._limits.queries_per_minute, 60_000)
            self._rates[requester] = rate
        if not rate.take(now_ms):
            raise RefusedError(
                "too_many_queries",
                f"{requester!r} asked more than {self._limits.queries_per_minute} queries a "
                "minute; wait a moment",
            )

    def _fan_out(self, ticket: _Ticket, site: str) -> None:
        stream = self._of_site.get(site)
        if stream is None:
            ticket.results[site] = SiteResult(site, "not_attached")
        elif stream.release != ticket.asked.query.release_id:
            ticket.results[site] = SiteResult(site, "other_release", stream.release or "")
        elif len(stream.queue) >= self._limits.site_queue:
            ticket.results[site] = SiteResult(site, "busy")
        else:
            ticket.waiting.add(site)
            stream.queue.append(ticket)

    def _answered(self, stream: _Stream, answer: Answer) -> None:
        ticket = stream.sent.pop(answer.number, None)
        if ticket is None:
            stream.strange_answers += 1
            return
        if ticket.over:
            return
        content = answer.content
        if isinstance(content, Refusal):
            self._settle(ticket, stream.site, "refused", content.reason)
        elif answer_fault(ticket.asked.query, content) is not None:
            stream.invalid_answers += 1
            self._settle(ticket, stream.site, "invalid")
        else:
            ticket.found[stream.site] = content
            result = SiteResult(stream.site, "answered", "", len(content.hits), content.cut_to_bits)
            self._record(ticket, result)

    def _settle(self, ticket: _Ticket, site: str, outcome: Outcome, reason: str = "") -> None:
        """The site gives this query no hits."""
        if site in ticket.waiting:
            self._record(ticket, SiteResult(site, outcome, reason))

    def _record(self, ticket: _Ticket, result: SiteResult) -> None:
        ticket.waiting.discard(result.site)
        ticket.results[result.site] = result
        self._finish_if_done(ticket)

    def _finish_if_done(self, ticket: _Ticket) -> None:
        if ticket.waiting or ticket.over:
            return
        del self._tickets[ticket.number]
        self._forget(ticket)
        sites = tuple(ticket.results[site] for site in sorted(ticket.results))
        self._finished.append((ticket.number, Gathered(sites, ticket.found)))

    def _forget(self, ticket: _Ticket) -> None:
        """Out of all queues; a site that was sent it still owes an answer."""
        ticket.over = True
        ticket.waiting.clear()
        for stream in self._streams.values():
            if ticket in stream.queue:
                stream.queue.remove(ticket)

    def _stream(self, number: int) -> _Stream:
        stream = self._streams.get(number)
        if stream is None:
            raise ProtocolError("this stream was replaced by a newer one of the same site")
        return stream


def answer_fault(query: Query, found: Found) -> str | None:
    """What no honest site would answer, or None."""
    bits = 8 * len(query.code)
    radius = bits if query.radius is None else query.radius
    if (cut := found.cut_to_bits) is not None:
        if query.radius is not None and cut >= radius:
            return f"its own radius {cut} does not cut the query's {radius}"
        radius = min(radius, cut)
    hits = found.hits
    if len(hits) > query.k:
        return f"{len(hits)} hits, {query.k} were asked for"
    in_order = all(hits[i].rank < hits[i + 1].rank for i in range(len(hits) - 1))
    if not in_order or len({hit.handle for hit in hits}) != len(hits):
        return "its hits are out of order, or a study stands twice"
    if hits and hits[-1].distance > radius:
        return f"a hit at {hits[-1].distance} bits, the radius is {radius}"
    return _score_fault(query, hits)


def _score_fault(query: Query, hits: Sequence[Hit]) -> str | None:
    """A score that no code at its distance has: a bit that differs costs twice its gain."""
    signs = unpack_signs(np.frombuffer(query.code, dtype=np.uint8)[None])[0]
    gains = np.sort(signs * query.weights.astype(np.int64))
    smallest = np.concatenate([[0], np.cumsum(gains)]).tolist()  # sums of the smallest gains
    bits, whole = len(gains), smallest[-1]
    for hit in hits:
        most = whole - 2 * smallest[hit.distance]
        least = 2 * smallest[bits - hit.distance] - whole
        if not least <= hit.score <= most:
            return f"a score of {hit.score} at {hit.distance} bits, expected {least} to {most}"
    return None
