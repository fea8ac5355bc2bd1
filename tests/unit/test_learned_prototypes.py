"""Learned prototypes: the loss by hand, and rounds that train and average them."""

from __future__ import annotations

from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import small_federation
import torch
from small_federation import (
    AGREEMENT,
    SITES,
    model_and_layout,
    new_coordinator,
    round_settings,
    site_agent,
    site_studies,
)

from fedhash.agreement import Agreement
from fedhash.errors import ModelError, PrivacyError
from fedhash.learning.loss import Margins
from fedhash.learning.losses import build_loss
from fedhash.learning.losses.learned_prototypes import LearnedPrototypesLoss
from fedhash.learning.settings import LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import HashModel, build_model, encode_studies
from fedhash.models.prepared import PreparedStudies, prepare_studies
from fedhash.models.settings import ModelSettings
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.privacy.soundness import check_sound
from fedhash.registry import load_release, save_release
from fedhash.rounds.run import run_round
from fedhash.rounds.settings import RoundSettings, check_round
from fedhash_sim.engines.inprocess import InProcessEngine
from fedhash_sim.engines.vectorised import unfit

BITS = 16
TWO = Anchors.build(
    Agreement(name="test", findings=("a", "b"), code_bits=BITS, modalities=("image",))
)
SETTINGS = LossSettings(name="learned_prototypes", scale=2.0, beta=0.5, gamma=0.1, kappa=1e-6)
MARGINS = Margins.constant(2, 0.3)
HERE = {"image": torch.tensor([True])}
OTHER = {"head": "sign"}
PROTOTYPES_MODEL = small_federation.MODEL.model_copy(update={"head": "prototypes"})


def axis(place: int, length: float) -> torch.Tensor:
    return length * torch.eye(BITS)[place]


def two_prototypes() -> torch.nn.Parameter:
    """Along the first two axes, of lengths that do not count."""
    return torch.nn.Parameter(torch.stack([axis(0, 2.0), axis(1, 5.0)]))


def output() -> torch.Tensor:
    """Whose relaxed code is .6 and .8 along these axes."""
    return (axis(0, 3.0) + axis(1, 4.0))[None]


@pytest.mark.parametrize(
    ("labels", "classified", "pulled"),
    [
        ([1, 0], log(exp(1.2) + exp(1.6)) - 1.2, 0.4**2 + 0.8**2),
        ([0, 1], log(exp(1.2) + exp(1.6)) - 1.6, 0.6**2 + 0.2**2),
        ([1, 1], log(exp(1.2) + exp(1.6)) - 1.4, (0.8 + 0.4) / 2),
        ([1, -1], 0.0, 0.8),
        ([0, 0], 0.0, 0.0),
    ],
)
def test_the_loss_is_what_the_hand_computes(
    labels: list[int], classified: float, pulled: float
) -> None:
    loss = LearnedPrototypesLoss(TWO, SETTINGS, two_prototypes())
    (found,) = loss({"image": output()}, HERE, torch.tensor([labels]).to(torch.int8), MARGINS)
    quantised = 1 - 1.4 / 4
    assert found.item() == pytest.approx(classified + 0.5 * pulled + 0.1 * quantised, abs=1e-5)


def test_its_slopes_are_what_the_hand_computes() -> None:
    """L_S turns prototypes and outputs; L_R turns outputs alone."""
    prototypes = two_prototypes()
    loss = LearnedPrototypesLoss(TWO, SETTINGS, prototypes)
    relaxed_too = output().requires_grad_()
    loss({"image": relaxed_too}, HERE, torch.tensor([[1, 0]]).to(torch.int8), MARGINS).backward()
    share = exp(1.6) / (exp(1.2) + exp(1.6))  # of the wrong finding
    # 2 (share of k - label of k) times the part of v across q_k, over the prototype's length
    expected = torch.stack([axis(1, 2 * -share * 0.8 / 2), axis(0, 2 * share * 0.6 / 5)])
    torch.testing.assert_close(prototypes.grad, expected, atol=1e-5, rtol=0)
    # of v, along the two axes: 2 share (-1, 1) of L_S, -2 beta (1, 0) of L_R, -gamma/4 of L_Q;
    # what lies along v vanishes, and u has length 5
    along = np.array([-2 * share - 1.0 - 0.025, 2 * share - 0.025])
    v = np.array([0.6, 0.8])
    assert relaxed_too.grad is not None
    across = (along - v * (along @ v)) / 5
    np.testing.assert_allclose(relaxed_too.grad[0, :2].numpy(), across, atol=1e-5)


