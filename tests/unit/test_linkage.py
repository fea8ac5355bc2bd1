"""Expected recall and rank against the enumeration of all pools and all orders of the ties."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedhash.codes import hamming_distances, pack_signs
from fedhash.errors import DataError
from fedhash.evaluation import linkage
from fedhash.evaluation.linkage import (
    Standings,
    audit_direction,
    expected_rank,
    expected_recall,
    one_pair_a_patient,
    standings,
)
from fedhash.models.prepared import PreparedStudies


def ranks_of(distances: list[int], own: int, others: list[int], pool: int) -> list[int]:
    """Rank of one's own item, over all pools and all orders that respect the distances."""
    return [
        order.index(own) + 1
        for drawn in combinations(others, min(pool - 1, len(others)))
        for order in permutations([own, *drawn])
        if all(distances[a] <= distances[b] for a, b in pairwise(order))
    ]


@settings(max_examples=60)
@given(
    codes=arrays(np.int8, (2, 5, 16), elements=st.sampled_from([-1, 1])),
    leading=st.integers(1, 3),
    labels=arrays(np.int8, (5, 1), elements=st.integers(-1, 1)),
    pool=st.integers(2, 5),
    rank=st.integers(1, 5),
)
def test_recall_and_rank_are_those_of_all_pools_and_orders(
    codes: np.ndarray, leading: int, labels: np.ndarray, pool: int, rank: int
) -> None:
    codes[:, :, leading:] = 1  # few distances, so many ties
    groups = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    both = standings(codes[0].astype(np.float32), codes[1].astype(np.float32), groups, 0.5)
    distances = hamming_distances(pack_signs(codes[0]), pack_signs(codes[1]))
    for place, found in enumerate(both):
        recall, mean_rank = expected_recall(found, pool, rank), expected_rank(found, pool)
        for own in range(5):
            others = [
                each
                for each in range(5)
                if each != own and (place == 0 or (labels[each] == labels[own]).all())
            ]
            assert found.others[own] == len(others)
            if not others:
                continue
            # pools of unequally many orders count alike, so each is averaged by itself
            pools = [
                ranks_of(distances[own].tolist(), own, list(drawn), pool)
                for drawn in combinations(others, min(pool - 1, len(others)))
            ]
            hits = [np.mean([each <= rank for each in ranks]) for ranks in pools]
            assert recall[own] == pytest.approx(np.mean(hits))
            assert mean_rank[own] == pytest.approx(np.mean([np.mean(ranks) for ranks in pools]))


def random_order_reference(
    products: np.ndarray, pool: int, rank: int, draws: int, rng: np.random.Generator
) -> float:
    """Recall by drawing pools and orders."""
    hits = 0
    for _ in range(draws):
        for own in range(len(products)):
            others = np.delete(np.arange(len(products)), own)
            items = np.append(rng.choice(others, pool - 1, replace=False), own)
            items = rng.permutation(items)
            order = items[np.argsort(-products[own][items], kind="stable")]
            hits += own in order[:rank]
    return hits / draws / len(products)


def test_recall_is_that_of_random_pools_in_random_order() -> None:
    rng = np.random.default_rng(0)
    codes = rng.choice([-1.0, 1.0], size=(2, 40, 16))
    codes[:, :, 6:] = 1
    codes[1, :20] = codes[0, :20]  # some are easy to link
    found, _ = standings(codes[0], codes[1], np.zeros(40, np.int64), 0.5)
    for pool, rank in ((10, 1), (10, 5), (40, 1)):
        drawn = random_order_reference(codes[0] @ codes[1].T, pool, rank, 300, rng)
        # 12,000 draws: the standard error is below 0.005
        assert expected_recall(found, pool, rank).mean() == pytest.approx(drawn, abs=0.02)


def figures(rows: list[linkage.LinkageRow], **chosen: object) -> list[linkage.LinkageRow]:
    return [row for row in rows if all(getattr(row, k) == v for k, v in chosen.items())]


def figure(rows: list[linkage.LinkageRow], **chosen: object) -> linkage.LinkageRow:
    (row,) = figures(rows, **chosen)
    return row


