"""The losses over pairs of a batch, against loops over patients and modalities, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, log, log1p, sqrt, tanh

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

FINDINGS, BITS = 4, 16
ANCHORS = Anchors.build(
    Agreement(
        name="test",
        findings=("a", "b", "c", "d"),
        code_bits=BITS,
        modalities=("image", "report"),
        parents={"a": "b"},
    )
)
MARGINS = Margins.constant(FINDINGS, 0.3)

Row = tuple[int, np.ndarray, np.ndarray]  # place of the patient, u, y
Cost = Callable[[np.ndarray, np.ndarray, bool, np.ndarray, np.ndarray], float]


def losses_of(
    outputs: dict[str, np.ndarray],
    present: dict[str, np.ndarray],
    labels: np.ndarray,
    progress: float = 0.0,
    **settings: float | str,
) -> list[float]:
    loss = build_loss(LossSettings(**settings), ANCHORS, progress)
    found = loss(
        {name: torch.from_numpy(u.astype(np.float32)) for name, u in outputs.items()},
        {name: torch.from_numpy(there) for name, there in present.items()},
        torch.from_numpy(labels.astype(np.int8)),
        MARGINS,
    )
    return found.tolist()


def rows_of(
    outputs: dict[str, np.ndarray], present: dict[str, np.ndarray], labels: np.ndarray
) -> list[Row]:
    return [
        (i, outputs[name][i], labels[i])
        for name in outputs
        for i in range(len(labels))
        if present[name][i]
    ]


def relation(one: Row, other: Row) -> bool | None:
    """Whether two rows are similar; None where that is uncertain."""
    if one[0] == other[0]:
        return True
    pairs = list(zip(one[2], other[2], strict=True))
    if (1, 1) in pairs:
        return True
    return None if any(0 not in pair for pair in pairs) else False


def paired(rows: list[Row], patients: int, cost: Cost) -> list[float]:
    """R times the mean cost of the pairs that count, by the patients of their first rows."""
    sums, count = [0.0] * patients, 0
    for a, one in enumerate(rows):
        for b, other in enumerate(rows):
            similar = relation(one, other)
            if a != b and similar is not None:
                count += 1
                sums[one[0]] += cost(one[1], other[1], similar, one[2], other[2])
    return [len(rows) * each / max(count, 1) for each in sums]


def relaxed(u: np.ndarray, kappa: float) -> np.ndarray:
    return u / sqrt(float(u @ u) + kappa**2)


def likelihood(theta: float, similar: bool) -> float:
    return log1p(exp(theta)) - (theta if similar else 0.0)


def dpsh(rows: list[Row], patients: int) -> list[float]:
    found = paired(rows, patients, lambda u, v, s, *_: likelihood(float(u @ v) / 2, s))
    for i, u, _ in rows:
        found[i] += 0.25 * sum((np.sign(x) - x) ** 2 for x in u) / BITS
    return found


def hashnet(rows: list[Row], patients: int) -> list[float]:
    kinds = [
        relation(one, other) for a, one in enumerate(rows) for b, other in enumerate(rows) if a != b
    ]
    similar, dissimilar = kinds.count(True), kinds.count(False)
    beta = sqrt(1 + 50 * 0.5)

    def cost(u: np.ndarray, v: np.ndarray, s: bool, y: np.ndarray, z: np.ndarray) -> float:
        theta = 0.3 * sum(tanh(beta * x) * tanh(beta * w) for x, w in zip(u, v, strict=True))
        ones, others = {k for k in range(FINDINGS) if y[k] == 1}, set(np.flatnonzero(z == 1))
        overlap = len(ones & others) / len(ones | others) if ones & others else 1.0
        weight = overlap / similar if s else 1 / dissimilar
        return (similar + dissimilar) * weight * likelihood(theta, s)

    return paired(rows, patients, cost)


def supcon(rows: list[Row], patients: int) -> list[float]:
    found = [0.0] * patients
    for a, one in enumerate(rows):
        products = {
            b: float(relaxed(one[1], 0.1) @ relaxed(other[1], 0.1)) / 0.5
            for b, other in enumerate(rows)
            if a != b and relation(one, other) is not None
        }
        similar = [b for b in products if relation(one, rows[b])]
        everyone = sum(exp(each) for each in products.values())
        for p in similar:
            found[one[0]] -= log(exp(products[p]) / everyone) / len(similar)
    return found


def sadh(rows: list[Row], patients: int) -> list[float]:
    def cost(u: np.ndarray, v: np.ndarray, s: bool, y: np.ndarray, z: np.ndarray) -> float:
        one, other = ANCHORS.targets(np.stack([y, z]).astype(np.int8)).astype(float)
        gap = max(0.0, float(one @ other) / BITS) - float(relaxed(u, 0.2) @ relaxed(v, 0.2))
        return 0.7 * max(0.0, gap if s else -gap)

    return paired(rows, patients, cost)


PAIRWISE = {
    "dpsh": (dpsh, {"gamma": 0.25}),
    "hashnet": (hashnet, {"scale": 0.3}),
    "supcon": (supcon, {"temperature": 0.5}),
    "sadh": (sadh, {"beta": 0.7, "gamma": 0.3, "kappa": 0.2}),
}


def random_batch(
    seed: int, batch: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    outputs = {name: rng.normal(size=(batch, BITS)) for name in ("image", "report")}
    present = {name: rng.random(batch) < 0.7 for name in outputs}
    return outputs, present, rng.choice([-1, 0, 0, 1], size=(batch, FINDINGS))


@pytest.mark.parametrize("name", PAIRWISE)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 7))
def test_a_loss_over_pairs_equals_its_definition(name: str, seed: int, batch: int) -> None:
    definition, constants = PAIRWISE[name]
    outputs, present, labels = random_batch(seed, batch)
    found = np.array(losses_of(outputs, present, labels, 0.5, name=name, **constants))
    if name == "sadh":  # its other terms are tested with sadh_asymmetric
        own = {key: value for key, value in constants.items() if key != "beta"}
        found -= losses_of(outputs, present, labels, name="sadh_asymmetric", **own)
    expected = definition(rows_of(outputs, present, labels), batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def two_patients(one: list[int], other: list[int], **settings: float | str) -> list[float]:
    """Losses of u = (1, 1, 0, ...) and u = (1, -1, 2, 0, ...)."""
    image = np.zeros((2, BITS))
    image[0, :2] = 1
    image[1, :3] = 1, -1, 2
    there = np.ones(2, dtype=bool)
    return losses_of({"image": image}, {"image": there}, np.array([one, other]), **settings)


def test_dpsh_of_two_patients_by_hand() -> None:
    # <u_0, u_1> = 0, so theta = 0: each pair costs log 2, similar or not. R = |S| = 2.
    # The first is 0 off in every bit that is not 0; the second 1 in its third: gamma/b * 1.
    for other in ([1, 0, 0, 0], [0, 1, 0, 0]):
        found = two_patients([1, 0, 0, 0], other, name="dpsh", gamma=1.6)
        assert found == pytest.approx([log(2), log(2) + 0.1])
    # An uncertain first finding beside a positive one: neither similar nor dissimilar.
    assert two_patients([1, 0, 0, 0], [-1, 1, 0, 0], name="dpsh", gamma=1.6) == pytest.approx(
        [0, 0.1]
    )


def test_hashnet_weighs_similar_and_dissimilar_pairs_the_same() -> None:
    # h_0 = t (1, 1, 0), h_1 = (t, -t, tanh 2): theta = 0, each pair costs w log 2. With one kind
    # of pairs |S|/|S_1| = 1; the overlap of {a} and {a, b} is 1/2.
    both = two_patients([1, 0, 0, 0], [1, 1, 0, 0], name="hashnet")
    assert both == pytest.approx([log(2) / 2] * 2)
    neither = two_patients([1, 0, 0, 0], [0, 1, 0, 0], name="hashnet")
    assert neither == pytest.approx([log(2)] * 2)
    # Three patients at u = 0, findings a, a, b: |S_1| = 2, |S_0| = 4, |S| = 6, R = 3. Row 0 has a
    # similar pair, 3 log 2, and a dissimilar one, 6/4 log 2; times R/|S| = 1/2.
    outputs, there = {"image": np.zeros((3, BITS))}, {"image": np.ones(3, dtype=bool)}
    labels = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
    found = losses_of(outputs, there, labels, name="hashnet")
    assert found == pytest.approx([2.25 * log(2), 2.25 * log(2), 1.5 * log(2)])


def test_hashnet_s_codes_sharpen_with_the_rounds() -> None:
    image = np.full((2, BITS), 0.2)
    labels, there = np.array([[1, 0, 0, 0]] * 2), {"image": np.ones(2, dtype=bool)}
    early, late = (
        losses_of({"image": image}, there, labels, progress, name="hashnet", scale=1.0)[0]
        for progress in (0.0, 0.98)
    )
    # theta = alpha b tanh(.2 beta)^2 with beta = 1, and sqrt(1 + 49) at .98
    assert early == pytest.approx(log1p(exp(-BITS * tanh(0.2) ** 2)), rel=1e-5)
    assert late == pytest.approx(log1p(exp(-BITS * tanh(0.2 * sqrt(50)) ** 2)), rel=1e-3)


def test_hashnet_s_default_scale_is_ten_over_the_bits() -> None:
    outputs, present, labels = random_batch(5, 6)
    default = losses_of(outputs, present, labels, name="hashnet")
    assert default == losses_of(outputs, present, labels, name="hashnet", scale=10 / BITS)


def test_supcon_of_three_patients_by_hand() -> None:
    # |u| = sqrt(.99) gives |v| = sqrt(.99): products .99 of equal codes, 0 of the third's.
    # T = .99: the similar pair has exp(1), the other exp(0) = 1 in the sum.
    image = np.zeros((3, BITS))
    image[0, 0] = image[1, 0] = image[2, 1] = sqrt(0.99)
    labels, there = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]), np.ones(3, dtype=bool)
    found = losses_of({"image": image}, {"image": there}, labels, name="supcon", temperature=0.99)
    assert found == pytest.approx([log(exp(1) + 1) - 1] * 2 + [0], abs=1e-5)


def test_sadh_s_symmetric_pairs_by_hand() -> None:
    # Both vectors are orthogonal, cosine 0. Equal labels: Theta = 1, cost 1 - 0, R/|S| = 1.
    # Labels of two anchors: orthogonal codes, Theta = 0, and dissimilar rows at cosine 0 cost 0.
    def symmetric(one: list[int], other: list[int]) -> np.ndarray:
        whole = two_patients(one, other, name="sadh")
        return np.array(whole) - two_patients(one, other, name="sadh_asymmetric")

    np.testing.assert_allclose(symmetric([0, 0, 1, 0], [0, 0, 1, 0]), [1, 1], atol=1e-6)
    np.testing.assert_allclose(symmetric([0, 0, 1, 0], [0, 0, 0, 1]), [0, 0], atol=1e-6)


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_study_s_own_modalities_are_a_similar_pair(name: str) -> None:
    """Of a patient alone, whose report comes nearer to the image."""
    labels = np.array([[-1, -1, -1, -1]])
    image, there = np.full((1, BITS), 1.0), np.ones(1, dtype=bool)
    found = []
    for sign in (-1, 1):
        outputs = {"image": image, "report": sign * image}
        found += losses_of(outputs, {"image": there, "report": there}, labels, name=name)
    if name == "supcon":  # among one other row there is nothing to choose
        assert found == pytest.approx([0, 0], abs=1e-6)
    else:
        assert inf > found[0] > found[1] + 0.5


@pytest.mark.parametrize("name", [*PAIRWISE, "contrastive"])
def test_another_patient_changes_a_row(name: str) -> None:
    outputs, _, labels = random_batch(3, 4)
    labels = np.abs(labels)
    present = {key: np.ones(4, dtype=bool) for key in outputs}
    whole = losses_of(outputs, present, labels, name=name)
    less = losses_of(
        {key: u[:3] for key, u in outputs.items()},
        {key: there[:3] for key, there in present.items()},
        labels[:3],
        name=name,
    )
    assert max(abs(a - b) for a, b in zip(whole, less, strict=False)) > 0.01
