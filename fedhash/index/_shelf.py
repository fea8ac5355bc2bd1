"""The entries of one modality in memory, and their exact search.

Shape suffixes: N entries, P a part of them, C candidates, k hits, b bits, W = b/8 bytes of a code.

1. A shelf never changes: adding and removing give a new one, so a search that runs meanwhile sees
   either all of a batch or nothing of it, and takes no lock.
2. Entries stand in the order of their handles. The last tie-break is therefore the position, and,
   handles being keyed hashes, the first entries are a random sample of all.
3. A search is exact under the order (distance, -score, handle), whatever ties there are:
   a. The k best of a sample are found. They bound the k best of all.
   b. FAISS lists every other entry within that bound in one pass, ties and all; only nearer ones
      where the sample's k-th has the best score that its distance allows (always at distance 0).
   c. Scores are computed for those that the k-th distance leaves, and the k best are cut out.
   FAISS's own top-k would keep an arbitrary part of the ties at the boundary.

    >>> shelf = shelf.merged(new_entries)
    >>> positions, distances, scores = shelf.nearest(code, weights, k=10, radius=64)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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

    @classmethod
    def collected(cls, pieces: Iterable[Shelf], size: int, code_bytes: int) -> Shelf:
        """As `together`, for many pieces that never exist at the same time.

        Raises:
            ValueError: The pieces do not have `size` entries.
        """
        whole = cls(
            np.empty(size, dtype=HANDLE),
            np.empty((size, code_bytes), dtype=np.uint8),
            np.empty(size, dtype=np.int64),
            np.empty(size, dtype=np.int64),
            np.empty(size, dtype=np.int32),
        )
        filled = 0
        for piece in pieces:
            for column in fields(cls):
                place = getattr(whole, column.name)[filled : filled + len(piece)]
                place[:] = getattr(piece, column.name)
            filled += len(piece)
        if filled != size:
            raise ValueError(f"{filled} entries instead of {size}")
        return whole

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
        return Shelf(*(_chosen(getattr(self, column.name), which) for column in fields(self)))

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
        size = max(_SMALLEST_SAMPLE, len(self) // _SAMPLE_SHARE)
        if allowed is not None and np.count_nonzero(allowed[:size]) < k:
            few = np.flatnonzero(allowed)
            positions, distances, scores = self.chosen(few).nearest(code, weights, k, radius)
            return few[positions], distances, scores

        query = np.frombuffer(code, dtype=np.uint8)
        sample = self.codes[:size]
        if allowed is not None:
            sample = sample.take(np.flatnonzero(allowed[:size]), axis=0)
        bound = kth_distance(query, sample, k)
        reach = radius if bound is None else min(radius, bound)
        found = self._within(query, slice(0, size), reach, allowed)
        positions, distances, scores = self._ranked(*found, weights, k)
        surplus = None
        if len(positions) == k:
            surplus = self.codes[positions[-1]].tobytes()
            reach = int(distances[-1])
            if scores[-1] == _highest_score(query, weights, reach):
                reach -= 1
        # What stands behind the sample loses complete ties, so also the k-th's very code.
        others = self._within(query, slice(size, None), reach, allowed, unlike=surplus)
        return self._ranked(
            np.concatenate([positions, others[0]]),
            np.concatenate([distances, others[1]]),
            weights,
            k,
        )

    def _within(
        self,
        query_W: UInt8[np.ndarray, " W"],
        part: slice,
        radius: int,
        allowed: Bool[np.ndarray, " N"] | None,
        unlike: bytes | None = None,
    ) -> tuple[Int64[np.ndarray, " C"], Int64[np.ndarray, " C"]]:
        """Positions, in rising order, and distances of a part's entries up to `radius` bits away.

        FAISS could skip the entries that are not allowed (IDSelector), but takes seven times as
        long as without.
        """
        codes_PW = self.codes[part]
        if radius < 0 or not len(codes_PW):
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        positions, distances = within(query_W, codes_PW, radius, unlike)
        positions += part.start
        if allowed is not None:
            keep = allowed[positions]
            positions, distances = positions[keep], distances[keep]
        return positions, distances

    def _ranked(
        self,
        positions: Int64[np.ndarray, " C"],
        distances: Int64[np.ndarray, " C"],
        weights: Int16[np.ndarray, " b"],
        k: int,
    ) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
        """The first `k` of the order; of complete ties those that stand first in `positions`."""
        near = np.flatnonzero(distances <= _kth_smallest(distances, k))
        positions, distances = positions[near], distances[near]
        scores = _scores(weights, self.codes.take(positions, axis=0))
        # One integer carries both keys: |score| is below 2^21 (fedhash.search.query).
        keys = (distances << 32) - scores
        near = np.flatnonzero(keys <= _kth_smallest(keys, k))
        best = near[np.argsort(keys[near], kind="stable")[:k]]
        return positions[best], distances[best], scores[best]


def _kth_smallest(values: Int64[np.ndarray, " C"], k: int) -> int:
    """The k-th smallest value, or the largest where there are fewer."""
    if len(values) <= k:
        return int(values.max(initial=0))
    return int(np.partition(values, k - 1)[k - 1])


def _highest_score(
    query_W: UInt8[np.ndarray, " W"], weights: Int16[np.ndarray, " b"], distance: int
) -> int:
    """The best score that any code at `distance` bits from the query can have."""
    gains = np.sort(unpack_signs(query_W[None])[0] * weights.astype(np.int64))
    return int(gains.sum() - 2 * gains[:distance].sum())


def _scores(
    weights: Int16[np.ndarray, " b"], codes_CW: UInt8[np.ndarray, "C W"]
) -> Int64[np.ndarray, " C"]:
    """sum_j weight_j h_j over the codes' bits h in {-1, +1}, by one table of 256 sums a byte."""
    bytes_256x8 = unpack_signs(np.arange(256, dtype=np.uint8)[:, None]).astype(np.int64)
    tables_Wx256 = weights.reshape(-1, 8).astype(np.int64) @ bytes_256x8.T
    scores = np.zeros(len(codes_CW), dtype=np.int64)
    for table, column in zip(tables_Wx256, np.ascontiguousarray(codes_CW.T), strict=True):
        scores += table.take(column)
    return scores


def _chosen(
    column: Shaped[np.ndarray, "N ..."],
    which: Bool[np.ndarray, " N"] | Int64[np.ndarray, " C"] | slice,
) -> Shaped[np.ndarray, "C ..."]:
    """Some rows of `column`."""
    return _values(column)[which].view(column.dtype).reshape(-1, *column.shape[1:])


def _inserted(
    column: Shaped[np.ndarray, "N ..."],
    places: Int64[np.ndarray, " M"],
    values: Shaped[np.ndarray, "M ..."],
) -> Shaped[np.ndarray, "L ..."]:
    """`values` put into `column` before `places`."""
    merged = np.insert(_values(column), places, _values(values))
    return merged.view(column.dtype).reshape(-1, *column.shape[1:])


def _values(column: Shaped[np.ndarray, "N ..."]) -> Shaped[np.ndarray, " N"]:
    """Each row as one value of plain bytes: numpy moves those ten times as quickly as a matrix."""
    whole = np.dtype((np.void, column.dtype.itemsize * math.prod(column.shape[1:])))
    return column.view(whole).ravel()
