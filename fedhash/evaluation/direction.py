"""One retrieval direction (image to report, image to image, ...) as tidy rows of metrics.

The rows keep these rules:

1. `map`, `ndcg` and their levels of chance are means over the queries with a relevant item; the
   number behind each figure stands in its row. A figure of no query has no row.
2. `map` of the group ``finding=F`` asks for F alone: its queries are those positive for F, and
   relevant to them are the database items positive for F. `macro_map` is the mean over findings;
   a frequent finding (often "no finding") carries the plain `map`, so the two belong together.
3. A group ``NAME=VALUE`` of an attribute has the queries with that value, and the whole database.

    >>> rows = evaluate_direction(codes_q, labels_q, codes_n, labels_n, findings=agreement.findings)
    >>> [str(row) for row in rows][:2]
    ['map all 0.7604 (n=607)', 'chance_map all 0.3861 (n=607)']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int8, Int64, UInt8

from fedhash.evaluation.retrieval import average_precision, by_radius, count_pairs, ndcg, shuffled

__all__ = ["BALL_RADIUS_BITS", "MetricRow", "evaluate_direction"]

BALL_RADIUS_BITS = 2  # P@H<=2: the ball of hash-table lookup in the literature


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One figure of an evaluation.

    Attributes:
        metric: `map`, `chance_map`, `macro_map`, `macro_chance_map`, `ndcg`, `chance_ndcg`,
            `precision_in_ball`, `empty_ball_share`, `precision_in_radius`, `recall_in_radius`,
            `empty_in_radius` (the share of queries that find nothing).
        group: `all`, `finding=F`, `NAME=VALUE` of an attribute, or `radius=BITS`.
        value: From 0 to 1.
        count: How many queries (findings, for the macro figures) the value is a mean of.
    """

    metric: str
    group: str
    value: float
    count: int

    def __str__(self) -> str:
        return f"{self.metric} {self.group} {self.value:.4f} (n={self.count})"


def evaluate_direction(
    query_codes_QW: UInt8[np.ndarray, "Q W"],
    query_labels_QK: Int8[np.ndarray, "Q K"],
    database_codes_NW: UInt8[np.ndarray, "N W"],
    database_labels_NK: Int8[np.ndarray, "N K"],
    *,
    findings: Sequence[str],
    depth: int | None = None,
    query_attributes: Sequence[Mapping[str, str]] = (),
) -> list[MetricRow]:
    """Evaluate the ranking of a database by Hamming distance for each query.

    Args:
        query_codes_QW: Packed codes of the queries.
        query_labels_QK: Findings of the queries: 1 positive, 0 negative, -1 uncertain.
        database_codes_NW: Packed codes of the same release.
        database_labels_NK: Findings of the database items.
        findings: The K names of the label columns.
        depth: Ranks that count in AP and NDCG; all of them when None.
        query_attributes: Attributes of each query, in order; empty for no attribute groups.

    Raises:
        DataError: No query, no database item, or a depth below 1.
        ModelError: The codes differ in width.
    """
    counts_QDS = count_pairs(query_codes_QW, query_labels_QK, database_codes_NW, database_labels_NK)
    ap_Q, chance_Q = _average_precisions(counts_QDS, depth)
    precision_QD, recall_QD, empty_QD = by_radius(counts_QDS)
    rows = [
        _row("map", "all", ap_Q),
        _row("chance_map", "all", chance_Q),
        _row("ndcg", "all", ndcg(counts_QDS, depth)),
        _row("chance_ndcg", "all", ndcg(shuffled(counts_QDS), depth)),
        _row("precision_in_ball", "all", precision_QD[:, BALL_RADIUS_BITS]),
        _row("empty_ball_share", "all", empty_QD[:, BALL_RADIUS_BITS].astype(np.float64)),
    ]
    for radius in range(counts_QDS.shape[1]):
        rows.append(_row("precision_in_radius", f"radius={radius}", precision_QD[:, radius]))
        rows.append(_row("recall_in_radius", f"radius={radius}", recall_QD[:, radius]))
        rows.append(_row("empty_in_radius", f"radius={radius}", empty_QD[:, radius].astype(float)))
    for name, value in sorted({pair for each in query_attributes for pair in each.items()}):
        group_Q = np.array([each.get(name) == value for each in query_attributes])
        rows.append(_row("map", f"{name}={value}", ap_Q[group_Q]))
        rows.append(_row("chance_map", f"{name}={value}", chance_Q[group_Q]))
    by_finding: list[MetricRow] = []
    several_Q = (query_labels_QK == 1).sum(axis=1) > 1
    for k, finding in enumerate(findings):
        queries_Q = query_labels_QK[:, k] == 1
        if queries_Q.any():
            of_k_Q, chance_of_k_Q = ap_Q.copy(), chance_Q.copy()  # of a query with this one finding
            recounted_Q = queries_Q & several_Q
            if recounted_Q.any():
                counts = count_pairs(
                    query_codes_QW[recounted_Q],
                    query_labels_QK[recounted_Q, k : k + 1],
                    database_codes_NW,
                    database_labels_NK[:, k : k + 1],
                )
                of_k_Q[recounted_Q], chance_of_k_Q[recounted_Q] = _average_precisions(counts, depth)
            by_finding.append(_row("map", f"finding={finding}", of_k_Q[queries_Q]))
            by_finding.append(_row("chance_map", f"finding={finding}", chance_of_k_Q[queries_Q]))
    for metric in ("map", "chance_map"):
        values = [row.value for row in by_finding if row.metric == metric and row.count]
        rows.append(_row(f"macro_{metric}", "all", np.array(values)))
    return [row for row in [*rows, *by_finding] if row.count]


def _average_precisions(
    counts_QDS: Int64[np.ndarray, "Q D S"], depth: int | None
) -> tuple[Float64[np.ndarray, " Q"], Float64[np.ndarray, " Q"]]:
    """AP of the ranking, and of the same items in a random order."""
    return average_precision(counts_QDS, depth), average_precision(shuffled(counts_QDS), depth)


def _row(metric: str, group: str, values: Float64[np.ndarray, " n"]) -> MetricRow:
    """The mean over the queries that have a value; NaN and a count of 0 when none has."""
    values = values[~np.isnan(values)]
    mean = float(values.mean()) if len(values) else float("nan")
    return MetricRow(metric, group, mean, len(values))
