from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedhash.evaluation import sensitivity
from fedhash.evaluation.sensitivity import AUDITED_LOSSES, Sensitivity, audit_sensitivity
from fedhash.learning.losses import PRIVATE_LOSSES
from fedhash.learning.losses.contrastive import ContrastiveLoss
from fedhash_sim.cli import app


@pytest.mark.parametrize("name", AUDITED_LOSSES)
def test_accepted_losses_stay_below_c_and_refused_ones_do_not(name: str) -> None:
    patients = 4
    found = audit_sensitivity(name, patients=patients, seed=3)
    assert found.accepted == (name in PRIVATE_LOSSES)
    if found.accepted:
        # the patient's own clipped gradient, so the search reached the bound
        assert 0.998 < found.change_in_c <= 1 + 1e-6
    else:
        assert patients / 2 < found.change_in_c <= 2 * patients - 1
    assert found.holds == found.accepted


def test_the_audit_notices_a_loss_that_wrongly_claims_to_be_a_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ContrastiveLoss, "sum_of_patient_terms", True)
    found = audit_sensitivity("contrastive", patients=8, seed=0)
    assert found.accepted
    assert not found.holds
    losses = ["--loss", "anchor_margin", "--loss", "contrastive"]
    done = CliRunner().invoke(app, ["audit", "sensitivity", *losses, "--patients", "8", "--json"])
    assert done.exit_code == 1
    held = {each["loss"]: each["holds"] for each in json.loads(done.stdout)}
    assert held == {"anchor_margin": True, "contrastive": False}
    assert "An accepted loss moved by more than C" in done.stderr


@pytest.mark.parametrize("faulty", [True, False])
def test_a_fault_of_either_way_of_clipping_is_found(
    monkeypatch: pytest.MonkeyPatch, faulty: bool
) -> None:
    own = sensitivity.clipped_sum

    def twice_as_long(*arguments: Any, unformed: bool) -> np.ndarray:
        return own(*arguments, unformed=unformed) * (2 if unformed == faulty else 1)

    monkeypatch.setattr(sensitivity, "clipped_sum", twice_as_long)
    found = audit_sensitivity("anchor_margin", patients=4, seed=0)
    assert found.change_in_c == pytest.approx(2 * 0.999, abs=0.01)
    assert not found.holds


def test_the_formula_of_the_ascent_is_the_sum_through_opacus() -> None:
    rng = np.random.default_rng(0)
    labels = np.eye(4, dtype=np.int8)[rng.integers(4, size=5)]
    inputs = sensitivity._start("random", 5, rng)
    batch = sensitivity._batch(inputs, labels)
    agreement = sensitivity.Agreement(
        name="audit", findings=sensitivity._FINDINGS, code_bits=16, modalities=("image", "report")
    )
    anchors = sensitivity.Anchors.build(agreement)
    for name in AUDITED_LOSSES:
        loss = sensitivity.build_loss(
            sensitivity.LossSettings.model_validate({"name": name}), anchors
        )
        leaves = {key: values.clone().requires_grad_() for key, values in inputs.items()}
        rest = batch.select(range(1, 5))
        others = {key: values[1:] for key, values in leaves.items()}
        change = sensitivity._formula(leaves, batch, loss) - sensitivity._formula(
            others, rest, loss
        )
        through_opacus = sensitivity._change(batch, loss) * sensitivity._CLIP_NORM
        assert float(change.detach().norm()) == pytest.approx(through_opacus, rel=2e-3)
        assert torch.isfinite(change).all()


def test_the_command_tells_and_draws(tmp_path: Path) -> None:
    plot = tmp_path / "sensitivity.png"
    arguments = ["audit", "sensitivity", "--loss", "anchor_margin", "--patients", "4"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(plot)])
    assert done.exit_code == 0, done.output
    assert "anchor_margin" in done.stdout
    assert "0.999" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    (record,) = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert record["patients"] == 4
    assert record["accepted"]


def test_a_loss_that_is_not_there_is_told() -> None:
    done = CliRunner().invoke(app, ["audit", "sensitivity", "--loss", "triplet"])
    assert done.exit_code == 2
    assert "no loss 'triplet' is audited, only anchor_margin, logistic" in done.stderr


def test_rounding_is_no_violation() -> None:
    assert Sensitivity("a", True, 2, 1 + 5e-7, "random").holds
    assert not Sensitivity("a", True, 2, 1 + 5e-6, "random").holds
