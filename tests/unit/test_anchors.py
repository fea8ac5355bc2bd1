from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.agreement import Agreement
from fedhash.errors import ModelError
from fedhash.models.anchors import Anchors, _hadamard

PALEY_OR_DOUBLED = (16, 24, 32, 40, 48, 64, 72, 80, 88, 96, 104, 120, 128, 136, 144, 152, 160)
HADAMARD_CASES = [
    *[(2, 16), (15, 16), (3, 24), (23, 24), (39, 40), (14, 48), (3, 64), (14, 64), (63, 64)],
    *[(100, 128), (200, 208), (255, 256)],
]
SPREAD_CASES = [
    *[(16, 16), (17, 16), (100, 16), (1000, 24), (64, 64), (65, 64), (1000, 64), (14, 56)],
    *[(14, 112), (5, 184), (300, 232), (300, 256)],
]


def agreement(findings: int, code_bits: int, **terms: object) -> Agreement:
    names = tuple(f"finding_{k}" for k in range(findings))
    return Agreement(
        name="test", findings=names, code_bits=code_bits, modalities=("image",), **terms
    )


def distances(anchors: Anchors) -> list[int]:
    words = np.array([*anchors.matrix, anchors.tie])
    return [int(d) for i, word in enumerate(words) for d in (words[:i] != word).sum(axis=1)]


@pytest.mark.parametrize(("findings", "code_bits"), HADAMARD_CASES)
def test_fewer_findings_than_bits_stand_half_the_bits_apart(findings: int, code_bits: int) -> None:
    anchors = Anchors.build(agreement(findings, code_bits))
    assert anchors.matrix.shape == (findings, code_bits)
    assert set(np.unique(anchors.matrix)) == {-1, 1}
    assert set(distances(anchors)) == {code_bits // 2}


@pytest.mark.parametrize(("findings", "code_bits"), SPREAD_CASES)
def test_other_anchors_stay_a_quarter_of_the_bits_apart(findings: int, code_bits: int) -> None:
    anchors = Anchors.build(agreement(findings, code_bits))
    assert min(distances(anchors)) >= code_bits // 4


def test_a_vocabulary_too_long_for_the_code_is_refused() -> None:
    with pytest.raises(ModelError, match=r"1000 findings in 16 bits .* raise code_bits"):
        Anchors.build(agreement(1000, 16))


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ModelError, match="anchors_version 2 is unknown"):
        Anchors.build(agreement(3, 16, anchors_version=2))


@pytest.mark.parametrize("order", PALEY_OR_DOUBLED)
def test_hadamard_rows_are_orthogonal_and_the_first_is_all_ones(order: int) -> None:
    matrix = _hadamard(order)
    assert matrix is not None
    products = matrix.astype(int) @ matrix.T.astype(int)
    assert (products == order * np.eye(order, dtype=int)).all()
    assert (matrix[0] == 1).all()


def test_anchors_are_published_constants() -> None:
    """A changed digest means that every released model and every archive becomes unreadable."""
    orthogonal = Anchors.build(agreement(14, 64, parents={"finding_1": "finding_2"}))
    spread = Anchors.build(agreement(40, 32))
    assert orthogonal.digest()[:16] == "1bcd7c8db33ffd3a"
    assert spread.digest()[:16] == "ec1a66ad7558ec47"


def test_the_digest_tells_vocabularies_lengths_and_hierarchies_apart() -> None:
    base = agreement(5, 32)
    variants = [
        base,
        agreement(5, 64),
        agreement(6, 32),
        base.model_copy(update={"findings": base.findings[::-1]}),
        agreement(5, 32, parents={"finding_1": "finding_0"}),
        agreement(5, 32, parents={"finding_1": "finding_0"}, ancestor_weight=0.25),
    ]
    assert len({Anchors.build(variant).digest() for variant in variants}) == len(variants)
    assert Anchors.build(base).digest() == Anchors.build(agreement(5, 32)).digest()


