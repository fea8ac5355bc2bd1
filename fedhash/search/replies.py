"""The asker's look at what the router returns: the asker trusts it no more than it trusts sites.

1. Each site's hits must be what that site could have answered (`fedhash.search.routing`): within
   the radius, in order, no study twice, with scores that the distance allows.
2. All together they are as many as the sites gave, at most k, and of sites that answered.

What a router leaves out together with its site's count, or invents within these bounds, shows
nowhere: hits are not signed.

    >>> read_merged(query, reply_bytes).hits
    (Hit(site='hospital-b', handle='5c1f...', distance=3, score=29120), ...)
"""

from __future__ import annotations

from fedhash.errors import ProtocolError, RefusedError
from fedhash.search.answers import Found, Merged, Refusal
from fedhash.search.query import Query
from fedhash.search.routing import answer_fault
from fedhash.search.wire.answers import decode_reply

__all__ = ["merged_fault", "read_merged"]


def read_merged(query: Query, data: bytes) -> Merged:
    """The router's reply to a query.

    Raises:
        RefusedError: The router refuses the query.
        MessageError: The reply is of no valid form.
        ProtocolError: It holds what no honest router returns.
    """
    reply = decode_reply(data)
    if isinstance(reply, Refusal):
        raise RefusedError(reply.reason, f"the router refuses the query: {reply.message}")
    if (fault := merged_fault(query, reply)) is not None:
        raise ProtocolError(f"the router's answer cannot be right: {fault}; tell the coordinator")
    return reply


def merged_fault(query: Query, merged: Merged) -> str | None:
    """What no honest router would return, or None."""
    given = sum(result.hits for result in merged.sites)
    if len(merged.hits) != min(query.k, given):
        return (
            f"it has {len(merged.hits)} hits, {query.k} were asked for, and the sites gave {given}"
        )
    for result in merged.sites:
        hits = tuple(hit for hit in merged.hits if hit.site == result.site)
        if result.hits > (query.k if result.outcome == "answered" else 0):
            return f"{result.site!r} ({result.outcome}) is said to have given {result.hits} hits"
        if len(hits) > result.hits:
            return f"it has {len(hits)} hits of {result.site!r}, which gave {result.hits}"
        if (fault := answer_fault(query, Found(hits, result.cut_to_bits))) is not None:
            return f"of {result.site!r}: {fault}"
    return None
