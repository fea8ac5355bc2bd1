"""A query under its asker's signature: what no router can invent, alter or send twice.

1. The asker signs the query together with its name, its purpose, its agreement, the time, a
   deadline and a nonce. Sites verify the signature under the key that the agreement gives the
   asker: whom a router names as the asker counts for nothing.
2. What is signed are the very bytes that travel, after a prefix that no other signature of the
   consortium has. They are verified first and read afterwards.
3. A query lives for a minute at most, so a site need not remember nonces for longer.

    >>> signed = sign_query(query, identity, requester="hospital-a", purpose="care",
    ...                     agreement=agreement.digest(), now_ms=1_760_000_000_000)
    >>> open_query(signed, agreement.digest(), agreement.askers()).requester
    'hospital-a'
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

from fedhash.errors import RefusedError
from fedhash.search.query import Query
from fedhash.search.wire.queries import (
    LONGEST_LIFE_MS,
    NONCE_BYTES,
    AskedQuery,
    SignedQuery,
    decode_query,
    encode_query,
)
from fedhash.secagg.identity import SiteIdentity, verify_signature

__all__ = ["CLOCK_TOLERANCE_MS", "check_times", "open_query", "query_digest", "sign_query"]

CLOCK_TOLERANCE_MS = 5_000  # so far may two clocks be apart
_PREFIX = b"fedhash query 1\0"


def sign_query(
    query: Query,
    identity: SiteIdentity,
    *,
    requester: str,
    purpose: str,
    agreement: str,
    now_ms: int,
    life_ms: int = 10_000,
) -> SignedQuery:
    """The query as its asker sends it, with a new nonce.

    Args:
        query: What is asked.
        identity: The asker's Ed25519 key.
        requester: The asker's name in the agreement.
        purpose: What the answer is for.
        agreement: Digest of the asker's agreement.
        now_ms: Unix time in milliseconds.
        life_ms: For how long answers count, at most `LONGEST_LIFE_MS`.

    Raises:
        MessageError: A field is of no valid form.
    """
    content = encode_query(
        AskedQuery(
            query,
            requester,
            purpose,
            agreement,
            secrets.token_bytes(NONCE_BYTES),
            now_ms,
            now_ms + min(life_ms, LONGEST_LIFE_MS),
        )
    )
    return SignedQuery(content, identity.sign(_PREFIX + content))


def open_query(signed: SignedQuery, agreement: str, keys: Mapping[str, str]) -> AskedQuery:
    """The query, once it is known to be its asker's.

    Args:
        signed: What came in.
        agreement: Digest of the agreement that holds here.
        keys: Public key of each name that may ask, 64 hex digits.

    Raises:
        MessageError: It is no query.
        RefusedError: It is of another agreement ("other_agreement"), of nobody who may ask
            ("unknown_requester"), or not signed by whom it names ("bad_signature").
    """
    asked = decode_query(signed.content)
    if asked.agreement != agreement:
        raise RefusedError(
            "other_agreement",
            f"the query is under the agreement {asked.agreement[:12]}, here {agreement[:12]} is "
            "signed; fetch the current agreement",
        )
    key = keys.get(asked.requester)
    if key is None:
        raise RefusedError(
            "unknown_requester",
            f"the agreement lists no key of {asked.requester!r}; enrol it, or have it listed",
        )
    verify_signature(key, signed.signature, _PREFIX + signed.content)
    return asked


def check_times(asked: AskedQuery, now_ms: int) -> None:
    """Refuse what is over, and what comes from another time.

    Raises:
        RefusedError: "late" or "clock".
    """
    if now_ms >= asked.deadline_ms:
        raise RefusedError(
            "late",
            f"the query ended {now_ms - asked.deadline_ms} ms ago; ask again, and if it stays so "
            "compare the clocks",
        )
    if asked.asked_at_ms > now_ms + CLOCK_TOLERANCE_MS:
        raise RefusedError(
            "clock",
            f"the query was asked {asked.asked_at_ms - now_ms} ms from now, at most "
            f"{CLOCK_TOLERANCE_MS} are tolerated; compare the clocks of both",
        )


def query_digest(signed: SignedQuery) -> str:
    """SHA-256 of what was signed, 64 hex digits: the query's name in every log."""
    return hashlib.sha256(signed.content).hexdigest()