def one_direction(
    queries: np.ndarray, targets: np.ndarray, labels: np.ndarray, **more: object
) -> list[linkage.LinkageRow]:
    return audit_direction(
        queries.astype(np.float32),
        targets.astype(np.float32),
        labels.astype(np.int8),
        query="image",
        target="report",
        seed=0,
        **more,  # type: ignore[arg-type]
    )


def test_perfect_links_and_none() -> None:
    rng = np.random.default_rng(1)
    outputs = rng.normal(size=(300, 64))
    labels = rng.integers(0, 2, size=(300, 1))
    perfect = one_direction(outputs, outputs, labels)
    assert {row.pool for row in perfect} == {100}
    for row in figures(perfect, metric="recall@1") + figures(perfect, metric="median_rank"):
        assert row.value == row.low == row.high == 1
    lift = figure(perfect, metric="lift@1", pools="random", representation="codes")
    assert lift.value == pytest.approx(100)
    unrelated = one_direction(outputs, rng.normal(size=(300, 64)), labels)
    for row in figures(unrelated, metric="lift@10"):
        assert row.value == pytest.approx(1, abs=0.6)  # a standard error is about 0.17
        assert row.chance == 1
    for row in figures(unrelated, metric="recall@10"):
        assert row.chance == pytest.approx(0.1)
        assert row.value == pytest.approx(0.1, abs=0.05)


def test_codes_that_are_all_the_same_are_chance_itself() -> None:
    same = np.ones((50, 16))
    rows = one_direction(same, same, np.zeros((50, 1)), pools=(10, 50))
    for row in rows:
        assert row.value == pytest.approx(row.chance)
    assert figure(
        rows, metric="median_rank", pool=50, pools="random", representation="floats"
    ).value == pytest.approx(25.5)