def test_what_was_received_stays_while_the_prototypes_move() -> None:
    prototypes = two_prototypes()
    settings = SETTINGS.model_copy(update={"gamma": 0.0})
    labels = torch.tensor([[1, -1]]).to(torch.int8)  # L_R alone
    loss = LearnedPrototypesLoss(TWO, settings, prototypes)
    with torch.no_grad():
        prototypes.copy_(prototypes.flip(0))
    assert loss({"image": output()}, HERE, labels, MARGINS).item() == pytest.approx(0.4, abs=1e-5)
    loss = LearnedPrototypesLoss(TWO, settings, prototypes)
    assert loss({"image": output()}, HERE, labels, MARGINS).item() == pytest.approx(0.2, abs=1e-5)


def test_prototypes_are_the_same_everywhere_and_leave_the_towers_as_they_are() -> None:
    anchors = Anchors.build(AGREEMENT)
    one, again, other = (
        build_model(PROTOTYPES_MODEL, BITS, seed, anchors=anchors) for seed in (3, 3, 4)
    )
    plain = build_model(small_federation.MODEL, BITS, 3)
    assert one.prototypes is not None
    assert torch.equal(one.prototypes, again.prototypes)
    assert not torch.equal(one.prototypes, other.prototypes)
    assert plain.prototypes is None
    assert one.prototypes.shape == (3, BITS)
    for name, values in plain.named_parameters():
        assert torch.equal(dict(one.named_parameters())[name], values)
    with pytest.raises(ModelError, match="a head of prototypes needs the anchors"):
        build_model(PROTOTYPES_MODEL, BITS, 3)


# rounds


def learning_prototypes(rate: float = 0.5, **changes: object) -> RoundSettings:
    learning = {
        "optimiser": "sgd",
        "learning_rate": rate,
        "local_steps": 1,
        "batch_patients": 100,
        "weight_decay": 0.0,
        "control_variates": False,
    }
    loss = LossSettings(name="learned_prototypes")
    return round_settings(learning=learning, loss=loss, rounds=1, **changes)


@pytest.fixture
def with_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_federation, "MODEL", PROTOTYPES_MODEL)


def first_model() -> tuple[HashModel, PreparedStudies]:
    """As the coordinator sends it, and what the sites prepare with it."""
    model = build_model(PROTOTYPES_MODEL, BITS, 7, anchors=Anchors.build(AGREEMENT))
    every = [study for site in SITES for study in site_studies(site)]
    return model, prepare_studies(model, every, AGREEMENT.findings)


