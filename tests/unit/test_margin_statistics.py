"""Margin statistics of a site: the rows, their sensitivity, the noise and what is made of it."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhash.agreement import Agreement
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import HashModel, build_model
from fedhash.models.prepared import PreparedStudies
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.privacy.margin_statistics import (
    SENSITIVITY,
    MarginSums,
    margin_statistics,
    patient_rows,
    sums_block,
)
from fedhash.privacy.noise import SimulatedNoise

FINDINGS = ("no_finding", "effusion", "nodule", "mass", "edema")
K, BITS = len(FINDINGS), 16
ANCHORS = Anchors.build(
    Agreement(
        name="test",
        findings=FINDINGS,
        parents={"mass": "nodule"},
        code_bits=BITS,
        modalities=("image", "report"),
    )
)
LARGE = 1e9


class GivenOutputs(HashModel):
    """Its inputs are its outputs."""

    def __init__(self) -> None:
        super().__init__({}, BITS)

    def encode(self, modality: str, prepared: torch.Tensor) -> torch.Tensor:
        return prepared


MODEL = GivenOutputs()


def studies_of(
    labels: list[list[int]],
    outputs: dict[str, np.ndarray],
    present: dict[str, list[bool]] | None = None,
    patients: list[str] | None = None,
) -> PreparedStudies:
    count = len(labels)
    return PreparedStudies(
        study_ids=tuple(f"s{i}" for i in range(count)),
        patient_ids=tuple(patients or [f"p{i}" for i in range(count)]),
        labels=torch.tensor(labels, dtype=torch.int8).reshape(count, K),
        inputs={name: torch.from_numpy(each.astype(np.float32)) for name, each in outputs.items()},
        present={
            name: torch.tensor(present[name] if present else [True] * count) for name in outputs
        },
        attributes=({},) * count,
    )


numbers = st.floats(width=32, allow_subnormal=False) | st.sampled_from(
    [np.inf, -np.inf, np.nan, 3e38, 0.0]
)


def any_studies(most: int = 5) -> st.SearchStrategy[tuple[Any, ...]]:
    """Arguments of `studies_of`: any labels, and outputs that a hostile model may give."""
    labels = st.lists(st.sampled_from([-1, 0, 1]), min_size=K, max_size=K)
    anchors = st.sampled_from((1e6 * ANCHORS.matrix).tolist())
    outputs = st.lists(numbers, min_size=BITS, max_size=BITS) | anchors
    study = st.tuples(
        labels, outputs, outputs, st.booleans(), st.booleans(), st.sampled_from("abc")
    )
    return st.lists(study, min_size=1, max_size=most).map(
        lambda rows: (
            [row[0] for row in rows],
            {"image": np.array([r[1] for r in rows]), "report": np.array([r[2] for r in rows])},
            {"image": [row[3] for row in rows], "report": [row[4] for row in rows]},
            [row[5] for row in rows],
        )
    )


def by_hand(studies: PreparedStudies, row: int, kappa: float) -> np.ndarray:
    """The module's formulas, one number after the other."""
    labels = studies.labels[row].tolist()
    positive = [k for k in range(K) if labels[k] == 1]
    negative = [k for k in range(K) if labels[k] == 0]
    found = np.zeros((3, K))
    names = [name for name in studies.inputs if studies.present[name][row]]
    if not (positive and negative and names):
        return found.reshape(-1)
    theta = ANCHORS.theta(np.array([labels], np.int8))[0].tolist()
    for p in positive:
        slacks = []
        for name in names:
            u = studies.inputs[name][row].numpy().astype(np.float64)
            v = u / sqrt(float(u @ u) + kappa**2)
            c = [float(ANCHORS.matrix[k] @ v) / sqrt(BITS) for k in range(K)]
            wanted = max(0.1, theta[p] - max(theta[n] for n in negative))
            slacks.append(min(1, max(-1, (c[p] - max(c[n] for n in negative)) / wanted)))
        r = sum(slacks) / len(slacks)
        found[:, p] = np.array([1, r, r * r]) / sqrt(len(positive))
    return found.reshape(-1)


