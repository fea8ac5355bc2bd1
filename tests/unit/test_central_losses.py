"""CSQ, OrthoHash and SADH's asymmetric half, against loops and by hand: published codes alone."""

from __future__ import annotations

from collections.abc import Callable
from math import cosh, exp, log, sqrt, tanh

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhash.agreement import Agreement
from fedhash.learning.loss import Margins
from fedhash.learning.losses import build_loss
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors

FINDINGS, BITS = 5, 16
ANCHORS = Anchors.build(
    Agreement(
        name="test",
        findings=("a", "b", "c", "d", "e"),
        code_bits=BITS,
        modalities=("image", "report"),
    )
)
MARGINS = Margins(
    np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32), np.ones(FINDINGS, dtype=np.float32)
)


def losses_of(u: np.ndarray, labels: np.ndarray, **settings: float | str) -> list[float]:
    """Of one modality, which everybody has."""
    loss = build_loss(LossSettings(**settings), ANCHORS)
    found = loss(
        {"image": torch.from_numpy(u.astype(np.float32))},
        {"image": torch.ones(len(u), dtype=torch.bool)},
        torch.from_numpy(labels.astype(np.int8)),
        MARGINS,
    )
    return found.tolist()


def centre_of(y: np.ndarray) -> np.ndarray:
    """The majority of the positive findings' anchors, bit by bit, ties from the tie vector."""
    positive = [ANCHORS.matrix[k].astype(int) for k in range(FINDINGS) if y[k] == 1]
    sums = sum(positive, np.zeros(BITS))
    return np.array([t if x == 0 else np.sign(x) for x, t in zip(sums, ANCHORS.tie, strict=True)])


def csq(u: np.ndarray, y: np.ndarray) -> float:
    found = 0.0
    for x, centre in zip(u, centre_of(y), strict=True):
        probability = (1 + tanh(x)) / 2
        if 1 in y:
            found -= log(probability if centre == 1 else 1 - probability) / BITS
        found += 0.5 * log(cosh(abs(tanh(x)) - 1)) / BITS
    return found


def orthohash(u: np.ndarray, y: np.ndarray) -> float:
    positive = [k for k in range(FINDINGS) if y[k] == 1]
    if not positive:
        return 0.0
    v = u / sqrt(float(u @ u) + 0.2**2)
    logits = {}
    for k in range(FINDINGS):
        if y[k] != -1:
            cosine = float(ANCHORS.matrix[k] @ v) / sqrt(BITS)
            logits[k] = 3.0 * (cosine - (float(MARGINS.mu[k]) if k in positive else 0.0))
    everything = sum(exp(each) for each in logits.values())
    return -sum(log(exp(logits[k]) / everything) for k in positive) / len(positive)


def sadh_asymmetric(u: np.ndarray, y: np.ndarray) -> float:
    v = u / sqrt(float(u @ u) + 0.2**2)
    costs = []
    for k in range(FINDINGS):
        cosine = float(ANCHORS.matrix[k] @ v) / sqrt(BITS)
        theta = max(0.0, float(ANCHORS.matrix[k] @ centre_of(y)) / BITS)
        if y[k] == 1:
            costs.append(max(0.0, theta - cosine))
        if y[k] == 0:
            costs.append(max(0.0, cosine - theta))
    off = sum((sqrt(BITS) * x - np.sign(x)) ** 2 for x in v) / BITS
    return (sum(costs) / len(costs) if costs else 0.0) + 0.3 * off


CENTRAL: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], dict[str, float]]] = {
    "csq": (csq, {"gamma": 0.5}),
    "orthohash": (orthohash, {"scale": 3.0, "kappa": 0.2}),
    "sadh_asymmetric": (sadh_asymmetric, {"gamma": 0.3, "kappa": 0.2}),
}


@pytest.mark.parametrize("name", CENTRAL)
@given(seed=st.integers(0, 10_000))
def test_a_loss_against_published_codes_equals_its_definition(name: str, seed: int) -> None:
    definition, constants = CENTRAL[name]
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(6, BITS)) * rng.uniform(0.1, 3, size=(6, 1))
    labels = rng.choice([-1, 0, 0, 1], size=(6, FINDINGS))
    expected = [definition(*each) for each in zip(u, labels, strict=True)]
    np.testing.assert_allclose(
        losses_of(u, labels, name=name, **constants), expected, rtol=1e-4, atol=1e-5
    )


def test_csq_by_hand() -> None:
    # tanh(u) = .6 towards the centre: P = .8 in every bit, log cosh(.6 - 1) = log cosh(.4)
    labels = np.array([[0, 1, 0, 0, 0], [0, 1, 0, 0, 0]])
    toward = np.arctanh(0.6) * ANCHORS.matrix[1]
    found = losses_of(np.stack([toward, -toward]), labels, name="csq", gamma=2.0)
    quantisation = 2.0 * log(cosh(0.4))
    assert found == pytest.approx([-log(0.8) + quantisation, -log(0.2) + quantisation], rel=1e-5)


def test_orthohash_by_hand() -> None:
    # u = sqrt(.99) A_0/|A_0| with kappa = .1 has cosine sqrt(.99) to anchor 0 and 0 to the others,
    # which are orthogonal. mu_0 = .1; finding 4 is uncertain and stands outside.
    u = sqrt(0.99 / BITS) * ANCHORS.matrix[:1]
    (found,) = losses_of(u, np.array([[1, 0, 0, 0, -1]]), name="orthohash", scale=2.0)
    own = exp(2 * (sqrt(0.99) - 0.1))
    assert found == pytest.approx(-log(own / (own + 3)), rel=1e-5)
    # With finding 1 beside it the target is half and half; mu_1 = .2.
    (found,) = losses_of(u, np.array([[1, 1, 0, 0, -1]]), name="orthohash", scale=2.0)
    other = exp(2 * (0 - 0.2))
    everything = own + other + 2
    assert found == pytest.approx(-log(own / everything) / 2 - log(other / everything) / 2)


def test_sadh_s_asymmetric_pairs_by_hand() -> None:
    # At minus its own anchor: cosine -1 (kappa is small) and Theta = 1 to finding 0, cost 2; the
    # four others are at cosine 0 with Theta 0, cost 0. A mean of five. sqrt(b) v is a code.
    settings = {"name": "sadh_asymmetric", "gamma": 1.0, "kappa": 1e-6}
    labels = np.array([[1, 0, 0, 0, 0], [1, -1, -1, -1, 0]])
    u = np.stack([-ANCHORS.matrix[0], -ANCHORS.matrix[0]])
    assert losses_of(u, labels, **settings) == pytest.approx([2 / 5, 2 / 2], rel=1e-5)
    assert losses_of(-u, labels, **settings) == pytest.approx([0, 0], abs=1e-6)
    # At a negative finding's anchor: its own costs 1, that one 1.
    u = np.stack([ANCHORS.matrix[4], ANCHORS.matrix[4]])
    assert losses_of(u, labels, **settings) == pytest.approx([2 / 5, 2 / 2], rel=1e-5)
