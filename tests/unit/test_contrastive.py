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
from fedhash.learning.losses.contrastive import ContrastiveLoss
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors

ANCHORS = Anchors.build(
    Agreement(name="test", findings=("a", "b"), code_bits=16, modalities=("image", "report"))
)
MARGINS = Margins.constant(2, 0.3)


def losses_of(
    outputs: dict[str, torch.Tensor], present: dict[str, torch.Tensor], temperature: float = 0.5
) -> torch.Tensor:
    loss = ContrastiveLoss(ANCHORS, LossSettings(name="contrastive", temperature=temperature))
    batch = len(next(iter(outputs.values())))
    return loss(outputs, present, torch.zeros(batch, 2, dtype=torch.int8), MARGINS)


def test_two_patients_by_hand() -> None:
    """|u| = sqrt(.99) makes |v| = sqrt(.99), so products of equal codes are .99, of others 0."""
    one, other = torch.zeros(8), torch.zeros(8)
    one[0] = other[1] = sqrt(0.99)
    images, reports = torch.stack([one, other]), torch.stack([one, one])
    found = losses_of(
        {"image": images, "report": reports},
        {"image": torch.ones(2, dtype=torch.bool), "report": torch.ones(2, dtype=torch.bool)},
    )
    # rows of <image_i, report_j>: [.99, .99] and [0, 0]; columns: [.99, 0] and [.99, 0]
    first = (log(2) + log(1 + exp(-0.99 / 0.5))) / 2
    second = (log(2) + log(exp(0.99 / 0.5) + 1)) / 2
    assert found.tolist() == pytest.approx([first, second], abs=1e-5)


@given(st.integers(0, 1000), st.integers(1, 6), st.booleans())
def test_the_loss_equals_its_definition_over_those_who_have_both(
    seed: int, batch: int, with_signal: bool
) -> None:
    rng = np.random.default_rng(seed)
    names = ["image", "report", "signal"][: 3 if with_signal else 2]
    outputs = {n: torch.from_numpy(rng.normal(size=(batch, 8)).astype(np.float32)) for n in names}
    present = {name: torch.from_numpy(rng.random(batch) < 0.7) for name in names}
    expected = np.zeros(batch)
    codes = {
        n: u.numpy() / np.sqrt((u.numpy() ** 2).sum(1)[:, None] + 0.01) for n, u in outputs.items()
    }
    for one, other in [(a, b) for a in names for b in names if a != b]:
        both = [i for i in range(batch) if present[one][i] and present[other][i]]
        for i in both:
            logits = [float(codes[one][i] @ codes[other][j]) / 0.5 for j in both]
            own = logits[both.index(i)]
            expected[i] += log(sum(exp(each - own) for each in logits)) / 2
    np.testing.assert_allclose(losses_of(outputs, present).numpy(), expected, atol=1e-4)


def test_a_batch_in_which_nobody_has_both_still_trains() -> None:
    outputs = {name: torch.randn(3, 8, requires_grad=True) for name in ("image", "report")}
    present = {"image": torch.ones(3, dtype=torch.bool), "report": torch.zeros(3, dtype=torch.bool)}
    losses = losses_of(outputs, present)
    losses.sum().backward()
    assert losses.tolist() == [0, 0, 0]
    assert all((u.grad == 0).all() for u in outputs.values())


def test_one_modality_has_nothing_to_pair() -> None:
    with pytest.raises(ModelError, match=r"pairs modalities, .* \['image'\] only"):
        losses_of({"image": torch.randn(3, 8)}, {"image": torch.ones(3, dtype=torch.bool)})
