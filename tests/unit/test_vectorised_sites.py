"""The vectorised engine against the in-process one, which runs the sites' own code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_federation import (
    AGREEMENT,
    MODEL,
    SITES,
    model_and_layout,
    new_coordinator,
    round_settings,
    run_plan,
    site_agent,
    site_studies,
)

from fedhash.data.study import Study
from fedhash.errors import CheckpointError, DataError, ModelError, ProtocolError
from fedhash.models.hash_model import build_model
from fedhash.models.prepared import PreparedStudies, prepare_studies
from fedhash.models.settings import ModelSettings, TowerSettings
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.rounds.coordinator import CoordinatorState, RoundCoordinator
from fedhash.rounds.margin_schedule import MarginScheduleSettings
from fedhash.rounds.run import run_rounds
from fedhash.rounds.settings import RoundSettings
from fedhash_sim.engines import summed_step
from fedhash_sim.engines.inprocess import InProcessEngine
from fedhash_sim.engines.site_batches import SiteBatches
from fedhash_sim.engines.vectorised import VectorisedSites

SGD = {"optimiser": "sgd", "learning_rate": 0.5, "control_variates": False}
CASES: dict[str, RoundSettings] = {
    "adamw with control variates": round_settings(),
    "moments start anew": round_settings(learning={"moments": "reset"}),
    "sgd": round_settings(learning=SGD),
    "one step of sgd": round_settings(
        learning=SGD | {"local_steps": 1, "weight_decay": 0.1, "proximal_weight": 0.2},
        weighting="patients",
    ),
    "one step of sgd over all patients": round_settings(
        learning=SGD | {"local_steps": 1, "batch_patients": 5}, weighting="patients"
    ),
    "momentum and weight decay": round_settings(
        learning=SGD | {"momentum": 0.5, "weight_decay": 0.1}
    ),
    "epochs, of which sites take unequal steps": round_settings(
        learning={"local_steps": None, "local_epochs": 2}
    ),
    "clipped, and pulled back": round_settings(
        learning={"gradient_clip_norm": 0.05, "proximal_weight": 0.3}
    ),
    "layers that stay at their site": round_settings(
        learning={"normalisation_layers": "own", "proximal_weight": 0.3}
    ),
    "layers that stay, in one step of sgd": round_settings(
        learning=SGD | {"local_steps": 1, "normalisation_layers": "own"}
    ),
    "weighted by patients": round_settings(weighting="patients"),
    "weighted by rounded patients": round_settings(weighting="rounded_patients"),
    "more steps than the agreement allows": round_settings(
        learning={"local_steps": None, "local_epochs": 50}
    ),
}


def prepared(studies: Callable[[str], list[Study]] = site_studies) -> dict[str, PreparedStudies]:
    model = build_model(MODEL, AGREEMENT.code_bits, seed=0)
    return {site: prepare_studies(model, studies(site), AGREEMENT.findings) for site in SITES}


def vectorised_coordinator(
    settings: RoundSettings, folder: Path, **changes: Any
) -> tuple[RoundCoordinator, VectorisedSites]:
    plan = run_plan(settings)
    state = CoordinatorState.start(plan, AGREEMENT, model_and_layout()[0])
    sites = VectorisedSites(
        plan, AGREEMENT, **({"studies": prepared(), "seed": 7, "folder": folder} | changes)
    )
    return RoundCoordinator(plan, AGREEMENT, state, sites), sites


@pytest.mark.parametrize("sites_at_once", [1, 2, 100])
@pytest.mark.parametrize("case", CASES)
def test_a_run_equals_that_of_the_sites_own_code(
    case: str, sites_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = model_and_layout()[1].size
    monkeypatch.setattr(summed_step, "_SITES_AT_ONCE", sites_at_once)
    monkeypatch.setattr(summed_step, "_ROWS_AT_ONCE", 5 * sites_at_once)
    expected = new_coordinator(CASES[case])
    run_rounds(expected, InProcessEngine([site_agent(site) for site in SITES]))
    at_once = {"parameters_at_once": sites_at_once * size}
    coordinator, sites = vectorised_coordinator(CASES[case], tmp_path, **at_once)
    start = coordinator.state.model
    vector = run_rounds(coordinator, sites)
    assert np.abs(vector - start).max() > 0.01, "nothing was trained"
    np.testing.assert_allclose(vector, expected.state.model, atol=2e-5)
    if expected.state.control is not None:
        np.testing.assert_allclose(coordinator.state.control, expected.state.control, atol=2e-5)
    for record, other in zip(coordinator.state.records, expected.state.records, strict=True):
        assert record.weight == other.weight
        assert record.sites == other.sites
        assert record.mean_loss == pytest.approx(other.mean_loss, abs=2e-5)


def test_a_step_is_drawn_unless_it_takes_every_study() -> None:
    def repeated(site: str) -> list[Study]:
        return [replace(each, patient_id=f"{site}-patient") for each in site_studies(site)]

    plan, model = run_plan(round_settings()), build_model(MODEL, AGREEMENT.code_bits, seed=0)
    batches = SiteBatches(plan, model, prepared(), seed=7)
    weights = batches.whole_step(patients=5)
    assert weights is not None
    patients = [len(site.patients) for site in batches.sites]
    assert patients == [3, 4, 5]
    expected = np.repeat([site.weight for site in batches.sites], patients)
    np.testing.assert_allclose(weights, expected / np.repeat(patients, patients))
    assert batches.whole_step(patients=4) is None
    assert SiteBatches(plan, model, prepared(repeated), seed=7).whole_step(patients=5) is None


def test_layers_that_stay_are_those_of_the_sites_own_code(tmp_path: Path) -> None:
    settings = round_settings(learning={"normalisation_layers": "own"})
    expected = new_coordinator(settings)
    agents = [site_agent(site, tmp_path / "own") for site in SITES]
    run_rounds(expected, InProcessEngine(agents))
    coordinator, sites = vectorised_coordinator(settings, tmp_path / "vectorised")
    model = coordinator.state.model
    before = [sites.carried(site, 0, model)["own_layers"] for site in SITES]
    run_rounds(coordinator, sites)
    for site, agent, start in zip(SITES, agents, before, strict=True):
        found = sites.carried(site, settings.rounds, coordinator.state.model)["own_layers"]
        own = agent._state.carried("run-1", settings.rounds)
        assert own is not None
        np.testing.assert_allclose(found, own["own_layers"], atol=2e-5)
        assert np.abs(found - start).max() > 0.01


def test_a_run_goes_on_from_what_its_sites_carried(tmp_path: Path) -> None:
    whole, sites = vectorised_coordinator(round_settings(), tmp_path / "whole")
    run_rounds(whole, sites)
    first, sites = vectorised_coordinator(round_settings(), tmp_path / "cut")
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(first.round(SITES))
    kept = first.state
    with pytest.raises(StopIteration):
        next(first.round(SITES))  # trained, and killed before the coordinator kept the round
    second, sites = vectorised_coordinator(round_settings(), tmp_path / "cut")
    second.state = kept
    run_rounds(second, sites)
    np.testing.assert_array_equal(second.state.model, whole.state.model)


def test_what_the_sites_carried_must_be_there(tmp_path: Path) -> None:
    first, _ = vectorised_coordinator(round_settings(), tmp_path / "one")
    with pytest.raises(StopIteration):
        next(first.round(SITES))
    second, _ = vectorised_coordinator(round_settings(), tmp_path / "other")
    second.state = first.state
    with pytest.raises(CheckpointError, match=r"after round 1 of 'run-1' is gone; remove"):
        next(second.round(SITES))


def test_a_training_that_leaves_the_finite_numbers_fails_its_round(tmp_path: Path) -> None:
    settings = round_settings(
        learning=SGD | {"learning_rate": 1e3, "weight_decay": 1e3, "local_steps": 20}
    )
    coordinator, sites = vectorised_coordinator(settings, tmp_path)
    with pytest.raises(ProtocolError, match=r"left the finite numbers.*lower learning_rate"):
        run_rounds(coordinator, sites)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (round_settings(aggregation="secure"), "aggregation: secure"),
        (round_settings(margin_schedule=MarginScheduleSettings()), "margin_schedule"),
        (round_settings(loss={"name": "contrastive"}), "loss.name contrastive"),
        (
            round_settings(
                privacy=SitePrivacySettings(
                    mode="site", clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.5
                )
            ),
            "privacy.mode site",
        ),
    ],
)
def test_what_needs_a_site_s_own_half_is_refused(
    settings: RoundSettings, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=rf"has no .*{reason}.*set engine: inprocess"):
        vectorised_coordinator(settings, tmp_path)


def test_towers_that_draw_at_random_are_refused(tmp_path: Path) -> None:
    towers = {"image": TowerSettings(name="image_hog", options={"dropout": 0.5})}
    settings = round_settings().model_copy(update={"model": ModelSettings(towers=towers)})
    message = "no towers with dropout .*, and image_hog has some as it is set; set engine"
    with pytest.raises(ModelError, match=message):
        vectorised_coordinator(settings, tmp_path)


def test_a_site_without_studies_is_told(tmp_path: Path) -> None:
    studies = prepared()
    studies["site-1"] = studies["site-1"].select([])
    with pytest.raises(DataError, match="there is no study to train on"):
        vectorised_coordinator(round_settings(), tmp_path, studies=studies)