def test_rows_are_those_of_the_formulas() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([-1, 0, 1], (200, K), p=[0.1, 0.6, 0.3]).tolist()
    outputs = {name: rng.normal(size=(200, BITS)) for name in ("image", "report")}
    present = {name: (rng.random(200) < 0.8).tolist() for name in outputs}
    studies = studies_of(labels, outputs, present)
    rows = patient_rows(MODEL, studies, ANCHORS, kappa=0.5)
    expected = np.stack([by_hand(studies, row, 0.5) for row in range(200)])
    np.testing.assert_allclose(rows, expected, atol=1e-5)  # the model's floats are of 32 bits
    assert (np.abs(rows[:, K : 2 * K]) < 0.57).any()
    assert (rows[:, K : 2 * K] < -0.1).any()
    assert len(np.unique((expected == 0).all(axis=1))) == 2


def test_a_study_without_negative_findings_or_modalities_says_nothing() -> None:
    outputs = {"image": np.ones((2, BITS))}
    studies = studies_of([[1] * K, [1] + [0] * (K - 1)], outputs, {"image": [True, False]})
    assert not patient_rows(MODEL, studies, ANCHORS, 0.1).any()


@given(any_studies())
def test_no_patient_s_row_is_longer_than_the_sensitivity(drawn: tuple[Any, ...]) -> None:
    rows = patient_rows(MODEL, studies_of(*drawn), ANCHORS, 0.1)
    assert np.isfinite(rows).all()
    assert (np.square(rows).sum(axis=1) <= 3).all()


def test_the_bound_is_reached() -> None:
    """So the sensitivity is stated without slack: a patient whose slack is 1 everywhere."""
    studies = studies_of([[0, 1, 0, 0, 0]], {"image": 1e6 * ANCHORS.matrix[1:2].astype(float)})
    (row,) = patient_rows(MODEL, studies, ANCHORS, 0.1)
    assert np.linalg.norm(row) == pytest.approx(SENSITIVITY, abs=1e-6)


class FirstStudies:
    """Draws each patient's first study, and no noise."""

    secure = False

    def uniforms(self, count: int) -> np.ndarray:
        return np.zeros(count)

    def gaussians(self, count: int) -> np.ndarray:
        raise AssertionError("no noise was asked for")


def sums_of(studies: PreparedStudies) -> np.ndarray:
    block = margin_statistics(
        MODEL, studies, ANCHORS, 0.1, noise=FirstStudies(), noise_multiplier=None, largest=LARGE
    )
    return block[: 3 * K].astype(np.float64)


@given(any_studies(most=8), st.sampled_from("abc"))
def test_removing_a_patient_moves_the_sum_by_no_more_than_the_sensitivity(
    drawn: tuple[Any, ...], leaving: str
) -> None:
    studies = studies_of(*drawn)
    rest = [i for i, patient in enumerate(studies.patient_ids) if patient != leaving]
    after = sums_of(studies.select(rest)) if rest else np.zeros(3 * K)
    assert np.linalg.norm(sums_of(studies) - after) <= SENSITIVITY + 1e-6  # float32 of the block


