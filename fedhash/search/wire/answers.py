"""The messages between a site and the router, and the router's reply to an asker.

>>> data = encode_answer(7, Found((Hit("hospital-a", handle, 3, 29120),)))
>>> read_from_site(data, site="hospital-a")
Answer(number=7, content=Found(hits=(Hit(...),), cut_to_bits=None))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedhash.codes import CODE_BITS_RANGE
from fedhash.errors import MessageError
from fedhash.printable import printable
from fedhash.search.answers import (
    OUTCOMES,
    SIGNATURE_BYTES,
    Found,
    Gathered,
    Outcome,
    Refusal,
    SiteResult,
)
from fedhash.search.hit import HANDLE_BYTES, Hit
from fedhash.search.query import WEIGHT_SCALE
from fedhash.search.wire import search_pb2
from fedhash.search.wire._parsing import REASON, RELEASE, SITE, check_text, parse, serialise
from fedhash.search.wire.queries import LARGEST_K, LARGEST_SIGNED_BYTES, SignedQuery, read_signed

__all__ = [
    "LARGEST_MESSAGE_BYTES",
    "LARGEST_REPLY_BYTES",
    "Answer",
    "Holds",
    "decode_reply",
    "encode_answer",
    "encode_hits",
    "encode_holds",
    "encode_reply",
    "encode_to_site",
    "read_from_site",
    "read_to_site",
]

LARGEST_MESSAGE_BYTES = 1 << 20  # of one site: 10,000 hits of 16 bytes and two numbers
LARGEST_REPLY_BYTES = 1 << 24  # of all: 50 hits of each of 1000 sites take 2 MB
_LARGEST_TEXT = 500
_LARGEST_SITES = 1000  # as many as an agreement lists
_MOST_BITS = CODE_BITS_RANGE[1]
_LARGEST_SCORE = WEIGHT_SCALE * _MOST_BITS


@dataclass(frozen=True, slots=True)
class Holds:
    """What a site holds from now on: a release, or None."""

    release: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A site's answer to the query of a number."""

    number: int
    content: Found | Refusal


def encode_holds(release: str | None) -> bytes:
    """What a site holds.

    Raises:
        MessageError: That is no release id.
    """
    if release is not None:
        check_text("release", release, RELEASE)
    return serialise(
        search_pb2.FromSite(holds=search_pb2.Holds(release=release or "")), LARGEST_MESSAGE_BYTES
    )


def encode_answer(number: int, content: Found | Refusal) -> bytes:
    """A site's answer.

    Raises:
        MessageError: It is longer than a router takes.
    """
    answer = search_pb2.Answer(number=number)
    if isinstance(content, Refusal):
        answer.refusal.CopyFrom(_refusal(content))
    else:
        answer.hits.CopyFrom(_hits(content))
        answer.signature = content.signature
    return serialise(search_pb2.FromSite(answer=answer), LARGEST_MESSAGE_BYTES)


def read_from_site(data: bytes, site: str) -> Holds | Answer:
    """What a site sent; its hits bear the name `site`, which the site does not tell by itself.

    Raises:
        MessageError: It is no message of a site.
    """
    message = parse(search_pb2.FromSite, data, LARGEST_MESSAGE_BYTES)
    which = message.WhichOneof("content")
    if which == "holds":
        release = message.holds.release
        return Holds(check_text("release", release, RELEASE) if release else None)
    if which is None or (kind := message.answer.WhichOneof("content")) is None:
        raise MessageError("the site's message says nothing; it runs another version of fedhash")
    answer = message.answer
    if kind == "refusal":
        if answer.signature:
            raise MessageError("a refusal is signed; the site runs another version of fedhash")
        return Answer(answer.number, _read_refusal(answer.refusal))
    return Answer(answer.number, _read_hits(answer.hits, answer.signature, site))


def encode_hits(found: Found) -> bytes:
    """What a site signs of its answer: all but the signature.

    Raises:
        MessageError: It is longer than a router takes.
    """
    return serialise(_hits(found), LARGEST_MESSAGE_BYTES)


def encode_to_site(number: int, signed: SignedQuery) -> bytes:
    """A query for a site, under a number that counts the queries of its stream."""
    query = search_pb2.SignedQuery(query=signed.content, signature=signed.signature)
    return serialise(search_pb2.ToSite(number=number, query=query), LARGEST_SIGNED_BYTES + 32)


def read_to_site(data: bytes) -> tuple[int, SignedQuery]:
    """A query that the router sent, and its number.

    Raises:
        MessageError: It is none.
    """
    message = parse(search_pb2.ToSite, data, LARGEST_SIGNED_BYTES + 32)
    return message.number, read_signed(message.query)


