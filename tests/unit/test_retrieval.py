"""Closed-form metrics against the enumeration of all orders of the ties, and scikit-learn."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, ndcg_score

from fedhash.codes import hamming_distances, pack_signs
from fedhash.errors import DataError
from fedhash.evaluation import retrieval
from fedhash.evaluation.retrieval import average_precision, by_radius, count_pairs, ndcg, shuffled


def code(*bits_set: int) -> np.ndarray:
    """A 16-bit code, as -1/+1, with the given number of leading ones in each row."""
    return np.where(np.arange(16) < np.array(bits_set)[:, None], 1, -1).astype(np.int8)


@st.composite
def small_problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two queries and up to six items with many ties: distances 0 to 3, three findings."""
    items = draw(st.integers(1, 6))
    distances = draw(arrays(np.int64, items, elements=st.integers(0, 3)))
    labels = arrays(np.int8, (items + 2, 3), elements=st.integers(-1, 1))
    drawn = draw(labels)
    return pack_signs(code(0, 1)), drawn[:2], pack_signs(code(*distances)), drawn[2:]


def reference(
    problem: tuple[np.ndarray, ...], depth: int, query: int
) -> tuple[float | None, float | None]:
    """Mean AP and NDCG over all orders of the items that respect the distances."""
    query_codes, query_labels, codes, labels = problem
    distances = hamming_distances(query_codes, codes)[query]
    shared = [int(((query_labels[query] == 1) & (row == 1)).sum()) for row in labels]
    relevant = sum(s > 0 for s in shared)
    if not relevant:
        return None, None

    def dcg(order: list[int]) -> float:
        return sum((2**s - 1) / np.log2(rank + 2) for rank, s in enumerate(order[:depth]))

    aps, ndcgs = [], []
    for order in permutations(range(len(codes))):
        if any(distances[a] > distances[b] for a, b in pairwise(order)):
            continue
        ranked = [shared[i] for i in order]
        hits = [s > 0 for s in ranked]
        precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(min(depth, len(hits))) if hits[i]]
        aps.append(sum(precisions) / min(depth, relevant))
        ndcgs.append(dcg(ranked) / dcg(sorted(ranked, reverse=True)))
    return float(np.mean(aps)), float(np.mean(ndcgs))