def test_the_target_of_one_finding_is_its_anchor() -> None:
    anchors = Anchors.build(agreement(6, 32))
    labels = np.eye(6, dtype=np.int8)
    assert (anchors.targets(labels) == anchors.matrix).all()
    assert (anchors.theta(labels) == np.eye(6)).all()


def test_two_findings_meet_half_way_and_share_the_tie_vector_elsewhere() -> None:
    anchors = Anchors.build(agreement(3, 64))
    (target,) = anchors.targets(np.array([[1, 1, 0]], dtype=np.int8))
    first, second, third = anchors.matrix.astype(int)
    same = first == second
    assert (target[same] == first[same]).all()
    assert (target[~same] == anchors.tie[~same]).all()
    assert target @ first == target @ second == 32
    theta = anchors.theta(np.array([[1, 1, 0]], dtype=np.int8))[0]
    assert theta[:2].tolist() == [0.5, 0.5]
    assert theta[2] == max(0, target @ third / 64)


def test_a_study_without_positive_findings_has_the_tie_vector_for_a_target() -> None:
    anchors = Anchors.build(agreement(3, 16))
    targets = anchors.targets(np.array([[0, -1, 0]], dtype=np.int8))
    assert (targets[0] == anchors.tie).all()


def test_an_ancestor_decides_where_findings_disagree() -> None:
    anchors = Anchors.build(agreement(4, 64, parents={"finding_0": "finding_2"}))
    (target,) = anchors.targets(np.array([[1, 1, 0, 0]], dtype=np.int8))
    disagree = anchors.matrix[0] != anchors.matrix[1]
    assert (target[disagree] == anchors.matrix[2][disagree]).all()


@st.composite
def hierarchies(draw: st.DrawFn) -> tuple[dict[str, str], float]:
    """Parents with a higher number than their children, so there is no circle."""
    parents = {}
    for child in range(7):
        parent = draw(st.integers(child + 1, 8))
        if parent < 8:
            parents[f"finding_{child}"] = f"finding_{parent}"
    return parents, draw(st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))


@given(hierarchies(), st.lists(st.lists(st.integers(-1, 1), min_size=8, max_size=8), min_size=1))
def test_targets_and_theta_equal_their_definition(
    hierarchy: tuple[dict[str, str], float], rows: list[list[int]]
) -> None:
    parents, weight = hierarchy
    terms = agreement(8, 16, parents=parents, ancestor_weight=weight)
    anchors = Anchors.build(terms)
    labels = np.array(rows, dtype=np.int8)
    targets, theta = anchors.targets(labels), anchors.theta(labels)
    for row, target, closeness in zip(labels, targets, theta, strict=True):
        weights = dict.fromkeys(terms.findings, 0.0)
        for finding, label in zip(terms.findings, row, strict=True):
            ancestor: str | None = finding
            depth = 0
            while label == 1 and ancestor is not None:
                weights[ancestor] = max(weights[ancestor], weight**depth)
                ancestor, depth = parents.get(ancestor), depth + 1
        for bit in range(16):
            total = sum(
                weights[finding] * float(anchors.matrix[k, bit])
                for k, finding in enumerate(terms.findings)
            )
            tied = abs(total) < 1e-9
            assert target[bit] == (anchors.tie[bit] if tied else np.sign(total))
        for k in range(8):
            product = int(target.astype(int) @ anchors.matrix[k].astype(int))
            assert closeness[k] == max(0, product / 16)


def test_labels_of_another_vocabulary_are_refused() -> None:
    anchors = Anchors.build(agreement(3, 16))
    with pytest.raises(ModelError, match="labels of 4 findings were given, the anchors have 3"):
        anchors.targets(np.zeros((1, 4), dtype=np.int8))


def test_the_longest_line_of_ancestors_is_no_limit() -> None:
    parents = {f"finding_{k}": f"finding_{k + 1}" for k in range(999)}
    lineage = Anchors.build(agreement(1000, 256, parents=parents)).lineage
    assert [child for child, _, _ in lineage] == list(range(999)), "the deepest first"