def encode_reply(content: Gathered | Refusal) -> bytes:
    """The router's reply.

    Raises:
        MessageError: It is too long.
    """
    reply = search_pb2.Reply()
    if isinstance(content, Refusal):
        reply.refusal.CopyFrom(_refusal(content))
        return serialise(reply, LARGEST_REPLY_BYTES)
    reply.gathered.SetInParent()
    for each in content.sites:
        result = search_pb2.SiteResult(site=each.site, outcome=each.outcome, reason=each.reason)
        if (found := content.found.get(each.site)) is not None:
            result.hits.CopyFrom(_hits(found))
            result.signature = found.signature
        reply.gathered.sites.append(result)
    return serialise(reply, LARGEST_REPLY_BYTES)


def decode_reply(data: bytes) -> Gathered | Refusal:
    """What the router replied.

    Raises:
        MessageError: It is no reply.
    """
    reply = parse(search_pb2.Reply, data, LARGEST_REPLY_BYTES)
    which = reply.WhichOneof("content")
    if which is None:
        raise MessageError("the router's reply is empty; it runs another version of fedhash")
    if which == "refusal":
        return _read_refusal(reply.refusal)
    if len(reply.gathered.sites) > _LARGEST_SITES:
        raise MessageError(
            f"the reply has {len(reply.gathered.sites)} sites, at most {_LARGEST_SITES}"
        )
    found = {
        each.site: _read_hits(each.hits, each.signature, each.site)
        for each in reply.gathered.sites
        if each.HasField("hits")
    }
    sites = tuple(_read_result(each, found.get(each.site)) for each in reply.gathered.sites)
    names = [each.site for each in sites]
    if names != sorted(set(names)):
        raise MessageError("the reply's sites are not sorted by name, or one stands twice")
    return Gathered(sites, found)


def _refusal(refusal: Refusal) -> search_pb2.Refusal:
    check_text("reason", refusal.reason, REASON)
    return search_pb2.Refusal(
        reason=refusal.reason, message=printable(refusal.message)[:_LARGEST_TEXT]
    )


def _read_refusal(message: search_pb2.Refusal) -> Refusal:
    if len(message.message) > _LARGEST_TEXT:
        raise MessageError(f"a refusal has {len(message.message)} characters of text")
    reason = check_text("reason", message.reason, REASON)
    if not reason:
        raise MessageError("a refusal gives no reason; the peer runs another version of fedhash")
    return Refusal(reason, printable(message.message))


def _read_result(message: search_pb2.SiteResult, found: Found | None) -> SiteResult:
    outcome: Outcome | None = next((each for each in OUTCOMES if each == message.outcome), None)
    if outcome is None:
        raise MessageError(f"a site's outcome is {message.outcome[:80]!r}, which there is not")
    if (found is not None) != (outcome == "answered") or (found is None and message.signature):
        raise MessageError("a site has hits and did not answer, or answered and has none")
    reason = message.reason
    check_text("reason", reason, RELEASE if outcome == "other_release" and reason else REASON)
    site = check_text("site", message.site, SITE)
    if found is None:
        return SiteResult(site, outcome, reason)
    return SiteResult(site, outcome, reason, len(found.hits), found.cut_to_bits)


def _hits(found: Found) -> search_pb2.Hits:
    return search_pb2.Hits(
        handles=_handles(found.hits),
        distances=[hit.distance for hit in found.hits],
        scores=[hit.score for hit in found.hits],
        cut_to_bits=found.cut_to_bits,
    )


def _read_hits(message: search_pb2.Hits, signature: bytes, site: str) -> Found:
    columns = _columns(message.handles, message.distances, message.scores)
    cut = _bits(message.cut_to_bits) if message.HasField("cut_to_bits") else None
    if len(signature) != SIGNATURE_BYTES:
        raise MessageError(f"a signature has {len(signature)} bytes, expected {SIGNATURE_BYTES}")
    return Found(tuple(Hit(site, *column) for column in columns), cut, signature)


def _handles(hits: Sequence[Hit]) -> bytes:
    handles = [bytes.fromhex(hit.handle) for hit in hits]
    if any(len(handle) != HANDLE_BYTES for handle in handles):
        raise MessageError(f"a handle is not {2 * HANDLE_BYTES} hex digits; index the site again")
    return b"".join(handles)


def _columns(
    handles: bytes, distances: Sequence[int], scores: Sequence[int]
) -> list[tuple[str, int, int]]:
    """Handle, distance and score of each hit."""
    count = len(distances)
    if count > LARGEST_K or len(scores) != count or len(handles) != HANDLE_BYTES * count:
        raise MessageError(
            f"there are {len(handles)} bytes of handles, {count} distances and {len(scores)} "
            f"scores; expected columns of the same 0 to {LARGEST_K} hits"
        )
    if count and (max(distances) > _MOST_BITS or max(map(abs, scores)) > _LARGEST_SCORE):
        raise MessageError("a hit has a distance or score that no code can have")
    texts = handles.hex()
    step = 2 * HANDLE_BYTES
    return [
        (texts[step * i : step * (i + 1)], distance, score)
        for i, (distance, score) in enumerate(zip(distances, scores, strict=True))
    ]


def _bits(value: int) -> int:
    if value > _MOST_BITS:
        raise MessageError(f"a radius of {value} bits was told, codes have at most {_MOST_BITS}")
    return value
