"""Binary codes: signs of real-valued outputs, packed into bytes, compared by Hamming distance.

Shape suffixes: N items, Q queries, b bits, W = b/8 bytes.

Bit j of a code is 1 where output j is >= 0 and stands in byte j // 8 at position j % 8
(little-endian bit order, as FAISS reads it).

    >>> packed = pack_signs(outputs)          # [N, b] real -> [N, W] uint8
    >>> hamming_distances(packed[:2], packed) # [2, N] uint16
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int8, UInt, UInt8, UInt16

from fedhash.errors import ModelError

__all__ = ["CODE_BITS_RANGE", "check_code_bits", "hamming_distances", "pack_signs", "unpack_signs"]

CODE_BITS_RANGE = (16, 256)
_BLOCK_BYTES = 1 << 26  # working memory of one block of distances
# widest first: an XOR and a count each
_WORDS = tuple(np.dtype(name) for name in ("u8", "u4", "u2", "u1"))


def check_code_bits(code_bits: int) -> None:
    """Raise ModelError unless `code_bits` is a multiple of 8 from 16 to 256."""
    low, high = CODE_BITS_RANGE
    if code_bits % 8 or not low <= code_bits <= high:
        raise ModelError(
            f"a code of {code_bits} bits was asked for; "
            f"code_bits must be a multiple of 8 from {low} to {high}"
        )


def pack_signs(
    outputs_Nb: Float[np.ndarray, "N b"] | Int8[np.ndarray, "N b"],
) -> UInt8[np.ndarray, "N W"]:
    """Pack the signs of real (or -1/+1) outputs; zero counts as positive."""
    return np.packbits(outputs_Nb >= 0, axis=1, bitorder="little")


def unpack_signs(packed_NW: UInt8[np.ndarray, "N W"]) -> Int8[np.ndarray, "N b"]:
    """Codes as -1/+1, the inverse of :func:`pack_signs`."""
    bits = np.unpackbits(packed_NW, axis=1, bitorder="little").astype(np.int8)
    return (2 * bits - 1).astype(np.int8)


def hamming_distances(
    queries_QW: UInt8[np.ndarray, "Q W"], database_NW: UInt8[np.ndarray, "N W"]
) -> UInt16[np.ndarray, "Q N"]:
    """All Hamming distances in bits.

    Args:
        queries_QW: Packed codes.
        database_NW: Packed codes of the same width.

    Raises:
        ModelError: The widths differ.
    """
    if queries_QW.shape[1] != database_NW.shape[1]:
        raise ModelError(
            f"codes of {8 * queries_QW.shape[1]} and {8 * database_NW.shape[1]} bits "
            "cannot be compared; encode both with the same release"
        )
    word = next(word for word in _WORDS if queries_QW.shape[1] % word.itemsize == 0)
    queries: UInt[np.ndarray, "Q words"] = np.ascontiguousarray(queries_QW).view(word)
    database: UInt[np.ndarray, "N words"] = np.ascontiguousarray(database_NW).view(word)
    distances = np.zeros((len(queries), len(database)), dtype=np.uint16)
    rows = max(1, _BLOCK_BYTES // max(1, database[:, 0].nbytes))
    for start in range(0, len(queries), rows):
        block = slice(start, start + rows)
        for column in range(queries.shape[1]):
            differing = queries[block, column, None] ^ database[None, :, column]
            distances[block] += np.bitwise_count(differing)
    return distances
