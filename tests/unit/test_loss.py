from __future__ import annotations

from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedhash.agreement import Agreement
from fedhash.errors import ModelError
from fedhash.learning.loss import Margins
from fedhash.learning.losses.anchor_margin import AnchorMarginLoss, default_scale
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors

BITS = 32


def anchors_of(findings: int) -> Anchors:
    names = tuple(f"finding_{k}" for k in range(findings))
    parents = {names[0]: names[1]}
    return Anchors.build(
        Agreement(
            name="test", findings=names, code_bits=BITS, modalities=("image",), parents=parents
        )
    )


def random_case(
    seed: int, findings: int, batch: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Margins]:
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1, 0, 0, 1], size=(batch, findings)).astype(np.int8)
    labels[np.arange(batch), rng.integers(findings, size=batch)] = 1
    margins = Margins(
        mu=rng.uniform(0.05, 0.6, findings).astype(np.float32),
        w=rng.uniform(0.5, 2, findings).astype(np.float32),
    )
    outputs = rng.normal(size=(batch, BITS)) * 10 ** rng.uniform(-3, 1, size=(batch, 1))
    present = torch.from_numpy(rng.random(batch) < 0.7)
    return torch.from_numpy(outputs).float(), torch.from_numpy(labels), present, margins


def all_of(labels: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(labels), dtype=torch.bool)


def reference(
    anchors: Anchors, settings: LossSettings, u: np.ndarray, y: np.ndarray, margins: Margins
) -> float:
    """One patient in one modality, by the formula and by loops."""
    scale = settings.scale or max(4.0, sqrt(2) * log(len(y) - 1))
    target = anchors.targets(y[None])[0].astype(float)
    theta = [max(0.0, float(target @ row) / BITS) for row in anchors.matrix]
    v = u.astype(float) / sqrt(float(u.astype(float) @ u) + settings.value("kappa") ** 2)
    c = [float(row @ v) / sqrt(BITS) for row in anchors.matrix]
    positives = [k for k in range(len(y)) if y[k] == 1]
    anchor_term = 0.0
    for p in positives:
        inner = 1.0
        for n in range(len(y)):
            if y[n] == 0:
                margin = float(margins.mu[p]) * max(0.0, theta[p] - theta[n])
                inner += exp(scale * (c[n] - c[p] + margin))
        anchor_term += float(margins.w[p]) * log(inner) / len(positives)
    code_term = 1 - float(v @ target) / sqrt(BITS)
    quantisation = 1 - float(np.abs(v).sum()) / sqrt(BITS)
    return anchor_term + settings.value("beta") * code_term + settings.value("gamma") * quantisation


