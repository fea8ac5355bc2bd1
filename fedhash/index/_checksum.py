"""A checksum over a set of rows that is updated row by row and does not depend on their order.

The checksum of a set is the sum of its rows' 64-bit hashes: adding a row adds its hash, removing it
subtracts the hash. It finds damage, not forgery.

Shape suffixes: N entries, W = b/8 bytes of a code, X = W rounded up to whole words.

    >>> total = checksum_of_entries(shelf) + checksum_of_values(("release", 64))
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import UInt64

from fedhash.index._shelf import Shelf
from fedhash.index.entry import HANDLE_BYTES

__all__ = ["checksum_of_entries", "checksum_of_values"]

_WORD_BYTES = 8


def checksum_of_entries(shelf: Shelf) -> int:
    """The sum of the hashes of all columns' values, entry by entry."""
    spare = -shelf.codes.shape[1] % _WORD_BYTES
    codes_NX = np.pad(shelf.codes, ((0, 0), (0, spare)))
    handles_Nx2 = shelf.handles.view("<u8").reshape(-1, HANDLE_BYTES // _WORD_BYTES)
    hashes = np.zeros(len(shelf), dtype=np.uint64)
    for words in (*handles_Nx2.T, *codes_NX.view("<u8").T):
        hashes = _mixed(hashes ^ words)
    for numbers in (shelf.rows, shelf.patients, shelf.descriptions.astype(np.int64)):
        hashes = _mixed(hashes ^ numbers.view(np.uint64))
    return int(hashes.sum())


def checksum_of_values(*rows: tuple[object, ...]) -> int:
    """The sum of the hashes of rows of plain Python values."""
    digests = (hashlib.blake2b(repr(row).encode(), digest_size=8).digest() for row in rows)
    return sum(int.from_bytes(digest, "little") for digest in digests)


def _mixed(words: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """One step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014); any changed bit changes all."""
    mixed: UInt64[np.ndarray, " N"] = words + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
