"""Queries and answers as bytes: they come back as they were, and nothing else comes in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.errors import MessageError, RefusedError
from fedhash.search import Hit, Query
from fedhash.search.answers import OUTCOMES, Found, Gathered, Outcome, Refusal, SiteResult
from fedhash.search.asking import open_query, query_digest, sign_query
from fedhash.search.wire import search_pb2 as pb
from fedhash.search.wire.answers import (
    Answer,
    Holds,
    decode_reply,
    encode_answer,
    encode_holds,
    encode_reply,
    encode_to_site,
    read_from_site,
    read_to_site,
)
from fedhash.search.wire.queries import (
    AskedQuery,
    SignedQuery,
    decode_query,
    decode_signed,
    encode_query,
    encode_signed,
)
from fedhash.secagg.identity import SiteIdentity

AGREEMENT = "ab" * 32
NOW_MS = 1_760_000_000_000
IDENTITY = SiteIdentity.from_seed(bytes(32))
KEYS = {"hospital-a": IDENTITY.public_hex}

names = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)


@st.composite
def queries(draw: Callable[..., object]) -> Query:
    bits = 8 * draw(st.integers(2, 32))
    return Query(
        draw(st.sampled_from(["0f" * 32, "r1"])),
        draw(names),
        draw(st.binary(min_size=bits // 8, max_size=bits // 8)),
        np.array(
            draw(st.lists(st.integers(-4096, 4096), min_size=bits, max_size=bits)), dtype=np.int16
        ),
        draw(st.integers(1, 10_000)),
        draw(st.none() | st.integers(0, bits)),
        draw(st.dictionaries(texts, texts, max_size=16)),
    )


asked_queries = st.builds(
    lambda query, requester, purpose, nonce, life: AskedQuery(
        query, requester, purpose, AGREEMENT, nonce, NOW_MS, NOW_MS + life
    ),
    queries(),
    texts,
    names,
    st.binary(min_size=16, max_size=16),
    st.integers(1, 60_000),
)
hits = st.builds(
    Hit,
    st.just("hospital-a"),
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.integers(0, 256),
    st.integers(-(1 << 20), 1 << 20),
)
answers = st.tuples(st.lists(hits, max_size=9), st.none() | st.integers(0, 256))


def one() -> AskedQuery:
    query = Query("r1", "image", bytes(2), np.zeros(16, dtype=np.int16), 5, 3, {"a": "x", "b": ""})
    return AskedQuery(query, "hospital-a", "care", AGREEMENT, bytes(16), NOW_MS, NOW_MS + 9)


def same(a: AskedQuery, b: AskedQuery) -> bool:
    def fields(asked: AskedQuery) -> list[object]:
        q = asked.query
        rest = [getattr(asked, name) for name in AskedQuery.__slots__ if name != "query"]
        values = [q.release_id, q.modality, q.code, q.weights.tolist(), q.k, q.radius]
        return [*rest, *values, dict(q.filters)]

    return fields(a) == fields(b)


@given(asked_queries)
def test_a_query_comes_back_as_it_was(asked: AskedQuery) -> None:
    data = encode_query(asked)
    assert same(decode_query(data), asked)
    assert encode_query(decode_query(data)) == data
    signed = SignedQuery(data, bytes(64))
    assert decode_signed(encode_signed(signed)) == signed
    assert read_to_site(encode_to_site(3, signed)) == (3, signed)


@given(st.integers(0, 2**64 - 1), answers, st.text("abc \n", max_size=500))
def test_an_answer_comes_back_as_it_was(
    number: int, answer: tuple[list[Hit], int | None], text: str
) -> None:
    for content in (Found(tuple(answer[0]), answer[1]), Refusal("too_many_queries", text)):
        read = read_from_site(encode_answer(number, content), "hospital-a")
        assert read == Answer(number, content)


@given(st.none() | st.just("0f" * 32))
def test_what_a_site_holds_comes_back(release: str | None) -> None:
    assert read_from_site(encode_holds(release), "x") == Holds(release)


@given(st.dictionaries(texts, st.sampled_from(OUTCOMES), min_size=1, max_size=4), st.data())
def test_a_reply_comes_back_as_it_was(outcomes: dict[str, Outcome], data: st.DataObject) -> None:
    found, results = {}, []
    for name, outcome in sorted(outcomes.items()):
        if outcome == "answered":
            drawn, cut = data.draw(answers)
            of_site = tuple(replace(hit, site=name) for hit in drawn)
            found[name] = Found(of_site, cut, data.draw(st.binary(min_size=64, max_size=64)))
            results.append(SiteResult(name, outcome, "", len(of_site), cut))
        else:
            results.append(SiteResult(name, outcome, "k_above_limit"))
    gathered = Gathered(tuple(results), found)
    assert decode_reply(encode_reply(gathered)) == gathered


QUERY_FAULTS = {
    "agreement": (b"x", "1 bytes, expected 32"),
    "requester": ("a\nb", "requester"),
    "purpose": ("Care!", "purpose"),
    "nonce": (b"short", "nonce has 5"),
    "asked_at_ms": (0, "asked at 0"),
    "deadline_ms": (NOW_MS + 60_001, "lives for 60001"),
    "release": ("../x", "release"),
    "modality": ("", "modality"),
    "code": (b"x", "code of 1 bytes"),
    "weights": (bytes(31), "weights of 31"),
    "k": (10_001, "asks for 10001 hits"),
    "radius": (17, "radius is 17"),
}


@pytest.mark.parametrize("field", QUERY_FAULTS)
def test_each_malformed_field_of_a_query_is_named(field: str) -> None:
    value, message = QUERY_FAULTS[field]
    changed = pb.Query.FromString(encode_query(one()))
    setattr(changed, field, value)
    with pytest.raises(MessageError, match=message):
        decode_query(changed.SerializeToString(deterministic=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: setattr(q, "k", 0), "k is 0"),
        (lambda q: setattr(q, "deadline_ms", q.asked_at_ms), "end after the beginning"),
        (lambda q: setattr(q, "weights", b"\xff\x7f" * 16), "32767 in size"),
        (lambda q: q.filters.reverse(), "not sorted"),
        (lambda q: q.filters.append(pb.Filter(name="b")), "stands twice"),
        (lambda q: q.filters.append(pb.Filter(name="c", value="\x00")), "filter's value"),
        (lambda q: q.filters.append(pb.Filter(name="c", value="x" * 201)), "filter's value"),
        (lambda q: q.filters.extend(pb.Filter(name=f"c{n:02}") for n in range(15)), "17 attrib"),
        (lambda q: setattr(q, "code", bytes(33)), "33 bytes"),
    ],
)
def test_other_malformed_queries(change: Callable[[pb.Query], None], message: str) -> None:
    changed = pb.Query.FromString(encode_query(one()))
    change(changed)
    with pytest.raises(MessageError, match=message):
        decode_query(changed.SerializeToString(deterministic=True))


def test_an_encoder_refuses_what_a_decoder_would() -> None:
    with pytest.raises(MessageError, match="release"):
        encode_holds("not a release")
    with pytest.raises(MessageError, match="not 32 hex digits"):
        encode_answer(1, Found((Hit("a", "00", 1, 1),)))
    wide = Query(
        "r1",
        "image",
        bytes(2),
        np.zeros(16, dtype=np.int16),
        5,
        None,
        {f"{n}" + "\U0001f600" * 98: "\U0001f600" * 200 for n in range(16)},
    )
    with pytest.raises(MessageError, match="bytes, at most 16384"):
        encode_query(AskedQuery(wide, "a", "care", AGREEMENT, bytes(16), NOW_MS, NOW_MS + 9))


def test_unknown_fields_and_other_orders_are_refused() -> None:
    data = encode_query(one())
    with pytest.raises(MessageError, match="one byte form"):
        decode_query(data + bytes([0xF8, 0x06, 1]))  # field 111
    with pytest.raises(MessageError, match="one byte form"):
        decode_query(data + data)  # the last value of each field wins
    with pytest.raises(MessageError, match="no message Query"):
        decode_query(b"\xff" * 9)
    with pytest.raises(MessageError, match="at most 16384"):
        decode_query(bytes(1 << 20))


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (pb.FromSite(), "says nothing"),
        (pb.FromSite(answer=pb.Answer(number=1)), "says nothing"),
        (pb.FromSite(holds=pb.Holds(release="a b")), "release"),
        (pb.FromSite(answer=pb.Answer(refusal=pb.Refusal(reason=""))), "no reason"),
        (pb.FromSite(answer=pb.Answer(refusal=pb.Refusal(reason="X"))), "reason"),
        (pb.FromSite(answer=pb.Answer(refusal=pb.Refusal(reason="x", message="y" * 501))), "501"),
        (pb.FromSite(answer=pb.Answer(hits=pb.Hits(handles=bytes(15), distances=[1]))), "columns"),
        (
            pb.FromSite(
                answer=pb.Answer(hits=pb.Hits(handles=bytes(16), distances=[1], scores=[1, 2]))
            ),
            "columns",
        ),
        (
            pb.FromSite(
                answer=pb.Answer(hits=pb.Hits(handles=bytes(16), distances=[257], scores=[1]))
            ),
            "no code can have",
        ),
        (
            pb.FromSite(
                answer=pb.Answer(hits=pb.Hits(handles=bytes(16), distances=[1], scores=[1 << 30]))
            ),
            "no code can have",
        ),
        (pb.FromSite(answer=pb.Answer(hits=pb.Hits(cut_to_bits=300))), "300 bits"),
        (
            pb.FromSite(answer=pb.Answer(hits=pb.Hits(), signature=bytes(65))),
            "65 bytes, expected 64",
        ),
        (
            pb.FromSite(answer=pb.Answer(refusal=pb.Refusal(reason="late"), signature=bytes(64))),
            "a refusal is signed",
        ),
        (
            pb.FromSite(
                answer=pb.Answer(
                    hits=pb.Hits(
                        handles=bytes(160_016), distances=[1] * 10_001, scores=[1] * 10_001
                    )
                )
            ),
            "10001 distances",
        ),
    ],
)
def test_malformed_answers_of_a_site(message: pb.FromSite, match: str) -> None:
    with pytest.raises(MessageError, match=match):
        read_from_site(message.SerializeToString(deterministic=True), "hospital-a")


def result(**changes: object) -> pb.SiteResult:
    given = {"site": "a", "outcome": "answered", "hits": pb.Hits(), "signature": bytes(64)}
    return pb.SiteResult(**(given | changes))


@pytest.mark.parametrize(
    ("gathered", "match"),
    [
        (None, "is empty"),
        (pb.Gathered(sites=[result(), result()]), "stands twice"),
        (pb.Gathered(sites=[result(outcome="fine")]), "'fine', which there is not"),
        (pb.Gathered(sites=[result(site="")]), "site"),
        (pb.Gathered(sites=[result(reason="A b")]), "reason"),
        (pb.Gathered(sites=[result(site=f"{n:04}") for n in range(1001)]), "1001 sites"),
        (pb.Gathered(sites=[result(outcome="late")]), "has hits and did not answer"),
        (pb.Gathered(sites=[result(hits=None)]), "answered and has none"),
        (
            pb.Gathered(sites=[result(outcome="late", hits=None)]),
            "has hits and did not answer",
        ),
        (pb.Gathered(sites=[result(signature=bytes(63))]), "63 bytes, expected 64"),
        (pb.Gathered(sites=[result(hits=pb.Hits(handles=bytes(15)))]), "15 bytes of handles"),
        (pb.Gathered(sites=[result(hits=pb.Hits(cut_to_bits=300))]), "300 bits"),
    ],
)
def test_malformed_replies(gathered: pb.Gathered | None, match: str) -> None:
    reply = pb.Reply() if gathered is None else pb.Reply(gathered=gathered)
    with pytest.raises(MessageError, match=match):
        decode_reply(reply.SerializeToString(deterministic=True))


samples = st.sampled_from(
    [
        encode_query(one()),
        encode_signed(SignedQuery(encode_query(one()), bytes(64))),
        encode_to_site(1, SignedQuery(encode_query(one()), bytes(64))),
        encode_answer(1, Found((Hit("a", "00" * 16, 3, -4),), 8)),
        encode_answer(1, Refusal("late", "too late")),
        encode_holds("r1"),
        encode_reply(
            Gathered(
                (SiteResult("a", "answered", "", 1), SiteResult("b", "late")),
                {"a": Found((Hit("a", "00" * 16, 3, -4),))},
            )
        ),
    ]
)


@given(samples, st.data())
def test_hostile_bytes_are_read_to_the_byte_or_refused(whole: bytes, data: st.DataObject) -> None:
    cut = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if cut:
            cut[data.draw(st.integers(0, len(cut) - 1))] = data.draw(st.integers(0, 255))
    hostile = bytes(cut) + data.draw(st.binary(max_size=4))

    def again(read: Callable[[], bytes]) -> None:
        with suppress(MessageError):
            assert read() == hostile

    def from_site() -> bytes:
        message = read_from_site(hostile, "a")
        if isinstance(message, Holds):
            return encode_holds(message.release)
        return encode_answer(message.number, message.content)

    again(lambda: encode_query(decode_query(hostile)))
    again(lambda: encode_signed(decode_signed(hostile)))
    again(lambda: encode_to_site(*read_to_site(hostile)))
    again(from_site)
    again(lambda: encode_reply(decode_reply(hostile)))


def test_only_the_asker_can_have_written_a_query() -> None:
    query = one().query
    signed = sign_query(
        query, IDENTITY, requester="hospital-a", purpose="care", agreement=AGREEMENT, now_ms=NOW_MS
    )
    asked = open_query(signed, AGREEMENT, KEYS)
    assert (asked.requester, asked.deadline_ms) == ("hospital-a", NOW_MS + 10_000)
    again = sign_query(
        query, IDENTITY, requester="hospital-a", purpose="care", agreement=AGREEMENT, now_ms=NOW_MS
    )
    assert query_digest(again) != query_digest(signed), "a nonce makes each query another"
    other = SiteIdentity.from_seed(bytes([1]) * 32)
    for reason, forged, agreement, keys in (
        ("other_agreement", signed, "cd" * 32, KEYS),
        ("unknown_requester", signed, AGREEMENT, {"hospital-b": IDENTITY.public_hex}),
        ("bad_signature", signed, AGREEMENT, {"hospital-a": other.public_hex}),
        ("bad_signature", SignedQuery(signed.content, again.signature), AGREEMENT, KEYS),
    ):
        with pytest.raises(RefusedError) as refused:
            open_query(forged, agreement, keys)
        assert refused.value.reason == reason


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_query_with_any_byte_changed_is_refused(position: int, flip: int) -> None:
    signed = sign_query(
        one().query,
        IDENTITY,
        requester="hospital-a",
        purpose="care",
        agreement=AGREEMENT,
        now_ms=NOW_MS,
    )
    changed = bytearray(signed.content)
    changed[position % len(changed)] ^= flip
    with pytest.raises((MessageError, RefusedError)):
        open_query(SignedQuery(bytes(changed), signed.signature), AGREEMENT, KEYS)