@pytest.mark.usefixtures("with_prototypes")
def test_after_a_round_the_prototypes_are_the_mean_of_the_sites() -> None:
    coordinator = new_coordinator(learning_prototypes(weighting="uniform"))
    layout = model_and_layout()[1]
    run_round(coordinator, InProcessEngine([site_agent(site) for site in SITES]))
    names = [entry.name for entry in layout.entries]
    after = dict(zip(names, layout.split(coordinator.state.model), strict=True))
    model, studies = first_model()
    slopes = []
    for site in SITES:
        own = studies.select([i for i, s in enumerate(studies.study_ids) if s.startswith(site)])
        loss = build_loss(
            LossSettings(name="learned_prototypes"),
            Anchors.build(AGREEMENT),
            prototypes=model.prototypes,
        )
        outputs = {"report": model.encode("report", own.inputs["report"])}
        mean_loss = loss(outputs, own.present, own.labels, Margins.constant(3, 0.0)).mean()
        slopes.append(torch.autograd.grad(mean_loss, model.prototypes)[0])
    assert not torch.allclose(slopes[0], slopes[1], atol=1e-3)
    expected = model.prototypes - 0.5 * torch.stack(slopes).mean(dim=0)
    assert (after["prototypes"] - model.prototypes).abs().max() > 1e-2
    torch.testing.assert_close(after["prototypes"], expected.detach(), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("with_prototypes")
def test_a_secure_sum_carries_them() -> None:
    found = []
    for aggregation in ("plain", "secure"):
        coordinator = new_coordinator(
            learning_prototypes(0.05, aggregation=aggregation, weighting="uniform")
        )
        agreement = small_federation.agreement_of(coordinator.plan.settings)
        agents = [site_agent(site, agreement=agreement) for site in SITES]
        run_round(coordinator, InProcessEngine(agents))
        found.append(coordinator.state.model)
    np.testing.assert_allclose(found[1], found[0], atol=1e-3)


def test_a_release_holds_them_and_codes_need_none(tmp_path: Path) -> None:
    model, studies = first_model()
    vector = torch.cat([each.detach().reshape(-1) for each in model.parameters()]).numpy()
    save_release(
        tmp_path / "release",
        agreement=AGREEMENT,
        model_settings=PROTOTYPES_MODEL,
        vector=vector,
        margins=Margins.constant(3, 0.3),
        metrics={},
        run_id="run-1",
    )
    released = load_release(tmp_path / "release").build_model()
    assert released.prototypes is not None
    assert torch.equal(released.prototypes, model.prototypes)
    codes = encode_studies(released, studies, "report")
    np.testing.assert_array_equal(codes, encode_studies(model, studies, "report"))
    with torch.no_grad():
        released.prototypes.normal_()
    np.testing.assert_array_equal(codes, encode_studies(released, studies, "report"))


# what is refused


@pytest.mark.usefixtures("with_prototypes")
def test_a_head_and_its_loss_go_together() -> None:
    assert check_round(learning_prototypes(), AGREEMENT) == []
    ((key, message),) = check_round(round_settings(), AGREEMENT)
    assert key == ("model", "head")
    assert "alone trains, loss.name is anchor_margin; set model.head: sign" in message
    model = PROTOTYPES_MODEL.model_copy(update={"head": "sign"})
    without = learning_prototypes().model_copy(update={"model": model})
    ((key, message),) = check_round(without, AGREEMENT)
    assert key == ("loss", "name")
    assert message.endswith("has no prototypes to train; set model.head: prototypes")


@pytest.mark.usefixtures("with_prototypes")
def test_private_rounds_and_the_vectorised_engine_refuse_them() -> None:
    private = SitePrivacySettings(
        mode="site", clip_norm=1.0, noise_multiplier=1.1, sampling_rate=0.5
    )
    settings = learning_prototypes(privacy=private, weighting="uniform")
    ((key, message),) = check_round(settings, AGREEMENT)
    assert key == ("loss", "name")
    assert "stand in no layer" in message
    assert message.endswith("use one of anchor_margin, logistic, csq, orthohash, sadh_asymmetric")
    assert "prototypes differ from site to site; set engine: inprocess" in str(
        unfit(learning_prototypes())
    )
    model, _ = first_model()
    loss = build_loss(settings.loss, Anchors.build(AGREEMENT), prototypes=model.prototypes)
    with pytest.raises(PrivacyError, match="stand in no layer"):
        check_sound(model, loss, settings.learning)


def test_a_model_without_prototypes_is_told() -> None:
    with pytest.raises(ModelError, match=r"this model has none; set model\.head: prototypes"):
        build_loss(LossSettings(name="learned_prototypes"), TWO)
    assert ModelSettings(towers=small_federation.MODEL.towers).head == "sign"
