"""Retrieval metrics on binary codes, with items at equal Hamming distance handled in expectation.

A b-bit code has only b + 1 distances, so most of a ranking is ties, and their arbitrary order moves
mAP by many points. Every metric here is therefore the exact expectation over all orders of the tied
items (McSherry and Najork 2008; He et al., arXiv 1705.08562), in closed form. Rules:

1. Two studies are relevant to each other when they share a positive finding. An uncertain finding
   (-1) is neither positive nor negative: it makes no pair relevant and takes no item out.
2. AP is divided by min(depth, relevant items), so a ranking cannot gain by finding fewer items.
3. A query without a relevant item has no AP, no NDCG and no recall: NaN, never 0.
4. An empty ball has precision 0; its share of the queries is reported beside it.

Everything is computed from one table of counts, [Q, D, S]: how many database items stand at each
distance and share each number of positive findings with the query.

Shape suffixes: Q queries, N database items, W bytes of a code, K findings, D = bits + 1 distances,
S numbers of shared findings (from 0), G groups of tied items in ranking order.

    >>> counts = count_pairs(query_codes, query_labels, database_codes, database_labels)
    >>> ap = average_precision(counts, depth=100)        # [Q], NaN where nothing is relevant
    >>> by_luck = average_precision(shuffled(counts), depth=100)
    >>> precision, recall, empty = by_radius(counts)     # [Q, D] each; radius 0, 1, ..., bits
    >>> np.nanmean(ap), precision[:, 2].mean(), empty[:, 2].mean()
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64, UInt8

from fedhash.codes import hamming_distances
from fedhash.errors import DataError

__all__ = ["average_precision", "by_radius", "count_pairs", "ndcg", "shuffled"]

_BLOCK_PAIRS = 1 << 19  # pairs of query and database item worked on at once (about 12 MB)


def count_pairs(
    query_codes_QW: UInt8[np.ndarray, "Q W"],
    query_labels_QK: Int8[np.ndarray, "Q K"],
    database_codes_NW: UInt8[np.ndarray, "N W"],
    database_labels_NK: Int8[np.ndarray, "N K"],
) -> Int64[np.ndarray, "Q D S"]:
    """Count, for each query, the database items by distance and number of shared findings.

    Args:
        query_codes_QW: Packed codes of the queries.
        query_labels_QK: Findings of the queries: 1 positive, 0 negative, -1 uncertain.
        database_codes_NW: Packed codes of the same release.
        database_labels_NK: Findings of the database items.

    Raises:
        DataError: There is no query or no database item.
        ModelError: The codes differ in width.
    """
    if not len(query_codes_QW) or not len(database_codes_NW):
        raise DataError(
            f"{len(query_codes_QW)} queries and {len(database_codes_NW)} database items cannot be "
            "evaluated; give at least one of each"
        )
    query_QK = (query_labels_QK == 1).astype(np.float32)
    database_NK = (database_labels_NK == 1).astype(np.float32)
    most_shared = int(min(query_QK.sum(axis=1).max(), database_NK.sum(axis=1).max()))
    cells = (8 * query_codes_QW.shape[1] + 1, most_shared + 1)
    counts_QDS = np.empty((len(query_QK), *cells), dtype=np.int64)
    rows = max(1, _BLOCK_PAIRS // len(database_NK))
    for start in range(0, len(query_QK), rows):
        block = slice(start, start + rows)
        distances_qN = hamming_distances(query_codes_QW[block], database_codes_NW)
        shared_qN = (query_QK[block] @ database_NK.T).astype(np.int64)  # exact: below 2**24
        row_q1 = np.arange(len(distances_qN))[:, None]
        cell_qN = (row_q1 * cells[0] + distances_qN) * cells[1] + shared_qN
        counts = np.bincount(cell_qN.ravel(), minlength=len(distances_qN) * cells[0] * cells[1])
        counts_QDS[block] = counts.reshape(-1, *cells)
    return counts_QDS


def shuffled(counts_QDS: Int64[np.ndarray, "Q D S"]) -> Int64[np.ndarray, "Q 1 S"]:
    """The same items in one single tie: metrics of these counts are the level of chance."""
    tied_Q1S: Int64[np.ndarray, "Q 1 S"] = counts_QDS.sum(axis=1, keepdims=True)
    return tied_Q1S


def average_precision(
    counts_QDS: Int64[np.ndarray, "Q D S"], depth: int | None = None
) -> Float64[np.ndarray, " Q"]:
    """Expected average precision over the first `depth` ranks, divided by min(depth, relevant).

    Let a tied group hold n items, r of them relevant, after N earlier items of which M are
    relevant. Its t-th rank is relevant with probability r/n, and M + 1 + (t-1) a relevant items,
    a = (r-1)/(n-1), are then expected up to it. Summed over the T ranks above the depth,

        (r/n) sum_t (M + 1 + (t-1) a) / (N + t)
            = (r/n) [a T + (M + 1 - a (N + 1)) (H(N+T) - H(N))],   H the harmonic numbers.

    Args:
        counts_QDS: From :func:`count_pairs`.
        depth: Ranks that count, R of mAP@R; all of them when None.

    Raises:
        DataError: The depth is below 1.
    """
    items_QG = counts_QDS.sum(axis=2)
    relevant_QG = counts_QDS[:, :, 1:].sum(axis=2)
    total_Q = relevant_QG.sum(axis=1)
    depth = _checked_depth(depth, items_QG)
    before_QG, upto_QG = _first_and_last_rank(items_QG, depth)
    hits_before_QG = relevant_QG.cumsum(axis=1) - relevant_QG
    pace_QG = np.maximum(relevant_QG - 1, 0) / np.maximum(items_QG - 1, 1)
    harmonic = _cumulative(1.0 / np.arange(1, depth + 1))
    precision_QG = pace_QG * (upto_QG - before_QG) + (
        hits_before_QG + 1 - pace_QG * (before_QG + 1)
    ) * (harmonic[upto_QG] - harmonic[before_QG])
    sum_Q = (relevant_QG / np.maximum(items_QG, 1) * precision_QG).sum(axis=1)
    return _ratio(sum_Q, np.minimum(total_Q, depth))


def ndcg(
    counts_QDS: Int64[np.ndarray, "Q D S"], depth: int | None = None
) -> Float64[np.ndarray, " Q"]:
    """Expected normalised discounted cumulative gain over the first `depth` ranks.

    The gain of an item that shares s positive findings is 2**s - 1 and the discount at rank i is
    1 / log2(i + 1), as in arXiv 1705.08562; the ideal ranking has the most shared findings first.

    Args:
        counts_QDS: From :func:`count_pairs`.
        depth: Ranks that count; all of them when None.

    Raises:
        DataError: The depth is below 1.
    """
    gain_S = np.exp2(np.arange(counts_QDS.shape[2])) - 1
    ideal_QS = counts_QDS.sum(axis=1)[:, ::-1]
    reached_Q = _discounted_gain(counts_QDS.sum(axis=2), counts_QDS @ gain_S, depth)
    return _ratio(reached_Q, _discounted_gain(ideal_QS, ideal_QS * gain_S[::-1], depth))


def by_radius(
    counts_QDS: Int64[np.ndarray, "Q D S"],
) -> tuple[Float64[np.ndarray, "Q D"], Float64[np.ndarray, "Q D"], Bool[np.ndarray, "Q D"]]:
    """Precision, recall and emptiness of the Hamming ball of each radius 0, 1, ..., bits.

    Returns:
        Precision (0 in an empty ball), recall (NaN for a query without a relevant item), and
        whether the ball is empty.
    """
    found_QD = counts_QDS.sum(axis=2).cumsum(axis=1)
    hits_QD = counts_QDS[:, :, 1:].sum(axis=2).cumsum(axis=1)
    precision_QD = hits_QD / np.maximum(found_QD, 1)
    return precision_QD, _ratio(hits_QD, hits_QD[:, -1:]), found_QD == 0


def _discounted_gain(
    items_QG: Int64[np.ndarray, "Q G"], gain_QG: Float64[np.ndarray, "Q G"], depth: int | None
) -> Float64[np.ndarray, " Q"]:
    """Discounted gain in expectation: every item of a tie has the tie's mean gain."""
    depth = _checked_depth(depth, items_QG)
    before_QG, upto_QG = _first_and_last_rank(items_QG, depth)
    discount = _cumulative(1.0 / np.log2(np.arange(2, depth + 2)))
    mean_gain_QG = gain_QG / np.maximum(items_QG, 1)
    total_Q: Float64[np.ndarray, " Q"] = (
        mean_gain_QG * (discount[upto_QG] - discount[before_QG])
    ).sum(axis=1)
    return total_Q


