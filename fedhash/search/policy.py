"""What a site answers to others: its own gate, before any search.

The rules, in this order; the first one that is broken names the refusal.

 1. The query is in its one byte form and within bounds                     malformed
 2. It is of the agreement that this site signed                            other_agreement
 3. Its asker has a key in the agreement and signed every byte of it        unknown_requester,
                                                                            bad_signature
 4. It is not over, not from the future, not from before this site began    late, clock,
                                                                            too_old, own_clock
 5. It was not answered before                                              replayed
 6. The asker has not used up its queries of the hour                       too_many_queries
 7. The agreement knows the purpose, and lets this asker ask for it         unknown_purpose,
                                                                            purpose_not_allowed
 8. The site's own file answers for it                                      purpose_not_answered
 9. k is within the agreement's and the site's largest_k                    k_above_limit
10. The modality and the length of the code are the agreement's             unknown_modality,
                                                                            other_code_length
11. It is of the release whose codes the site holds                         no_release,
                                                                            other_release

Nothing of a query is acted upon before rule 3: a router can neither invent nor alter one, and rule
5 keeps it from repeating one. Rule 4 makes nonces forgettable: a site that restarted has forgotten
them, and refuses what was asked before; one whose clock is set back refuses what is as old as the
nonces that it forgot. Where the site's own clock is before either, it was ahead, or was set back:
all is refused (own_clock), for what was answered before could pass as new, and a restart under the
right clock mends it. (An asker whose clock is ahead could be asked for twice
across a restart, by a router that lies; it would get the answer that it got.)

Then the site searches within its own radius (`fedhash.index.searcher`) and looks at the **bucket**:
the patients with a study of that modality, within the radius and the filters. The answer is empty,
as if nothing were there, if

 a. they are fewer than `smallest_bucket`, or
 b. one of the filters takes away from them some patients but fewer than `smallest_bucket`: else two
    answers, with the filter and without it, would differ by those and tell their attribute.

What this protects: no single answer says of fewer than that many patients that they share a
neighbourhood and attributes, and an empty answer does not say which of "none", a and b it was.

What it does not: **a filter tells of each hit that it has the value.** The bucket counts patients
within the radius, while an answer lists k hits with handles, the same in every answer: who has a
study's handle asks once with a filter and a wide radius, and sees whether it is among the hits.
(Other handles for each query would change nothing: to the same code and weights a study has the
same distance and score in every answer, and chosen weights make the score as good as a name.)
Hits carry distances, so one lone study is seen by whoever asks with a radius that
takes in enough others; a site bounds that by `smallest_kappa`. Several answers, over other radii,
over all values of an attribute but one, over conjunctions, or before and after a patient withdrew,
can be subtracted from each other. How long an answer takes may depend on what is there. A hit's
score tells bits of its code to an asker that chooses the weights. Against that are left the rates
and the log: members of a consortium are known by name.

Consent: the archive holds studies of consenting patients alone. It loses a patient who withdraws,
and a study whose row in the manifest says no, before the next query is answered.

Time is passed in.

    >>> policy = QueryPolicy(agreement, limits, started_ms=now_ms)
    >>> policy.admit(signed, release_id, now_ms).requester
    'hospital-b'
"""

from __future__ import annotations

from collections import deque

from fedhash.agreement import Agreement
from fedhash.errors import RefusedError
from fedhash.search.allowance import Allowance
from fedhash.search.asking import CLOCK_TOLERANCE_MS, check_times, open_query
from fedhash.search.query import Query
from fedhash.search.terms import QueryLimits, SearchTerms
from fedhash.search.wire.queries import LONGEST_LIFE_MS, AskedQuery, SignedQuery

__all__ = ["QueryPolicy"]

_HOUR_MS = 3_600_000


