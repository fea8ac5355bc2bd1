"""The entries of one modality in memory, and their exact search.

Shape suffixes: N entries, W = b/8 bytes of a code, b bits, S entries in a sample, C candidates.

1. A shelf never changes: adding and removing give a new one, so a search that runs meanwhile sees
   either all of a batch or nothing of it, and takes no lock.
2. Entries stand in the order of their handles. The last tie-break is therefore the position, and,
   handles being keyed hashes, the first entries are a random sample of all.
3. A search is exact under the order (distance, -score, handle), whatever ties there are:
   a. The k-th distance among a sample bounds the k-th distance among all.
   b. FAISS lists every entry up to that bound in one pass: all of the k best, with all their ties.
   c. Scores are computed for those that the k-th distance leaves, and the k best are cut out.
   FAISS's own top-k would stop at k and keep an arbitrary part of the ties at the boundary.

    >>> shelf = shelf.merged(new_entries)
    >>> positions, distances, scores = shelf.nearest(code, weights, k=10, radius=64)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Int16, Int32, Int64, Shaped, UInt8

from fedhash.codes import unpack_signs
from fedhash.index._scan import kth_distance, within
from fedhash.index.entry import HANDLE_BYTES

__all__ = ["HANDLE", "Shelf"]

HANDLE = np.dtype(f"S{HANDLE_BYTES}")  # compares bytewise, so in the order of the hex digits

# A sample of 1/32 costs 3 % of a pass and lets about 32 k entries through the bound.
_SAMPLE_SHARE = 32
_SMALLEST_SAMPLE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Shelf:
    """Columns of N entries in the order of their handles.

    Attributes:
        handles: 16 bytes each.
        codes: Packed codes.
        rows: The entries' keys in the store.
        patients: Keyed hashes of the patients' ids.
        descriptions: Keys of the entries' attributes.
    """

    handles: Shaped[np.ndarray, " N"]
    codes: UInt8[np.ndarray, "N W"]
    rows: Int64[np.ndarray, " N"]
    patients: Int64[np.ndarray, " N"]
    descriptions: Int32[np.ndarray, " N"]

    @classmethod
    def of(
        cls,
        handles: Sequence[bytes],
        codes: Sequence[bytes],
        rows: Sequence[int],
        patients: Sequence[int],
        descriptions: Sequence[int],
        *,
        code_bytes: int,
    ) -> Shelf:
        """Columns from Python lists, in their order.

        Raises:
            TypeError: A handle or code is no bytes, or a key no integer.
            ValueError: Their total lengths do not fit.
        """
        return cls(
            np.frombuffer(b"".join(handles), dtype=HANDLE),
            np.frombuffer(b"".join(codes), dtype=np.uint8).reshape(-1, code_bytes),
            np.array(rows, dtype=np.int64),
            np.array(patients, dtype=np.int64),
            np.array(descriptions, dtype=np.int32),
        )

    @classmethod
    def together(cls, pieces: Sequence[Shelf]) -> Shelf:
        """The entries of one or more pieces, one piece behind the other."""
        return cls(
            *(
                np.concatenate([getattr(piece, column.name) for piece in pieces])
                for column in fields(cls)
            )
        )

    def __len__(self) -> int:
        return len(self.rows)

    def emptied(self) -> Shelf:
        """No entries, with codes of the same length."""
        return self.chosen(slice(0))

    def sorted(self) -> Shelf:
        """The entries in the order of their handles, as every other method needs them."""
        return self.chosen(np.argsort(self.handles, kind="stable"))

    def chosen(self, which: Bool[np.ndarray, " N"] | Int64[np.ndarray, " C"] | slice) -> Shelf:
        """Some entries, by mask, position or slice."""
        return Shelf(*(getattr(self, column.name)[which] for column in fields(self)))

    def merged(self, others: Shelf) -> Shelf:
        """These entries and `others`, both in order; no handle stands in both."""
        places = np.searchsorted(self.handles, others.handles)
        return Shelf(
            *(
                _inserted(getattr(self, column.name), places, getattr(others, column.name))
                for column in fields(self)
            )
        )

    def as_lists(self) -> tuple[list[bytes], list[bytes], list[int], list[int], list[int]]:
        """The columns as `of` takes them."""
        handle, code = f"V{HANDLE_BYTES}", f"V{self.codes.shape[1]}"
        return (
            self.handles.view(handle).tolist(),
            self.codes.view(code).ravel().tolist(),
            self.rows.tolist(),
            self.patients.tolist(),
            self.descriptions.tolist(),
        )

    def handle(self, position: int) -> str:
        """The handle at `position` as hex digits."""
        return bytes(self.handles[position]).ljust(HANDLE_BYTES, b"\0").hex()

    def holds(self, handles: Shaped[np.ndarray, " H"]) -> Bool[np.ndarray, " N"]:
        """Which entries have one of `handles` (any order)."""
        mask = np.zeros(len(self), dtype=bool)
        places = np.searchsorted(self.handles, handles)
        inside = places < len(self)
        places, handles = places[inside], handles[inside]
        mask[places[self.handles[places] == handles]] = True
        return mask

    def nearest(
        self,
        code: bytes,
        weights: Int16[np.ndarray, " b"],
        k: int,
        radius: int,
        allowed: Bool[np.ndarray, " N"] | None = None,
    ) -> tuple[Int64[np.ndarray, " C"], Int64[np.ndarray, " C"], Int64[np.ndarray, " C"]]:
        """The best entries under (distance, -score, handle), at most `k`.

        Args:
            code: The query's packed code.
            weights: The query's integer weights.
            k: Entries wanted.
            radius: Largest distance in bits.
            allowed: Entries that may be found; None for all.

        Returns:
            Positions, Hamming distances in bits and scores, best first.
        """
        positions, distances = self._candidates(
            np.frombuffer(code, dtype=np.uint8), k, radius, allowed
        )
        if len(positions) > k:
            close = distances <= np.partition(distances, k - 1)[k - 1]
            positions, distances = positions[close], distances[close]
        scores = _scores(weights, self.codes[positions])
        # One integer carries both keys: |score| is below 2^21 (fedhash.search.query).
        keys = (distances << 32) - scores
        last = np.partition(keys, k - 1)[k - 1] if len(keys) > k else np.inf
        close = np.flatnonzero(keys <= last)
        # Positions rise and the sort is stable: what is still equal stays in the handles' order.
        best = close[np.argsort(keys[close], kind="stable")[:k]]
        return positions[best], distances[best], scores[best]

    def _candidates(
        self,
        query_W: UInt8[np.ndarray, " W"],
        k: int,
        radius: int,
        allowed: Bool[np.ndarray, " N"] | None,
    ) -> tuple[Int64[np.ndarray, " C"], Int64[np.ndarray, " C"]]:
        """Positions, in rising order, and distances of all that can be among the `k` best."""
        size = max(_SMALLEST_SAMPLE, len(self) // _SAMPLE_SHARE)
        if allowed is None:
            bound = kth_distance(query_W, self.codes[:size], k)
            return within(query_W, self.codes, radius if bound is None else min(radius, bound))
        bound = kth_distance(query_W, self.codes[:size][allowed[:size]], k)
        if bound is None:  # few are allowed, so they alone are scanned
            few = np.flatnonzero(allowed)
            positions, distances = within(query_W, self.codes[few], radius)
            return few[positions], distances
        # FAISS could leave out the others itself (IDSelector), but takes seven times as long.
        positions, distances = within(query_W, self.codes, min(radius, bound))
        keep = allowed[positions]
        return positions[keep], distances[keep]


def _scores(
    weights: Int16[np.ndarray, " b"], codes_CW: UInt8[np.ndarray, "C W"]
) -> Int64[np.ndarray, " C"]:
    """sum_j weight_j h_j over the codes' bits h in {-1, +1}, by one table of 256 sums a byte."""
    bytes_256x8 = unpack_signs(np.arange(256, dtype=np.uint8)[:, None]).astype(np.int64)
    tables_Wx256 = weights.reshape(-1, 8).astype(np.int64) @ bytes_256x8.T
    scores = np.zeros(len(codes_CW), dtype=np.int64)
    for table, column in zip(tables_Wx256, codes_CW.T, strict=True):
        scores += table[column]
    return scores


def _inserted(
    column: Shaped[np.ndarray, "N ..."],
    places: Int64[np.ndarray, " M"],
    values: Shaped[np.ndarray, "M ..."],
) -> Shaped[np.ndarray, "L ..."]:
    """`values` put into `column` before `places`."""
    # np.insert is ten times as quick on rows seen as plain bytes than on a matrix or on text.
    row = np.dtype((np.void, column.dtype.itemsize * math.prod(column.shape[1:])))
    merged = np.insert(column.view(row).ravel(), places, values.view(row).ravel())
    return merged.view(column.dtype).reshape(-1, *column.shape[1:])
