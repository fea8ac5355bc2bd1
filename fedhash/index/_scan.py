"""FAISS's exact scans over packed codes that stand in a numpy array.

These are the kernels inside FAISS's IndexBinaryFlat. Called on an array of ours they need no second
copy of the codes, and scan a part of them as easily as all (https://github.com/facebookresearch/faiss,
faiss/utils/hamming.h).

Shape suffixes: N codes, W = b/8 bytes of a code, C codes found.

    >>> bound = kth_distance(query, codes[:4096], k=10)
    >>> positions, distances = within(query, codes, bound)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from jaxtyping import Int64, UInt8

__all__ = ["kth_distance", "within"]

_kernels: Any = faiss  # FAISS's type stubs do not know these functions as they are


def kth_distance(
    query_W: UInt8[np.ndarray, " W"],
    codes_NW: UInt8[np.ndarray, "N W"],
    k: int,
) -> int | None:
    """The k-th smallest Hamming distance in bits, or None where there are fewer codes."""
    if len(codes_NW) < k:
        return None
    distances = np.empty(k, dtype=np.int32)
    positions = np.empty(k, dtype=np.int64)
    with _one_thread():
        _kernels.hammings_knn_mc(
            faiss.swig_ptr(query_W),
            faiss.swig_ptr(codes_NW),
            1,
            len(codes_NW),
            k,
            len(query_W),
            faiss.swig_ptr(distances),
            faiss.swig_ptr(positions),
        )
    return int(distances[-1])


def within(
    query_W: UInt8[np.ndarray, " W"],
    codes_NW: UInt8[np.ndarray, "N W"],
    radius: int,
    unlike: bytes | None = None,
) -> tuple[Int64[np.ndarray, " C"], Int64[np.ndarray, " C"]]:
    """Positions, in rising order, and Hamming distances of all codes up to `radius` bits away.

    Codes that equal `unlike` are left out.
    """
    found = faiss.RangeSearchResult(1)
    with _one_thread():
        _kernels.hamming_range_search(
            faiss.swig_ptr(query_W),
            faiss.swig_ptr(codes_NW),
            1,
            len(codes_NW),
            radius + 1,  # FAISS leaves out the radius itself
            len(query_W),
            found,
        )
    # Views of FAISS's memory: copies of long lists would cost more than the scan.
    count = int(faiss.rev_swig_ptr(found.lims, 2)[1])
    positions = faiss.rev_swig_ptr(found.labels, count)
    distances = faiss.rev_swig_ptr(found.distances, count)
    if unlike is None:
        return positions.copy(), distances.astype(np.int64)
    whole = np.dtype((np.void, len(query_W)))  # a code as one value
    codes_N = codes_NW.view(whole).ravel()
    keep = np.flatnonzero(codes_N.take(positions) != np.frombuffer(unlike, dtype=whole))
    return positions[keep], distances[keep].astype(np.int64)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep OpenMP from waking a team of threads for one query.

    FAISS divides the work by queries, so the team has nothing to do, but on a busy machine its
    barrier costs up to a hundred times the scan. The number is the calling thread's own.
    """
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
