"""A site answering other sites: the policy, the search, and the audit log.

1. Every query is decided by `fedhash.search.policy` before anything is searched.
2. What is answered, and to whom for what, is on the disk before the answer leaves. An answer that
   cannot be written down is not given (`not_recorded`).
3. An entry names the query by the SHA-256 of what was signed, and holds the handles of the answer;
   no code, no attribute of a patient, nothing of a report.
4. Refusals are written down as well, but only so many an hour, for a router can cause any number;
   what was left out is counted in the next entry.
5. The archive is looked up after an answer has begun, and `settle` waits for all that have. So once
   it returns, no answer is still to come that rests on the archive of before the call.

    >>> desk = QueryDesk(policy, log.append)
    >>> desk.answer(signed, lambda: searcher, now_ms)
    Found(hits=(Hit(...),), cut_to_bits=None)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from threading import Condition, Lock

from fedhash.audit_log import AuditEntry
from fedhash.errors import AuditError, FedhashError, MessageError, RefusedError, StorageError
from fedhash.index.searcher import SiteSearcher
from fedhash.printable import printable
from fedhash.rounds.messages import Json
from fedhash.search.allowance import Allowance
from fedhash.search.answers import Found, Refusal
from fedhash.search.asking import query_digest
from fedhash.search.policy import QueryPolicy
from fedhash.search.wire.queries import AskedQuery, SignedQuery

__all__ = ["QueryDesk"]

_REFUSALS_WRITTEN = 600
_HOUR_MS = 3_600_000


class QueryDesk:
    """Answers queries, from any thread.

    Args:
        policy: The site's gate.
        note: Writes an entry into the site's audit log (`AuditLog.append`).
    """

    def __init__(self, policy: QueryPolicy, note: Callable[[dict[str, Json]], AuditEntry]) -> None:
        self._policy = policy
        self._note = note
        self._deciding = Lock()
        self._ended = Condition()
        self._under_way: set[int] = set()
        self._begun = 0
        self._outcomes: Counter[str] = Counter()
        self._refusals = Allowance(_REFUSALS_WRITTEN, _HOUR_MS)
        self._left_out = 0

    @property
    def outcomes(self) -> dict[str, int]:
        """How many queries were "answered", and how many refused by which rule."""
        with self._deciding:
            return dict(self._outcomes)

    def answer(
        self, signed: SignedQuery, current: Callable[[], SiteSearcher | None], now_ms: int
    ) -> Found | Refusal:
        """The site's answer; every fault is a refusal.

        Args:
            signed: What came in.
            current: Looks up the archive of the release that the site answers with, or None.
            now_ms: Unix time.
        """
        with self._ended:
            self._begun += 1
            number = self._begun
            self._under_way.add(number)
        try:
            return self._answer(signed, current(), now_ms)
        finally:
            with self._ended:
                self._under_way.remove(number)
                self._ended.notify_all()

    def settle(self) -> None:
        """Wait for the answers that have begun, and for none that begins meanwhile.

        Each of them is in the audit log then, or refused.
        """
        with self._ended:
            begun = set(self._under_way)
            self._ended.wait_for(lambda: begun.isdisjoint(self._under_way))

    def _answer(
        self, signed: SignedQuery, searcher: SiteSearcher | None, now_ms: int
    ) -> Found | Refusal:
        release_id = None if searcher is None else searcher.archive.release_id
        asked: AskedQuery | None = None
        answer: Found | Refusal
        try:
            with self._deciding:
                asked = self._policy.admit(signed, release_id, now_ms)
            answer = self._search(asked, searcher)
        except MessageError as error:
            answer = Refusal("malformed", str(error))
        except RefusedError as error:
            answer = Refusal(error.reason, str(error))
        except FedhashError:  # of the archive; its message is for this site alone
            answer = Refusal("failed", "this site's index failed; its log says why")
        try:
            self._record(signed, asked, answer, now_ms)
        except (AuditError, StorageError):
            answer = Refusal("not_recorded", "this site cannot write its audit log")
        with self._deciding:
            self._outcomes[answer.reason if isinstance(answer, Refusal) else "answered"] += 1
        return answer

    def _search(self, asked: AskedQuery, searcher: SiteSearcher | None) -> Found:
        if searcher is None:
            raise RefusedError("no_release", "this site has no index yet; ask later")
        bounded = replace(searcher, smallest_bucket=self._policy.smallest_bucket)
        answer = bounded.answer(asked.query)
        return Found(answer.hits, answer.cut_to_bits)

    def _record(
        self, signed: SignedQuery, asked: AskedQuery | None, answer: Found | Refusal, now_ms: int
    ) -> None:
        entry: dict[str, Json] = {
            "kind": "query",
            "at_ms": now_ms,
            "query": query_digest(signed),
        }
        if asked is not None:
            query = asked.query
            entry |= {
                "requester": asked.requester,
                "purpose": asked.purpose,
                "release": query.release_id,
                "modality": query.modality,
                "k": query.k,
                "radius": query.radius,
                "filters": dict(query.filters),
            }
        with self._deciding:
            if isinstance(answer, Refusal):
                if not self._refusals.take(now_ms):
                    self._left_out += 1
                    return
                entry |= {"refused": answer.reason, "message": printable(answer.message)[:500]}
            else:
                entry |= {
                    "handles": [hit.handle for hit in answer.hits],
                    "cut_to_bits": answer.cut_to_bits,
                }
            if self._left_out:
                entry["refusals_left_out"], self._left_out = self._left_out, 0
        self._note(entry)