@settings(max_examples=60, deadline=None)
@given(problem=small_problems(), depth=st.integers(1, 7))
def test_expectation_over_ties_equals_enumeration(
    problem: tuple[np.ndarray, ...], depth: int
) -> None:
    counts = count_pairs(*problem)
    for query in range(2):
        ap, gain = reference(problem, depth, query)
        found = average_precision(counts, depth)[query], ndcg(counts, depth)[query]
        if ap is None:
            assert np.isnan(found).all()
        else:
            np.testing.assert_allclose(found, (ap, gain), rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(problem=small_problems(), depth=st.integers(1, 7))
def test_chance_equals_enumeration_of_one_great_tie(
    problem: tuple[np.ndarray, ...], depth: int
) -> None:
    query_codes, query_labels, codes, labels = problem
    tied = query_codes, query_labels, np.zeros_like(codes), labels
    chance = average_precision(shuffled(count_pairs(*problem)), depth)
    for query in range(2):
        ap, _ = reference(tied, depth, query)
        assert np.isnan(chance[query]) if ap is None else chance[query] == pytest.approx(ap)


@given(st.permutations(range(16)), arrays(np.int8, 16, elements=st.integers(0, 1)))
def test_agrees_with_scikit_learn_where_nothing_ties(
    distances: list[int], hits: np.ndarray
) -> None:
    hits[0] = 1
    counts = count_pairs(
        pack_signs(code(0)), np.ones((1, 1), np.int8), pack_signs(code(*distances)), hits[:, None]
    )
    scores = -np.array(distances)
    assert average_precision(counts)[0] == pytest.approx(average_precision_score(hits, scores))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_ndcg_agrees_with_scikit_learn_with_ties(seed: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    queries, items = rng.standard_normal((3, 16)), rng.standard_normal((50, 16))
    query_labels = rng.integers(0, 2, (3, 4), dtype=np.int8)
    labels = rng.integers(0, 2, (50, 4), dtype=np.int8)
    query_labels[:, 0] = labels[:, 0] = 1
    codes = pack_signs(queries), pack_signs(items)
    gains = 2.0 ** (query_labels.astype(int) @ labels.T) - 1
    expected = ndcg_score(gains, -hamming_distances(*codes).astype(float), k=depth)
    found = ndcg(count_pairs(codes[0], query_labels, codes[1], labels), depth).mean()
    assert found == pytest.approx(expected)


def test_denominator_is_the_smaller_of_depth_and_relevant_items() -> None:
    # Ranking: miss, hit, miss, hit, hit. The hits-only denominator would give 1/2 at depth 3.
    labels = np.array([[0], [1], [0], [1], [1]], np.int8)
    counts = count_pairs(
        pack_signs(code(0)), np.ones((1, 1), np.int8), pack_signs(code(0, 1, 2, 3, 4)), labels
    )
    assert average_precision(counts, 3)[0] == pytest.approx((1 / 2) / 3)
    assert average_precision(counts)[0] == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert average_precision(counts, 100)[0] == average_precision(counts)[0]


def test_uncertain_findings_make_no_pair_relevant_and_remove_no_item() -> None:
    query_labels = np.array([[1, -1, 0]], np.int8)
    labels = np.array([[-1, 1, 0], [1, -1, 0], [0, 0, 1]], np.int8)
    counts = count_pairs(pack_signs(code(0)), query_labels, pack_signs(code(0, 1, 2)), labels)
    assert average_precision(counts)[0] == 0.5  # only the second of three items is relevant


def test_balls_by_radius() -> None:
    labels = np.array([[1], [0], [1]], np.int8)
    query_labels = np.array([[1], [0]], np.int8)
    counts = count_pairs(pack_signs(code(0, 0)), query_labels, pack_signs(code(1, 2, 2)), labels)
    precision, recall, empty = by_radius(counts)
    assert precision.shape == (2, 17)
    np.testing.assert_allclose(precision[0, :4], [0, 1, 2 / 3, 2 / 3])
    np.testing.assert_allclose(recall[0, :4], [0, 0.5, 1, 1])
    np.testing.assert_array_equal(empty[:, :3], [[True, False, False]] * 2)
    assert (precision[1] == 0).all()
    assert np.isnan(recall[1]).all()


def test_blocks_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    codes = pack_signs(rng.standard_normal((40, 64)))
    labels = rng.integers(-1, 2, (40, 5), dtype=np.int8)
    whole = count_pairs(codes[:11], labels[:11], codes[11:], labels[11:])
    monkeypatch.setattr(retrieval, "_BLOCK_PAIRS", 70)
    np.testing.assert_array_equal(
        whole, count_pairs(codes[:11], labels[:11], codes[11:], labels[11:])
    )
    assert (whole.sum(axis=(1, 2)) == 29).all()


def test_no_queries_have_no_figures() -> None:
    nobody = np.zeros((0, 17, 2), np.int64)
    for depth in (None, 5):
        assert average_precision(nobody, depth).shape == ndcg(nobody, depth).shape == (0,)
    assert [figures.shape for figures in by_radius(nobody)] == [(0, 17)] * 3


def test_nothing_to_evaluate_and_no_depth_are_refused() -> None:
    codes, labels = pack_signs(code(0)), np.ones((1, 1), np.int8)
    with pytest.raises(DataError, match="1 queries and 0 database items"):
        count_pairs(codes, labels, codes[:0], labels[:0])
    with pytest.raises(DataError, match="0 queries"):
        count_pairs(codes[:0], labels[:0], codes, labels)
    for metric in (average_precision, ndcg):
        with pytest.raises(DataError, match=r"depth of 0 ranks .* give 1 or more"):
            metric(count_pairs(codes, labels, codes, labels), 0)
