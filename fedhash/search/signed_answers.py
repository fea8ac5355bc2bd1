"""A site's answer under its signature: what no router can invent, alter or give for another query.

1. The site signs the hits together with the SHA-256 of the query that it answers, whose nonce no
   other query has. So an answer of yesterday, or to somebody else, is none to this query.
2. The key is the site's in the agreement, which asker and site share: the query names it.
3. Refusals are not signed, nor that a site is away: a router can keep any answer back, and then
   the result says that the site is missing.

    >>> found = sign_found(signed_query, found, identity)
    >>> check_found(signed_query, found, agreement.sites["hospital-a"])
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from fedhash.search.answers import Found
from fedhash.search.wire.answers import encode_hits
from fedhash.search.wire.queries import SignedQuery
from fedhash.secagg.identity import SiteIdentity, verify_signature

__all__ = ["check_found", "sign_found"]

_PREFIX = b"fedhash answer 1\0"


def sign_found(query: SignedQuery, found: Found, identity: SiteIdentity) -> Found:
    """The answer with the site's signature.

    Raises:
        MessageError: It is longer than a router takes.
    """
    return replace(found, signature=identity.sign(_signed_text(query, found)))


def check_found(query: SignedQuery, found: Found, key: str) -> None:
    """Check that the holder of a key gave this answer to this query.

    Raises:
        RefusedError: It did not ("bad_signature").
    """
    verify_signature(key, found.signature, _signed_text(query, found))


def _signed_text(query: SignedQuery, found: Found) -> bytes:
    return _PREFIX + hashlib.sha256(query.content).digest() + encode_hits(found)