def test_a_patient_more_moves_no_other_patient_s_row_by_a_single_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Matrix products round a row by how many others there are; here is a model that has some."""
    options = {"image_size_px": 32, "hidden": 64}
    towers = {"image": TowerSettings(name="image_hog", options=options)}
    model = build_model(ModelSettings(towers=towers), BITS, seed=1)
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(40, *model.tower("image").prepared_shape))
    labels = np.where(rng.random((40, K)) < 0.4, 1, 0).tolist()
    studies = studies_of(labels, {"image": inputs})
    seen: list[np.ndarray] = []
    monkeypatch.setattr(
        "fedhash.privacy.margin_statistics.sums_block",
        lambda sums, *_: seen.append(sums) or np.zeros(4 * K, np.float32),
    )
    for count in range(40, -1, -1):
        margin_statistics(
            *(model, studies.select(range(count)), ANCHORS, 0.1),
            noise=FirstStudies(),
            noise_multiplier=None,
            largest=LARGE,
        )
    for row, (with_it, without) in zip(range(39, -1, -1), pairwise(seen), strict=True):
        alone = patient_rows(model, studies.select([row]), ANCHORS, 0.1)[0]
        np.testing.assert_array_equal(with_it - without, alone)


def test_the_sum_of_many_rows_is_exact_in_any_order() -> None:
    rng = np.random.default_rng(1)
    labels = np.where(rng.random((5000, K)) < 0.4, 1, 0).tolist()
    studies = studies_of(labels, {"image": rng.normal(size=(5000, BITS))})
    rows = patient_rows(MODEL, studies, ANCHORS, 0.1)
    order = rng.permutation(5000)
    assert (rows.sum(axis=0) == rows[order].sum(axis=0)).all()
    assert (rows.sum(axis=0) - rows[17] == np.delete(rows, 17, axis=0).sum(axis=0)).all()


def test_noise_of_the_stated_size_is_added_to_every_sum() -> None:
    studies = studies_of([[0, 1, 0, 0, 0]] * 300, {"image": np.ones((300, BITS))})
    sigma = 4.0
    block = margin_statistics(
        *(MODEL, studies, ANCHORS, 0.1),
        noise=SimulatedNoise(1, "x"),
        noise_multiplier=sigma,
        largest=LARGE,
    )
    same = SimulatedNoise(1, "x")
    same.uniforms(300)
    noise = sigma * sqrt(3) * same.gaussians(3 * K)
    np.testing.assert_allclose(block[: 3 * K], sums_of(studies) + noise, rtol=1e-6)
    assert noise.std() == pytest.approx(sigma * sqrt(3), rel=0.5)


def test_the_fourth_sum_has_no_bias_from_the_noise() -> None:
    rng = np.random.default_rng(2)
    n, r, sd = 400.0, 0.3, 20.0
    true = np.array([n, n * r, n * r * r])
    found = np.mean(
        [sums_block(true + sd * rng.normal(size=3), sd, LARGE)[3] for _ in range(20_000)]
    )
    assert found == pytest.approx(n * r * r, abs=0.5)
    assert found < n * r * r + sd**2 / n - 0.2  # what it would be without the correction


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=3 * K, max_size=3 * K),
    st.floats(0, 1e3),
    st.floats(1, 1e4),
)
def test_a_large_site_counts_for_less_and_tells_the_same_means(
    sums: list[float], noise_sd: float, largest: float
) -> None:
    whole = MarginSums.of_block(sums_block(np.array(sums), noise_sd, 1e30))
    scaled = MarginSums.of_block(sums_block(np.array(sums), noise_sd, largest))
    for each in (scaled.patients, scaled.slack, scaled.squared_slack, scaled.site_means):
        assert (np.abs(each) <= largest * (1 + 1e-6)).all()
    np.testing.assert_allclose(
        scaled.slack * whole.patients, whole.slack * scaled.patients, rtol=1e-5, atol=1e-25
    )


def test_each_study_of_a_patient_is_drawn() -> None:
    labels = [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    studies = studies_of(labels, {"image": np.ones((2, BITS))}, patients=["a", "a"])
    seen = set()
    for seed in range(20):
        block = margin_statistics(
            *(MODEL, studies, ANCHORS, 0.1),
            noise=SimulatedNoise(seed, "x"),
            noise_multiplier=None,
            largest=LARGE,
        )
        seen.add(tuple(block[:K].tolist()))
    assert seen == {(0, 1, 0, 0, 0), (0, 0, 1, 0, 0)}
