"""The asker's look at what the router returns: the asker trusts it no more than it trusts sites.

1. Each site's answer must be signed by that site, for this very query
   (`fedhash.search.signed_answers`), and one that it could have given (`fedhash.search.routing`).
   What is not becomes `invalid`, and the result is partial.
2. What is left is merged here under the total order, so the result is that of one archive with all
   the studies of the sites that answered.
3. A reply that names other sites than the agreement is none.

What a router keeps back shows as a site that is missing. It can add, alter and reorder nothing.

    >>> read_merged(query, signed, agreement.sites, reply_bytes).hits
    (Hit(site='hospital-b', handle='5c1f...', distance=3, score=29120), ...)
"""

from __future__ import annotations

from collections.abc import Mapping

from fedhash.errors import ProtocolError, RefusedError
from fedhash.search.answers import Found, Gathered, Merged, Refusal, SiteResult
from fedhash.search.query import Query
from fedhash.search.routing import answer_fault
from fedhash.search.signed_answers import check_found
from fedhash.search.wire.answers import decode_reply
from fedhash.search.wire.queries import SignedQuery

__all__ = ["read_merged"]


def read_merged(query: Query, signed: SignedQuery, sites: Mapping[str, str], data: bytes) -> Merged:
    """The answer of all sites.

    Args:
        query: What was asked.
        signed: As it was sent.
        sites: The agreement's: name to public key.
        data: The router's reply.

    Raises:
        RefusedError: The router refuses the query.
        MessageError: The reply is of no valid form.
        ProtocolError: It is not about the sites of the agreement.
    """
    reply = decode_reply(data)
    if isinstance(reply, Refusal):
        raise RefusedError(reply.reason, f"the router refuses the query: {reply.message}")
    named = [result.site for result in reply.sites]
    if named != sorted(sites):
        raise ProtocolError(
            f"the router's answer names the sites {', '.join(named) or 'none'}, the agreement has "
            f"{', '.join(sorted(sites))}; tell the coordinator"
        )
    results = []
    good: dict[str, Found] = {}
    for result in reply.sites:
        found = reply.found.get(result.site)
        if found is None:
            results.append(result)
        elif reason := _fault(query, signed, found, sites[result.site]):
            results.append(SiteResult(result.site, "invalid", reason))
        else:
            results.append(result)
            good[result.site] = found
    return Gathered(tuple(results), good).merged(query.k)


def _fault(query: Query, signed: SignedQuery, found: Found, key: str) -> str:
    """Why an answer does not count, in a word; empty: it does."""
    try:
        check_found(signed, found, key)
    except RefusedError as error:
        return error.reason
    return "" if answer_fault(query, found) is None else "impossible"