def _checked_depth(depth: int | None, items_QG: Int64[np.ndarray, "Q G"]) -> int:
    if depth is not None and depth < 1:
        raise DataError(f"a depth of {depth} ranks was asked for; give 1 or more, or none for all")
    size = int(items_QG.sum(axis=1).max(initial=0))
    return size if depth is None else min(depth, size)


def _first_and_last_rank(
    items_QG: Int64[np.ndarray, "Q G"], depth: int
) -> tuple[Int64[np.ndarray, "Q G"], Int64[np.ndarray, "Q G"]]:
    """Ranks passed before and after each group, none of them beyond the depth."""
    after_QG = items_QG.cumsum(axis=1)
    return np.minimum(after_QG - items_QG, depth), np.minimum(after_QG, depth)


def _cumulative(terms: Float64[np.ndarray, " depth"]) -> Float64[np.ndarray, " ranks"]:
    """Sums of the first 0, 1, ..., depth terms."""
    return np.concatenate([[0.0], np.cumsum(terms)])


def _ratio(
    part: Int64[np.ndarray, " *shape"] | Float64[np.ndarray, " *shape"],
    whole: Int64[np.ndarray, " *whole"] | Float64[np.ndarray, " *whole"],
) -> Float64[np.ndarray, " *shape"]:
    """`part / whole`, NaN where the whole is 0."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)
