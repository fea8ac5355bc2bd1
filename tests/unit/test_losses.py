"""What holds of every loss by its name in the round file."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedhash.agreement import Agreement
from fedhash.learning.loss import Loss, Margins
from fedhash.learning.losses import LOSSES, PRIVATE_LOSSES, build_loss
from fedhash.learning.settings import _READ, LossName, LossSettings
from fedhash.models.anchors import Anchors

BITS, FINDINGS = 16, 4
ANCHORS = Anchors.build(
    Agreement(
        name="test",
        findings=("a", "b", "c", "d"),
        code_bits=BITS,
        modalities=("image", "report"),
    )
)
MARGINS = Margins.constant(FINDINGS, 0.3)
PATIENT_TERMS = {
    *("anchor_margin", "logistic", "csq", "orthohash", "sadh_asymmetric", "learned_prototypes"),
}
PROTOTYPES = torch.nn.Parameter(torch.randn(4, BITS, generator=torch.Generator().manual_seed(0)))


def built(name: str, progress: float = 0.0, **constants: float) -> Loss:
    return build_loss(LossSettings(name=name, **constants), ANCHORS, progress, PROTOTYPES)


def random_batch(
    seed: int, patients: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    rng = np.random.default_rng(seed)
    outputs = {
        name: torch.from_numpy(rng.normal(size=(patients, BITS)).astype(np.float32))
        for name in ("image", "report")
    }
    present = {name: torch.from_numpy(rng.random(patients) < 0.7) for name in outputs}
    labels = rng.choice([-1, 0, 0, 1], size=(patients, FINDINGS)).astype(np.int8)
    return outputs, present, torch.from_numpy(labels)


def taken(tensors: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: each[rows] for name, each in tensors.items()}


def everywhere(outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.ones(len(each), dtype=torch.bool) for name, each in outputs.items()}


def test_every_name_has_a_loss_and_says_what_it_reads() -> None:
    assert set(LOSSES) == set(get_args(LossName)) == set(_READ)
    assert {name for name, kind in LOSSES.items() if kind.sum_of_patient_terms} == PATIENT_TERMS
    assert set(PRIVATE_LOSSES) == PATIENT_TERMS - {"learned_prototypes"}
    assert all(type(built(name)) is LOSSES[name] for name in _READ)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_says_so_is_a_sum_of_patient_terms(name: str) -> None:
    """Against the derivatives: does one patient's loss move with another's output?"""
    loss = built(name)
    outputs = {key: torch.randn(4, BITS, requires_grad=True) for key in ("image", "report")}
    labels = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, -1, 0, 0]]).to(torch.int8)
    first = loss(outputs, everywhere(outputs), labels, MARGINS)[0]
    slopes = torch.autograd.grad(first, list(outputs.values()))
    assert all(slope[0].any() for slope in slopes)
    assert loss.sum_of_patient_terms == (not any(slope[1:].any() for slope in slopes))


@pytest.mark.parametrize("name", sorted(PATIENT_TERMS))
def test_removing_a_patient_changes_no_other_s_row(name: str) -> None:
    loss = built(name)
    outputs, present, labels = random_batch(1, 6)
    rest = torch.tensor([0, 1, 2, 4, 5])
    whole = loss(outputs, present, labels, MARGINS)
    less = loss(taken(outputs, rest), taken(present, rest), labels[rest], MARGINS)
    torch.testing.assert_close(less, whole[rest])


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 10_000), patients=st.integers(1, 8))
def test_rows_follow_their_patients(name: str, seed: int, patients: int) -> None:
    loss = built(name)
    outputs, present, labels = random_batch(seed, patients)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(patients))
    found = loss(taken(outputs, order), taken(present, order), labels[order], MARGINS)
    expected = loss(outputs, present, labels, MARGINS)[order]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_an_absent_modality_adds_nothing_and_gets_no_gradient(name: str) -> None:
    loss = built(name)
    outputs, _, labels = random_batch(2, 5)
    labels[:, 0], labels[:, 1] = 1, 0
    present = everywhere(outputs)
    present["report"][3] = False
    outputs["report"].requires_grad_()
    found = loss(outputs, present, labels, MARGINS)
    found.sum().backward()
    slope = outputs["report"].grad
    assert slope is not None
    assert not slope[3].any()
    assert all(slope[i].any() for i in (0, 1, 2, 4))
    other = outputs["report"].detach().clone()
    other[3] = 100.0
    again = loss({**outputs, "report": other}, present, labels, MARGINS)
    torch.testing.assert_close(again, found.detach())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["zero", "opposite", "huge", "codes"])
@pytest.mark.parametrize("label", [-1, 0, 1])
@pytest.mark.parametrize("patients", [1, 3])
def test_loss_and_gradient_are_finite(name: str, kind: str, label: int, patients: int) -> None:
    """At the places where norms vanish, functions saturate and no pair is left."""
    loss = built(name, progress=0.9)
    code = torch.from_numpy(ANCHORS.matrix[:1]).float().repeat(patients, 1)
    image, report = {
        "zero": (0 * code, 0 * code),
        "opposite": (code, -code),
        "huge": (1e6 * code, -1e6 * code),
        "codes": (code, code.clone()),
    }[kind]
    outputs = {"image": image.requires_grad_(), "report": report.requires_grad_()}
    labels = torch.full((patients, FINDINGS), label, dtype=torch.int8)
    found = loss(outputs, everywhere(outputs), labels, MARGINS)
    slopes = torch.autograd.grad(found.sum(), list(outputs.values()), allow_unused=True)
    assert torch.isfinite(found).all()
    assert all(torch.isfinite(slope).all() for slope in slopes if slope is not None)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"contrastive"}))
def test_uncertain_labels_stand_in_neither_set(name: str) -> None:
    """Of patients known nowhere only what reads no label is left, wherever their outputs lie."""
    no_code_terms = {"beta": 0.0, "gamma": 0.0} if name == "anchor_margin" else {"gamma": 0.0}
    constants = {key: value for key, value in no_code_terms.items() if key in _READ[name]}
    loss = built(name, **constants)
    image = random_batch(3, 4)[0]["image"]
    labels = torch.full((4, FINDINGS), -1, dtype=torch.int8)
    there = torch.ones(4, dtype=torch.bool)
    assert loss({"image": image}, {"image": there}, labels, MARGINS).abs().max() < 1e-6


def test_a_batch_without_any_modality_still_trains() -> None:
    for name in LOSSES:
        outputs = {key: torch.randn(2, BITS, requires_grad=True) for key in ("image", "report")}
        absent = {key: torch.zeros(2, dtype=torch.bool) for key in outputs}
        labels = torch.ones(2, FINDINGS, dtype=torch.int8)
        found = built(name)(outputs, absent, labels, MARGINS)
        found.sum().backward()
        assert found.tolist() == [0, 0]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("constant", ["scale", "beta", "gamma", "kappa", "margin", "temperature"])
def test_a_constant_is_read_or_refused(name: LossName, constant: str) -> None:
    if constant not in _READ[name]:
        with pytest.raises(ValidationError) as refused:
            LossSettings(name=name, **{constant: 0.5})
        (error,) = refused.value.errors()
        assert error["loc"] == (constant,)
        assert f"the loss {name} does not read it; set {constant}: null" in error["msg"]
        return
    assert LossSettings(name=name, **{constant: 0.5}).value(constant) == 0.5
    outputs, _, labels = random_batch(4, 6)
    labels[:, 0], labels[:, 1] = 1, 0

    def found(value: float) -> torch.Tensor:
        margins = Margins.constant(FINDINGS, value) if constant == "margin" else MARGINS
        loss = built(name, **{constant: value})
        return loss(outputs, everywhere(outputs), labels, margins)

    assert not torch.equal(found(0.25), found(0.5))


def test_zero_is_a_constant_and_no_default() -> None:
    assert LossSettings(gamma=0.0).value("gamma") == 0
    assert LossSettings().value("gamma") == 0.1
    assert LossSettings(name="csq").value("gamma") == 0.05
    assert LossSettings(name="hashnet").value("scale", 0.25) == 0.25
    assert LossSettings(name="orthohash").value("scale") == 8