@pytest.mark.parametrize("findings", [2, 3, 14, 40])
@pytest.mark.parametrize(
    "settings", [LossSettings(), LossSettings(scale=9.0, beta=0.2, gamma=0.7, kappa=0.5)]
)
def test_the_loss_equals_its_definition(findings: int, settings: LossSettings) -> None:
    anchors = anchors_of(findings)
    image, labels, image_present, margins = random_case(1, findings, batch=9)
    report, _, report_present, _ = random_case(2, findings, batch=9)
    losses = AnchorMarginLoss(anchors, settings)(
        {"image": image, "report": report},
        {"image": image_present, "report": report_present},
        labels,
        margins,
    )
    for i in range(9):
        expected = 0.0
        for raw, present in ((image, image_present), (report, report_present)):
            if present[i]:
                u, y = raw[i].numpy(), labels[i].numpy()
                expected += reference(anchors, settings, u, y, margins)
        assert losses[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(
    seed=st.integers(0, 2**32 - 1),
    findings=st.integers(2, 20),
    constants=st.tuples(st.floats(0.5, 20), st.floats(0, 2), st.floats(0, 2)),
    aligned=st.booleans(),
)
def test_the_gradient_in_one_modality_is_bounded(
    seed: int, findings: int, constants: tuple[float, float, float], aligned: bool
) -> None:
    scale, beta, gamma = constants
    anchors = anchors_of(findings)
    settings = LossSettings(scale=scale, beta=beta, gamma=gamma)
    raw, labels, _, margins = random_case(seed, findings, batch=6)
    if aligned:  # straight at a wrong target: the steepest place
        targets = torch.from_numpy(anchors.targets(labels.numpy()))
        raw = -targets * raw.norm(dim=1, keepdim=True)
    raw.requires_grad_()
    loss = AnchorMarginLoss(anchors, settings)
    loss({"image": raw}, {"image": all_of(labels)}, labels, margins).sum().backward()
    assert raw.grad is not None
    slope = 2 * scale * float(margins.w.max()) + beta + gamma
    bound = slope / torch.sqrt(raw.detach().square().sum(dim=1) + settings.value("kappa") ** 2)
    assert (raw.grad.norm(dim=1) <= bound * (1 + 1e-4)).all()


def test_uncertain_findings_are_neither_attracted_nor_repelled() -> None:
    anchors = anchors_of(3)
    only_anchors = LossSettings(beta=0.0, gamma=0.0)
    raw = torch.from_numpy(anchors.matrix[1:2]).float().requires_grad_()
    margins = Margins.constant(3, 0.3)
    loss = AnchorMarginLoss(anchors, only_anchors)
    labels = torch.tensor([[1, -1, -1]], dtype=torch.int8)
    value = loss({"image": raw}, {"image": all_of(labels)}, labels, margins)
    value.sum().backward()
    assert value.item() == 0
    assert raw.grad is not None
    assert raw.grad.abs().max() == 0
    certain = torch.tensor([[1, 0, -1]], dtype=torch.int8)
    assert loss({"image": raw}, {"image": all_of(certain)}, certain, margins).item() > 4


def test_a_patients_loss_is_the_sum_over_present_modalities() -> None:
    anchors = anchors_of(5)
    loss = AnchorMarginLoss(anchors, LossSettings())
    image, labels, _, margins = random_case(3, 5, batch=4)
    report, _, _, _ = random_case(4, 5, batch=4)
    both, absent = all_of(labels), torch.tensor([True, True, False, False])
    alone = loss({"image": image}, {"image": both}, labels, margins)
    other = loss({"report": report}, {"report": both}, labels, margins)
    joint = loss(
        {"image": image, "report": report}, {"image": both, "report": absent}, labels, margins
    )
    torch.testing.assert_close(joint, alone + torch.where(absent, other, 0.0))


def test_an_absent_modality_gets_no_gradient() -> None:
    raw, labels, _, margins = random_case(5, 4, batch=2)
    raw.requires_grad_()
    loss = AnchorMarginLoss(anchors_of(4), LossSettings())
    loss({"image": raw}, {"image": torch.tensor([True, False])}, labels, margins).sum().backward()
    assert raw.grad is not None
    assert raw.grad[0].abs().max() > 0
    assert raw.grad[1].abs().max() == 0


def test_a_patients_loss_does_not_depend_on_the_others() -> None:
    raw, labels, _, margins = random_case(6, 6, batch=8)
    loss = AnchorMarginLoss(anchors_of(6), LossSettings())
    together = loss({"image": raw}, {"image": all_of(labels)}, labels, margins)
    for i in range(8):
        row = labels[i : i + 1]
        alone = loss({"image": raw[i : i + 1]}, {"image": all_of(row)}, row, margins)
        torch.testing.assert_close(alone[0], together[i])


def test_the_target_code_itself_has_almost_no_loss() -> None:
    anchors = anchors_of(8)
    labels = torch.eye(8, dtype=torch.int8)
    raw = 100 * torch.from_numpy(anchors.targets(labels.numpy())).float()
    loss = AnchorMarginLoss(anchors, LossSettings(scale=30.0))
    values = loss({"image": raw}, {"image": all_of(labels)}, labels, Margins.constant(8, 0.3))
    assert values.max().item() < 1e-5


def test_the_default_scale_grows_with_the_vocabulary_from_four() -> None:
    assert default_scale(3) == 4
    assert default_scale(101) == pytest.approx(sqrt(2) * log(100))
    assert AnchorMarginLoss(anchors_of(3), LossSettings()).scale == 4
    assert AnchorMarginLoss(anchors_of(3), LossSettings(scale=2.5)).scale == 2.5


def test_margins_as_they_come_from_a_message_are_accepted() -> None:
    raw, labels, _, _ = random_case(7, 3, batch=2)
    mu = np.frombuffer(np.full(3, 0.3, dtype=np.float32).tobytes(), dtype=np.float32)  # read-only
    loss = AnchorMarginLoss(anchors_of(3), LossSettings())
    from_message = loss({"image": raw}, {"image": all_of(labels)}, labels, Margins(mu, mu / mu))
    constant = loss({"image": raw}, {"image": all_of(labels)}, labels, Margins.constant(3, 0.3))
    assert torch.equal(from_message, constant)


def test_margins_of_another_vocabulary_are_refused() -> None:
    raw, labels, _, _ = random_case(8, 3, batch=2)
    loss = AnchorMarginLoss(anchors_of(3), LossSettings())
    with pytest.raises(ModelError, match="4 margins were given for 3 findings"):
        loss({"image": raw}, {"image": all_of(labels)}, labels, Margins.constant(4, 0.3))
