"""A query as it travels: who asks what for what, until when, and the signature over it.

>>> data = encode_signed(sign_query(query, identity, ...))
>>> asked = decode_query(decode_signed(data).content)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedhash.codes import CODE_BITS_RANGE
from fedhash.errors import MessageError, QueryError
from fedhash.search.query import Query
from fedhash.search.wire import search_pb2
from fedhash.search.wire._parsing import NAME, RELEASE, SITE, check_text, parse, serialise

__all__ = [
    "LARGEST_K",
    "LONGEST_LIFE_MS",
    "NONCE_BYTES",
    "AskedQuery",
    "SignedQuery",
    "decode_query",
    "decode_signed",
    "encode_query",
    "encode_signed",
    "read_signed",
]

NONCE_BYTES = 16
LONGEST_LIFE_MS = 60_000  # a person waits for the answer
LARGEST_K = 10_000  # bounds an answer to 280 kB
_SIGNATURE_BYTES = 64
_LARGEST_QUERY_BYTES = 1 << 14
LARGEST_SIGNED_BYTES = _LARGEST_QUERY_BYTES + 128
_LATEST_MS = 1 << 53  # far beyond any date, and exact in every language's numbers
_DIGEST = re.compile("[0-9a-f]{64}")
_FILTER_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,100}")
_FILTER_VALUE = re.compile(r"[^\x00-\x1f\x7f]{0,200}")


@dataclass(frozen=True, slots=True, eq=False)
class AskedQuery:
    """A query and who asks it.

    Attributes:
        query: What is asked.
        requester: A site of the agreement, or "coordinator".
        purpose: What the answer is for; a name of the agreement.
        agreement: Digest of the asker's agreement, 64 hex digits.
        nonce: 16 random bytes.
        asked_at_ms: Unix time by the asker's clock.
        deadline_ms: After it no answer counts.
    """

    query: Query
    requester: str
    purpose: str
    agreement: str
    nonce: bytes
    asked_at_ms: int
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class SignedQuery:
    """What travels.

    Attributes:
        content: From `encode_query`.
        signature: Of the asker, 64 bytes.
    """

    content: bytes
    signature: bytes


def encode_query(asked: AskedQuery) -> bytes:
    """The bytes that the asker signs.

    Raises:
        MessageError: A field is of no valid form.
    """
    query = asked.query
    _check(asked)
    message = search_pb2.Query(
        agreement=bytes.fromhex(asked.agreement),
        requester=asked.requester,
        purpose=asked.purpose,
        nonce=asked.nonce,
        asked_at_ms=asked.asked_at_ms,
        deadline_ms=asked.deadline_ms,
        release=query.release_id,
        modality=query.modality,
        code=query.code,
        weights=query.weights.astype("<i2").tobytes(),
        k=query.k,
        radius=query.radius,
        filters=[
            search_pb2.Filter(name=name, value=value)
            for name, value in sorted(query.filters.items())
        ],
    )
    return serialise(message, _LARGEST_QUERY_BYTES)


def decode_query(data: bytes) -> AskedQuery:
    """The query in bytes that a peer sent; whether it is its asker's `open_query` finds out.

    Raises:
        MessageError: It is none.
    """
    message = parse(search_pb2.Query, data, _LARGEST_QUERY_BYTES)
    if len(message.agreement) != 32:
        raise MessageError(
            f"the agreement's digest has {len(message.agreement)} bytes, expected 32"
        )
    low, high = CODE_BITS_RANGE
    if not low <= 8 * len(message.code) <= high or len(message.weights) != 16 * len(message.code):
        raise MessageError(
            f"the query has a code of {len(message.code)} bytes and weights of "
            f"{len(message.weights)}; expected {low // 8} to {high // 8} and 16 times as many"
        )
    names = [each.name for each in message.filters]
    if names != sorted(set(names)):
        raise MessageError("the query's filters are not sorted by name, or one stands twice")
    try:
        query = Query(
            message.release,
            message.modality,
            message.code,
            np.frombuffer(message.weights, dtype="<i2").astype(np.int16),
            message.k,
            message.radius if message.HasField("radius") else None,
            {each.name: each.value for each in message.filters},
        )
    except QueryError as error:
        raise MessageError(str(error)) from error
    asked = AskedQuery(
        query,
        message.requester,
        message.purpose,
        message.agreement.hex(),
        message.nonce,
        message.asked_at_ms,
        message.deadline_ms,
    )
    _check(asked)
    return asked


def encode_signed(signed: SignedQuery) -> bytes:
    """The message of an asker.

    Raises:
        MessageError: The query is too long.
    """
    message = search_pb2.SignedQuery(query=signed.content, signature=signed.signature)
    return serialise(message, LARGEST_SIGNED_BYTES)


def decode_signed(data: bytes) -> SignedQuery:
    """The message of an asker, its query unread.

    Raises:
        MessageError: It is none.
    """
    return read_signed(parse(search_pb2.SignedQuery, data, LARGEST_SIGNED_BYTES))


def read_signed(message: search_pb2.SignedQuery) -> SignedQuery:
    """The same from a part of a parsed message.

    Raises:
        MessageError: A part has an impossible length.
    """
    if len(message.signature) != _SIGNATURE_BYTES:
        raise MessageError(
            f"the signature has {len(message.signature)} bytes, expected {_SIGNATURE_BYTES}"
        )
    if not 0 < len(message.query) <= _LARGEST_QUERY_BYTES:
        raise MessageError(
            f"the query has {len(message.query)} bytes, expected 1 to {_LARGEST_QUERY_BYTES}"
        )
    return SignedQuery(message.query, message.signature)


def _check(asked: AskedQuery) -> None:
    """What sender and receiver both hold a query against."""
    query = asked.query
    check_text("agreement's digest", asked.agreement, _DIGEST)
    check_text("requester", asked.requester, SITE)
    check_text("purpose", asked.purpose, NAME)
    check_text("release", query.release_id, RELEASE)
    check_text("modality", query.modality, NAME)
    _check_filters(query.filters)
    if query.k > LARGEST_K:
        raise MessageError(f"the query asks for {query.k} hits, at most {LARGEST_K} are possible")
    if len(asked.nonce) != NONCE_BYTES:
        raise MessageError(f"the nonce has {len(asked.nonce)} bytes, expected {NONCE_BYTES}")
    if not 0 < asked.asked_at_ms < asked.deadline_ms < _LATEST_MS:
        raise MessageError(
            f"the query was asked at {asked.asked_at_ms} ms and ends at {asked.deadline_ms} ms; "
            "expected Unix times, the end after the beginning"
        )
    if asked.deadline_ms - asked.asked_at_ms > LONGEST_LIFE_MS:
        raise MessageError(
            f"the query lives for {asked.deadline_ms - asked.asked_at_ms} ms, "
            f"at most {LONGEST_LIFE_MS} are allowed"
        )


def _check_filters(filters: Mapping[str, str]) -> None:
    for name, value in filters.items():
        check_text("filter's name", name, _FILTER_NAME)
        check_text("filter's value", value, _FILTER_VALUE)
