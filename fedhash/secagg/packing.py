"""Ring words as bytes on the wire: 2, 2.5, 3 or 4 bytes a word, added as they arrive.

The words of a ring of 16 or 32 bits fill their type. Those of 20 and 24 bits stand in 32, where the
upper bits carry no meaning: sums modulo 2^32 are right modulo 2^24, and `reduced` drops the rest.
On the wire words are little-endian, one behind the other; of 20 bits come first the lower 16 of all
words, then the upper four, two words a byte.

Shape suffixes: L words, P = L * ring_bits / 8 bytes, rounded up.

    >>> accumulator = np.zeros(length, word_dtype(24))
    >>> add_packed(accumulator, pack(words, 24), 24)       # for each site
    >>> integers = reduced(accumulator, 24)                # signed, modulo 2^24
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Int16, Int32, UInt8, UInt16, UInt32

from fedhash.errors import MessageError

__all__ = ["RingBits", "Words", "add_packed", "pack", "packed_bytes", "reduced", "word_dtype"]

RingBits: TypeAlias = Literal[16, 20, 24, 32]
Words: TypeAlias = UInt16[np.ndarray, " L"] | UInt32[np.ndarray, " L"]

_CHUNK_WORDS = 1 << 16  # even; a chunk's temporaries stay in the processor's cache


def word_dtype(ring_bits: RingBits) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """The type in which a ring's words are kept: little-endian, as they travel."""
    return np.dtype("<u2") if ring_bits == 16 else np.dtype("<u4")


def packed_bytes(length: int, ring_bits: RingBits) -> int:
    """P of so many words."""
    return -(-length * ring_bits // 8)


def pack(words_L: Words, ring_bits: RingBits) -> UInt8[np.ndarray, " P"]:
    """The words as bytes; rings of 16 and 32 bits give a view, not a copy."""
    if ring_bits == 20:
        upper = np.zeros(len(words_L) + len(words_L) % 2, np.uint8)
        upper[: len(words_L)] = words_L >> 16 & 15
        lower = words_L.astype("<u2").view(np.uint8)
        return np.concatenate([lower, upper[::2] | upper[1::2] << 4])
    bytes_P = np.ascontiguousarray(words_L, word_dtype(ring_bits)).view(np.uint8)
    if ring_bits != 24:
        return bytes_P
    packed = np.empty((len(words_L), 3), np.uint8)
    for byte in range(3):  # numpy copies three columns four times as fast as rows of three
        packed[:, byte] = bytes_P[byte::4]
    return packed.reshape(-1)


def add_packed(
    accumulator_L: Words, packed_P: UInt8[np.ndarray, " P"], ring_bits: RingBits
) -> None:
    """Add packed words to the accumulator in place, without a second array of its size.

    Raises:
        MessageError: There are more or fewer bytes than the accumulator's words need.
    """
    expected = packed_bytes(len(accumulator_L), ring_bits)
    if len(packed_P) != expected:
        raise MessageError(
            f"a masked vector of {len(packed_P)} bytes, expected {expected} for "
            f"{len(accumulator_L)} words of {ring_bits} bits; the site has another layout"
        )
    if ring_bits in {16, 32}:
        accumulator_L += packed_P.view(word_dtype(ring_bits))
        return
    if ring_bits == 20:
        lower = packed_P[: 2 * len(accumulator_L)].view("<u2")
        upper = packed_P[2 * len(accumulator_L) :]
        for start in range(0, len(accumulator_L), _CHUNK_WORDS):
            part = accumulator_L[start : start + _CHUNK_WORDS]
            part += lower[start : start + _CHUNK_WORDS]
            pairs = upper[start // 2 : (start + _CHUNK_WORDS) // 2].astype(np.uint32)
            part[::2] += (pairs & 15) << 16
            part[1::2] += (pairs >> 4 << 16)[: len(part) // 2]
        return
    wide = np.zeros((_CHUNK_WORDS, 4), np.uint8)
    for start in range(0, len(accumulator_L), _CHUNK_WORDS):
        part = accumulator_L[start : start + _CHUNK_WORDS]
        three = packed_P[3 * start :][: 3 * len(part)].reshape(-1, 3)
        for byte in range(3):
            wide[: len(part), byte] = three[:, byte]
        part += wide.view(word_dtype(24))[: len(part), 0]


def reduced(
    accumulator_L: Words, ring_bits: RingBits
) -> Int16[np.ndarray, " L"] | Int32[np.ndarray, " L"]:
    """The signed integers that the words stand for; 16 and 32 bits give a view, not a copy."""
    if ring_bits == 16:
        return accumulator_L.view("<i2")
    if ring_bits == 32:
        return accumulator_L.view("<i4")
    spare = 32 - ring_bits
    return (accumulator_L << spare).view("<i4") >> spare  # the shift back copies the sign bit down