class QueryPolicy:
    """One site's gate.

    Attributes:
        smallest_bucket: The larger of the agreement's and the site's.

    Args:
        agreement: What the site signed.
        limits: The section `queries` of the site's file.
        started_ms: Unix time when the site began to answer.

    Raises:
        RefusedError: The agreement has no section `search` ("no_search").
    """

    def __init__(self, agreement: Agreement, limits: QueryLimits, *, started_ms: int) -> None:
        if agreement.search is None:
            raise RefusedError(
                "no_search",
                "the agreement has no section search, so nobody may ask this site; agree on one, "
                "or remove the section queries from the site's file",
            )
        self._terms: SearchTerms = agreement.search
        self._agreement = agreement
        self._digest = agreement.digest()
        self._keys = self._terms.askers(agreement.sites)
        self._limits = limits
        self._since_ms = started_ms
        self._rates: dict[str, Allowance] = {}
        self._nonces: set[tuple[str, bytes]] = set()
        self._forget: deque[tuple[int, tuple[str, bytes]]] = deque()
        self.smallest_bucket = max(self._terms.smallest_bucket, limits.smallest_bucket)

    def admit(self, signed: SignedQuery, release_id: str | None, now_ms: int) -> AskedQuery:
        """The query, if the site answers it.

        Args:
            signed: What came in.
            release_id: The release whose codes the site holds, or None.
            now_ms: Unix time.

        Raises:
            MessageError: Rule 1 is broken.
            RefusedError: Another one is.
        """
        asked = open_query(signed, self._digest, self._keys)
        check_times(asked, now_ms)
        if now_ms < self._since_ms:
            raise RefusedError(
                "own_clock",
                f"this site's clock was set back, or was ahead before: it is "
                f"{(self._since_ms - now_ms) / 1000:.0f} s before what the site knows to be over. "
                "Have the site check its clock and restart its daemon; nothing is to be deleted",
            )
        if asked.asked_at_ms < self._since_ms:
            raise RefusedError(
                "too_old", "the query is from before this site began to answer; ask again"
            )
        self._check_first_time(asked, now_ms)
        self._terms.check_purpose(asked.requester, asked.purpose)
        if asked.purpose not in self._limits.purposes:
            raise RefusedError(
                "purpose_not_answered",
                f"this site answers for {', '.join(self._limits.purposes)}, "
                f"not for {asked.purpose!r}",
            )
        self._check_query(asked.query, release_id)
        return asked

    def _check_first_time(self, asked: AskedQuery, now_ms: int) -> None:
        """Rules 5 and 6. Only what the rate lets through is remembered, so that is bounded too."""
        while self._forget and self._forget[0][0] <= now_ms:
            forgotten_ms, nonce = self._forget.popleft()
            self._nonces.discard(nonce)
            # its query was asked before; if the clock is set back it must not pass as new
            self._since_ms = max(self._since_ms, forgotten_ms - LONGEST_LIFE_MS + 1)
        nonce = (asked.requester, asked.nonce)
        if nonce in self._nonces:
            raise RefusedError(
                "replayed", "this very query was answered before; sign a new one to ask again"
            )
        most = min(self._terms.queries_per_hour, self._limits.queries_per_hour)
        rate = self._rates.setdefault(asked.requester, Allowance(most, _HOUR_MS))
        if not rate.take(now_ms):
            raise RefusedError(
                "too_many_queries",
                f"{asked.requester!r} asked this site more than {most} queries an hour; wait",
            )
        self._nonces.add(nonce)
        # a query may be this much ahead of the clock here, and then lives this long
        self._forget.append((now_ms + CLOCK_TOLERANCE_MS + LONGEST_LIFE_MS, nonce))

    def _check_query(self, query: Query, release_id: str | None) -> None:
        most = min(self._agreement.largest_k, self._limits.largest_k)
        if query.k > most:
            raise RefusedError(
                "k_above_limit", f"the query asks for {query.k} hits, this site gives {most}"
            )
        if query.modality not in self._agreement.modalities:
            raise RefusedError(
                "unknown_modality",
                f"the query searches {query.modality!r}; the agreement knows "
                f"{', '.join(self._agreement.modalities)}",
            )
        if 8 * len(query.code) != self._agreement.code_bits:
            raise RefusedError(
                "other_code_length",
                f"the query's code has {8 * len(query.code)} bits, expected "
                f"{self._agreement.code_bits}",
            )
        if release_id is None:
            raise RefusedError("no_release", "this site has no index yet; ask later")
        if query.release_id != release_id:
            raise RefusedError(
                "other_release",
                f"the query is of release {query.release_id[:12]}, this site holds "
                f"{release_id[:12]}; encode the example with that one",
            )
