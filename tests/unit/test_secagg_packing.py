"""Packing: little-endian words on the wire, and sums modulo the ring."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.errors import MessageError
from fedhash.secagg import packing
from fedhash.secagg.packing import RingBits, add_packed, pack, packed_bytes, reduced, word_dtype

USUAL_CHUNK = packing._CHUNK_WORDS
RINGS: tuple[RingBits, ...] = (16, 20, 24, 32)


@pytest.fixture(autouse=True, scope="module")
def small_chunks():
    """Short vectors cross the border between chunks too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_CHUNK_WORDS", 6)
        yield


@st.composite
def vectors(draw: st.DrawFn) -> tuple[RingBits, list[list[int]]]:
    ring_bits = draw(st.sampled_from(RINGS))
    length = draw(st.integers(0, 20))
    word = st.one_of(st.integers(0, 2**ring_bits - 1), st.just(2**ring_bits - 1))
    vector = st.lists(word, min_size=length, max_size=length)
    return ring_bits, draw(st.lists(vector, min_size=1, max_size=6))


def signed(number: int, ring_bits: int) -> int:
    number %= 2**ring_bits
    return number - 2**ring_bits if number >= 2 ** (ring_bits - 1) else number


@given(vectors())
def test_packed_vectors_add_up_modulo_the_ring(drawn: tuple[RingBits, list[list[int]]]):
    ring_bits, sites = drawn
    accumulator = np.zeros(len(sites[0]), word_dtype(ring_bits))
    for words in sites:
        add_packed(accumulator, pack(np.array(words, accumulator.dtype), ring_bits), ring_bits)
    found = reduced(accumulator, ring_bits)
    assert found.tolist() == [signed(sum(entry), ring_bits) for entry in zip(*sites, strict=True)]


@given(vectors())
def test_packing_keeps_every_word_and_nothing_else(drawn: tuple[RingBits, list[list[int]]]):
    ring_bits, (words, *_) = drawn
    packed = pack(np.array(words, word_dtype(ring_bits)), ring_bits)
    if ring_bits == 20:
        upper = [word >> 16 for word in words] + [0] * (len(words) % 2)
        whole = b"".join((word & 0xFFFF).to_bytes(2, "little") for word in words)
        whole += bytes(one | other << 4 for one, other in zip(*[iter(upper)] * 2, strict=True))
    else:
        whole = b"".join(word.to_bytes(ring_bits // 8, "little") for word in words)
    assert packed.tobytes() == whole
    assert len(packed) == packed_bytes(len(words), ring_bits)


@pytest.mark.parametrize(
    ("ring_bits", "hexadecimal"),
    [
        (16, "0403ffff0000"),
        (20, "0403ffff0000f200"),
        (24, "040302ffffff000000"),
        (32, "04030201ffffffff00000000"),
    ],
)
def test_known_bytes(ring_bits: RingBits, hexadecimal: str):
    words = np.array([0x01020304, 0xFFFFFFFF, 0], np.uint32).astype(word_dtype(ring_bits))
    assert pack(words, ring_bits).tobytes().hex() == hexadecimal


@pytest.mark.parametrize("ring_bits", RINGS)
def test_the_ends_of_the_ring_keep_their_sign(ring_bits: RingBits):
    half = 2 ** (ring_bits - 1)
    words = np.array([0, 1, half - 1, half, 2 * half - 1], word_dtype(ring_bits))
    assert reduced(words, ring_bits).tolist() == [0, 1, half - 1, -half, -1]


@pytest.mark.parametrize(("ring_bits", "hexadecimal"), [(20, "0100fffff0"), (24, "010000ffffff")])
def test_the_upper_bits_of_wider_words_mean_nothing(ring_bits: RingBits, hexadecimal: str):
    words = np.array([0xAB000001, 0xCDFFFFFF], np.uint32)
    assert reduced(words, ring_bits).tolist() == [1, -1]
    assert pack(words, ring_bits).tobytes().hex() == hexadecimal


@pytest.mark.parametrize("ring_bits", RINGS)
def test_bytes_of_a_message_may_be_read_only_and_unaligned(ring_bits: RingBits):
    words = np.arange(1, 10, dtype=word_dtype(ring_bits))
    received = np.frombuffer(b"x" + pack(words, ring_bits).tobytes(), np.uint8, offset=1)
    accumulator = words.copy()
    add_packed(accumulator, received, ring_bits)
    assert (accumulator == 2 * words).all()


@pytest.mark.parametrize("ring_bits", RINGS)
def test_words_may_be_a_strided_view(ring_bits: RingBits):
    words = np.arange(20, dtype=word_dtype(ring_bits))
    assert (pack(words[::2], ring_bits) == pack(words[::2].copy(), ring_bits)).all()


@pytest.mark.parametrize("ring_bits", RINGS)
@pytest.mark.parametrize("difference", [-1, 1, 4])
def test_another_length_is_refused_and_adds_nothing(ring_bits: RingBits, difference: int):
    accumulator = np.ones(10, word_dtype(ring_bits))
    length = packed_bytes(10, ring_bits) + difference
    with pytest.raises(MessageError, match=f"of {length} bytes, expected {length - difference} "):
        add_packed(accumulator, np.ones(length, np.uint8), ring_bits)
    assert (accumulator == 1).all()


@pytest.mark.parametrize("ring_bits", RINGS)
def test_adding_needs_no_second_vector(ring_bits: RingBits, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "_CHUNK_WORDS", USUAL_CHUNK)
    accumulator = np.zeros(1 << 21, word_dtype(ring_bits))
    packed = np.ones(packed_bytes(len(accumulator), ring_bits), np.uint8)
    tracemalloc.start()
    try:
        add_packed(accumulator, packed, ring_bits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