def test_labels_alone_link_nobody_in_matched_pools() -> None:
    """A code that is a function of the labels: linked far above chance, and not within them."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, size=(200, 4))
    codes = np.repeat(2 * labels - 1, 4, axis=1)
    rows = one_direction(codes, codes, labels, pools=(100,))
    random = figure(rows, metric="lift@1", pools="random", representation="codes")
    assert random.low > 5
    matched = figure(rows, metric="lift@1", pools="matched", representation="codes")
    assert matched.value == pytest.approx(1)
    sizes = np.unique(labels, axis=0, return_counts=True)[1]
    assert matched.median_pool == np.median(np.repeat(sizes, sizes))
    chance = figure(rows, metric="recall@1", pools="matched", representation="codes").chance
    assert chance == pytest.approx(np.mean(1 / np.repeat(sizes, sizes)))


def test_patients_whose_labels_nobody_shares_are_left_out_of_matched_pools() -> None:
    rng = np.random.default_rng(3)
    labels = np.array([[0, 0]] * 4 + [[0, 1]] * 2 + [[1, 1]])
    rows = one_direction(rng.normal(size=(7, 16)), rng.normal(size=(7, 16)), labels, pools=(2, 7))
    assert {row.patients for row in figures(rows, pools="random")} == {7}
    assert {row.patients for row in figures(rows, pools="matched")} == {6}
    assert {row.median_pool for row in figures(rows, pools="matched", pool=2)} == {2}
    assert {row.median_pool for row in figures(rows, pools="matched", pool=7)} == {4}
    alone = one_direction(
        rng.normal(size=(2, 16)), rng.normal(size=(2, 16)), labels[5:], pools=(2,)
    )
    assert {row.pools for row in alone} == {"random"}


def test_pools_that_are_too_large_are_left_out() -> None:
    rng = np.random.default_rng(4)
    outputs, labels = rng.normal(size=(120, 16)), np.arange(120)[:, None] // 3 % 100
    rows = one_direction(outputs, outputs, labels, pools=(1000, 2, 100, 2))
    assert sorted({row.pool for row in figures(rows, pools="random")}) == [2, 100]
    # groups of three: the pool of 2, and then all three of them
    assert sorted({row.pool for row in figures(rows, pools="matched")}) == [2, 100]
    few = one_direction(outputs[:7], outputs[:7], labels[:7])
    assert {(row.pool, row.median_pool) for row in figures(few, pools="random")} == {(100, 7)}
    assert figure(few, metric="recall@1", pools="random", representation="codes").chance == (
        pytest.approx(1 / 7)
    )
    assert one_direction(outputs[:7], outputs[:7], labels[:7])[0] == few[0]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    queries, targets = rng.normal(size=(2, 30, 16))
    labels = rng.integers(0, 2, size=(30, 1))
    whole = one_direction(queries, targets, labels, pools=(10,))
    monkeypatch.setattr(linkage, "_BLOCK_PAIRS", 70)
    assert one_direction(queries, targets, labels, pools=(10,)) == whole


def test_equal_texts_are_tied_although_they_were_rounded_apart() -> None:
    rng = np.random.default_rng(6)
    targets = np.repeat(rng.normal(size=(1, 16)), 9, axis=0) * (1 + 1e-7 * rng.normal(size=(9, 1)))
    rows = one_direction(rng.normal(size=(9, 16)), targets, np.zeros((9, 1)), pools=(9,))
    for row in figures(rows, metric="recall@1"):
        assert row.value == pytest.approx(1 / 9)


@given(
    values=arrays(np.float64, st.integers(1, 12), elements=st.integers(0, 5).map(float)),
    seed=st.integers(0, 100),
)
def test_resampled_means_and_medians(values: np.ndarray, seed: int) -> None:
    samples = linkage._resamples(len(values), np.random.default_rng(seed))
    assert (samples.sum(axis=1) == len(values)).all()
    medians, means = linkage._medians(samples, values), linkage._means(samples, values[None])[0]
    for sample, median, mean in list(zip(samples, medians, means, strict=True))[:20]:
        drawn = np.repeat(values, sample)
        assert median == np.median(drawn)
        assert mean == pytest.approx(drawn.mean())


def test_the_interval_is_that_of_a_mean() -> None:
    rng = np.random.default_rng(7)
    outputs = rng.normal(size=(2000, 16))
    rows = one_direction(
        outputs, outputs + rng.normal(size=outputs.shape), np.zeros((2000, 1)), pools=(1000,)
    )
    row = figure(rows, metric="recall@1", pools="random", representation="floats")
    found, _ = standings(
        linkage._units(outputs.astype(np.float32)),
        linkage._units(outputs.astype(np.float32)),
        np.zeros(2000, np.int64),
        1e-6,
    )
    assert isinstance(found, Standings)
    assert row.low < row.value < row.high
    spread = np.sqrt(row.value * (1 - row.value) / 2000)  # of yes and no; expectations vary less
    assert 0.5 * spread < row.high - row.low < 4 * 1.1 * spread


def prepared(patients: list[str], image: list[bool], report: list[bool]) -> PreparedStudies:
    rows = len(patients)
    return PreparedStudies(
        study_ids=tuple(f"study-{row}" for row in range(rows)),
        patient_ids=tuple(patients),
        labels=torch.zeros(rows, 1, dtype=torch.int8),
        inputs={name: torch.zeros(rows, 2) for name in ("image", "report")},
        present={"image": torch.tensor(image), "report": torch.tensor(report)},
        attributes=({},) * rows,
    )


def test_one_pair_stands_for_a_patient() -> None:
    studies = prepared(
        ["a", "b", "a", "a", "c", "b"],
        [True, True, True, True, False, False],
        [True, True, True, False, True, True],
    )
    chosen = {
        seed: one_pair_a_patient(studies, ("image", "report"), seed).study_ids for seed in range(20)
    }
    assert set(chosen.values()) == {("study-0", "study-1"), ("study-2", "study-1")}
    for seed, ids in chosen.items():
        assert one_pair_a_patient(studies, ("report", "image"), seed).study_ids == ids


def test_what_cannot_be_linked_is_told() -> None:
    outputs = np.ones((3, 16))
    with pytest.raises(DataError, match="1 patients cannot be taken for each other"):
        one_direction(outputs[:1], outputs[:1], np.zeros((1, 1)))
    with pytest.raises(DataError, match=r"the pools are \[1\]"):
        one_direction(outputs, outputs, np.zeros((3, 1)), pools=(1,))
