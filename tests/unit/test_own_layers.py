"""Normalisation layers that stay at their site (FedBN), from one step to a whole run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed_sites import SETTINGS as SHARED_NOISE
from small_federation import (
    AGREEMENT,
    MODEL,
    SECURE_AGREEMENT,
    SITES,
    model_and_layout,
    new_coordinator,
    round_settings,
    site_agent,
    site_studies,
)

from fedhash.errors import ModelError
from fedhash.learning.coordinator_optimisers import CoordinatorOptimiserSettings
from fedhash.learning.loss import Margins
from fedhash.learning.losses import build_loss
from fedhash.learning.own_layers import OWN_LAYERS, own_places, with_own_layers
from fedhash.learning.settings import LearningSettings, LossSettings
from fedhash.models.anchors import Anchors
from fedhash.models.hash_model import build_model
from fedhash.models.prepared import PreparedStudies, prepare_studies
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.privacy.margin_statistics import margin_statistics
from fedhash.privacy.noise import SimulatedNoise
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.rounds.margin_schedule import MarginScheduleSettings
from fedhash.rounds.run import run_round, run_rounds
from fedhash.rounds.settings import RoundSettings, check_release, check_round
from fedhash.rounds.trainer import SitePrivacy, SiteTrainer
from fedhash.rounds.training_messages import TrainRequest
from fedhash_sim.engines.inprocess import InProcessEngine

START, LAYOUT = model_and_layout()
NORMS = ("towers.report.body.1.weight", "towers.report.body.1.bias")
OWN = np.concatenate(
    [np.full(int(np.prod(entry.shape)), entry.name in NORMS) for entry in LAYOUT.entries]
)
RATE = 0.5
ONE_STEP = {
    "optimiser": "sgd",
    "learning_rate": RATE,
    "schedule": "constant",
    "weight_decay": 0.0,
    "local_steps": 1,
    "batch_patients": 100,
    "control_variates": False,
    "normalisation_layers": "own",
}


def own_settings(rounds: int = 1, **learning: object) -> RoundSettings:
    return round_settings(learning=ONE_STEP | learning, rounds=rounds, weighting="uniform")


def prepared(site: str) -> PreparedStudies:
    model = build_model(MODEL, AGREEMENT.code_bits, seed=0)
    return prepare_studies(model, site_studies(site), AGREEMENT.findings)


def slope(vector: np.ndarray, site: str) -> np.ndarray:
    """The gradient of the mean loss over a site's studies."""
    model, studies = build_model(MODEL, AGREEMENT.code_bits, seed=0), prepared(site)
    LAYOUT.load(model, vector)
    loss = build_loss(LossSettings(), Anchors.build(AGREEMENT))
    outputs = {"report": model.encode("report", studies.inputs["report"])}
    loss(outputs, studies.present, studies.labels, Margins.constant(3, 0.3)).mean().backward()
    return torch.cat([each.grad.reshape(-1) for each in model.parameters()]).numpy()


def trained(settings: RoundSettings, folder: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """The coordinator's vector after all rounds, and each site's own layers."""
    coordinator = new_coordinator(settings)
    agents = [site_agent(site, folder) for site in SITES]
    run_rounds(coordinator, InProcessEngine(agents))
    carried = [agent._state.carried("run-1", settings.rounds) for agent in agents]
    return coordinator.state.model, [each[OWN_LAYERS] for each in carried]


def test_the_places_are_those_of_scale_and_shift() -> None:
    model = build_model(MODEL, AGREEMENT.code_bits, seed=0)
    found = own_places(model, LearningSettings(normalisation_layers="own"))
    np.testing.assert_array_equal(found, OWN)
    assert 0 < found.sum() < LAYOUT.size
    assert not own_places(model, LearningSettings()).any()


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        ("image_hog", 2 * 64 * 18 // 16),
        ("image_convnet", None),
        ("image_resnet18", None),
    ],
)
def test_image_towers_have_such_layers(tower: str, expected: int | None) -> None:
    options = {"image_size_px": 32, "cell_px": 16} if expected else {"image_size_px": 32}
    towers = {"image": TowerSettings(name=tower, options=options)}
    model = build_model(ModelSettings(towers=towers), 16, seed=0)
    found = int(own_places(model, LearningSettings(normalisation_layers="own")).sum())
    assert found == 2 * 4 * 18 if expected else found > 0


def test_one_step_by_hand(tmp_path: Path) -> None:
    """Scale and shift follow each site's own slope, everything else the mean of the slopes."""
    vector, layers = trained(own_settings(), tmp_path)
    slopes = [slope(START, site) for site in SITES]
    np.testing.assert_array_equal(vector[OWN], START[OWN])
    expected = START - RATE * np.mean(slopes, axis=0)
    np.testing.assert_allclose(vector[~OWN], expected[~OWN], atol=1e-6)
    for own_layers, own_slope in zip(layers, slopes, strict=True):
        np.testing.assert_allclose(own_layers, (START - RATE * own_slope)[OWN], atol=1e-6)
    assert np.abs(layers[0] - layers[1]).max() > 1e-3


def test_the_next_round_starts_from_the_site_s_own_layers(tmp_path: Path) -> None:
    first, layers = trained(own_settings(), tmp_path / "one")
    second, following = trained(own_settings(rounds=2), tmp_path / "two")
    slopes = []
    for site, own_layers, after in zip(SITES, layers, following, strict=True):
        own_model = with_own_layers(first, OWN, {OWN_LAYERS: own_layers})
        slopes.append(slope(own_model, site))
        np.testing.assert_allclose(after, own_layers - RATE * slopes[-1][OWN], atol=1e-5)
    expected = first - RATE * np.mean(slopes, axis=0)
    np.testing.assert_allclose(second[~OWN], expected[~OWN], atol=1e-5)
    np.testing.assert_array_equal(second[OWN], START[OWN])


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam"])
def test_no_optimiser_of_the_coordinator_moves_them(name: str, tmp_path: Path) -> None:
    settings = own_settings(rounds=2, control_variates=True, optimiser="adamw", moments="kept")
    optimiser = CoordinatorOptimiserSettings(name=name, learning_rate=0.1)
    coordinator = new_coordinator(settings.model_copy(update={"coordinator_optimiser": optimiser}))
    run_rounds(coordinator, InProcessEngine([site_agent(site, tmp_path) for site in SITES]))
    np.testing.assert_array_equal(coordinator.state.model[OWN], START[OWN])
    assert coordinator.state.control is not None
    assert not coordinator.state.control[OWN].any()
    assert coordinator.state.control[~OWN].any()


def test_a_killed_run_goes_on_with_the_layers_of_the_round_that_counted(tmp_path: Path) -> None:
    settings = own_settings(rounds=3, local_steps=2, batch_patients=2)
    whole, layers = trained(settings, tmp_path / "whole")
    killed = new_coordinator(settings)
    engine = InProcessEngine([site_agent(site, tmp_path / "cut") for site in SITES])
    run_round(killed, engine)
    kept = killed.state
    run_round(killed, engine)  # trained at the sites, and lost by the coordinator
    again = new_coordinator(settings)
    again.state = kept
    agents = [site_agent(site, tmp_path / "cut") for site in SITES]
    np.testing.assert_array_equal(run_rounds(again, InProcessEngine(agents)), whole)
    for agent, expected in zip(agents, layers, strict=True):
        carried = agent._state.carried("run-1", 3)
        np.testing.assert_array_equal(carried[OWN_LAYERS], expected)


def test_margin_statistics_are_those_of_the_site_s_own_model() -> None:
    settings = own_settings(rounds=2).model_copy(
        update={"margin_schedule": MarginScheduleSettings(every_rounds=2)}
    )
    stage = next(new_coordinator(settings).round(SITES))
    asked = replace(TrainRequest.from_message(stage.requests["site-0"]), round_number=2)
    layers = np.random.default_rng(0).normal(size=OWN.sum()).astype(np.float32)
    trainer = SiteTrainer("site-0", AGREEMENT, MODEL, prepared("site-0"), seed=7)
    found = trainer.train(asked, {OWN_LAYERS: layers}).statistics
    expected = []
    for vector in (with_own_layers(START, OWN, {OWN_LAYERS: layers}), START):
        model = build_model(MODEL, AGREEMENT.code_bits, seed=0)
        LAYOUT.load(model, vector)
        noise = SimulatedNoise(7, "margin statistics", "run-1", "site-0", 2)
        expected.append(
            margin_statistics(
                *(model, prepared("site-0"), Anchors.build(AGREEMENT), 0.1),
                noise=noise,
                noise_multiplier=None,
                largest=10_000.0,
            )
        )
    np.testing.assert_array_equal(found, expected[0])
    assert (expected[0] != expected[1]).any()


def test_layers_of_another_length_are_refused() -> None:
    trainer = SiteTrainer("site-0", AGREEMENT, MODEL, prepared("site-0"), seed=7)
    stage = next(new_coordinator(own_settings()).round(SITES))
    asked = TrainRequest.from_message(stage.requests["site-0"])
    with pytest.raises(ModelError, match=r"'own_layers': 3.*need \{'own_layers': 16\}"):
        trainer.train(asked, {OWN_LAYERS: np.zeros(3, np.float32)})


# what is refused


def test_towers_without_such_layers_are_refused() -> None:
    towers = {"report": TowerSettings(name="frozen_report", options={"dimensions": 4})}
    settings = own_settings().model_copy(update={"model": ModelSettings(towers=towers)})
    ((key, message),) = check_round(settings, AGREEMENT)
    assert key == ("learning", "normalisation_layers")
    assert "frozen_report have no normalisation layer" in message
    assert "set it to averaged" in message


def test_no_release_is_made_of_such_a_run() -> None:
    assert check_round(own_settings(), AGREEMENT) == []
    ((key, message),) = check_release(own_settings())
    assert key == ("learning", "normalisation_layers")
    assert "a release holds one model for all; set it to averaged" in message
    assert check_release(round_settings()) == []


def test_under_privacy_they_stay_where_each_site_has_noise_of_its_own() -> None:
    """What a site keeps follows its noised gradients; a share of the noise protects no site."""
    private = SitePrivacySettings(
        mode="site", clip_norm=1.0, noise_multiplier=1.1, sampling_rate=0.5
    )
    assert check_round(own_settings().model_copy(update={"privacy": private}), AGREEMENT) == []
    reserved: list[object] = []
    privacy = SitePrivacy(
        lambda run, number: SimulatedNoise(0, run, number), lambda *steps: reserved.append(steps)
    )
    trainer = SiteTrainer("site-0", AGREEMENT, MODEL, prepared("site-0"), 7, privacy)
    stage = next(
        new_coordinator(own_settings().model_copy(update={"privacy": private})).round(SITES)
    )
    result = trainer.train(TrainRequest.from_message(stage.requests["site-0"]), {})
    assert len(reserved) == 1
    assert not result.update[OWN].any()
    assert result.update[~OWN].any()
    assert np.abs(result.carried[OWN_LAYERS] - START[OWN]).min() > 0  # noise on each

    learning = SHARED_NOISE.learning.model_copy(update={"normalisation_layers": "own"})
    shared = SHARED_NOISE.model_copy(update={"learning": learning})
    ((key, message),) = check_round(shared, SECURE_AGREEMENT)
    assert key == ("learning", "normalisation_layers")
    assert "takes no step itself; set it to averaged" in message
