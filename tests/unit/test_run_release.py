"""From a trained run to a signed release, and from a release or frozen features to the next run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_federation import AGREEMENT, MODEL, SITES, round_settings, site_agent
from small_releases import KEY
from test_frozen_towers import FROZEN, model_settings
from typer.testing import CliRunner

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings, resolved
from fedhash.errors import (
    CheckpointError,
    ConfigurationError,
    ModelError,
    ProtocolError,
    ReleaseError,
)
from fedhash.learning.loss import Margins
from fedhash.learning.settings import LearningSettings, LossSettings
from fedhash.models.frozen_features import frozen_file
from fedhash.models.hash_model import build_model
from fedhash.models.layout import Layout
from fedhash.privacy.settings import SitePrivacySettings
from fedhash.registry import load_release, save_release
from fedhash.rounds.checkpoint import Checkpoints
from fedhash.rounds.coordinator import CoordinatorState
from fedhash.rounds.settings import RoundSettings
from fedhash.rounds.training_messages import RunPlan
from fedhash_server.cli import app
from fedhash_server.first_model import first_model
from fedhash_server.flower import train_run, write_app_folder
from fedhash_server.run_release import keep_inputs, release_run
from fedhash_server.settings import RunSettings
from fedhash_server.training_run import prepare_run
from fedhash_sim.engines.inprocess import InProcessEngine
from tests.router_network import Place

TERMS = AGREEMENT.model_copy(update={"release_key": KEY.public_hex})
IMAGES = Agreement(
    name="images", findings=("none", "edema", "effusion"), code_bits=64, modalities=("image",)
)
FROZEN_ROUNDS = RoundSettings(
    model=model_settings(),
    learning=LearningSettings(local_steps=1, learning_rate=1.0),
    loss=LossSettings(name="logistic"),
    rounds=1,
    aggregation="plain",
)


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout if code == 0 else result.stderr.replace("\n", " ")


def train(folder: Path, run: str, settings: RoundSettings, run_id: str = "run-1") -> Path:
    """Bundle and train a run; `run` is what its file holds beside the sites."""
    paths = (folder / "agreement.yaml", folder / "round.yaml", folder / f"{run_id}.yaml")
    texts = (resolved(TERMS), resolved(settings))
    run = f"run_id: {run_id}\nsites: [{', '.join(SITES)}]\nseed: 7\n{run}"
    for path, text in zip(paths, (*texts, run), strict=True):
        path.write_text(text)
    write_app_folder(folder / f"app-{run_id}", *paths)
    train_run(
        InProcessEngine([site_agent(site, agreement=TERMS) for site in SITES]),
        folder / f"app-{run_id}",
        folder / "runs",
    )
    return folder / "runs" / run_id


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    (tmp_path / "secrets").mkdir()
    KEY.save(tmp_path / "secrets" / "release.key")
    return tmp_path


def test_a_run_is_released_listed_and_rolled_back(coordinator: Path) -> None:
    train(coordinator, "", round_settings())
    made = json.loads(call("release", "make", coordinator, "run-1", "--json"))
    assert made["statement"] == 1
    release = load_release(Path(made["folder"]))
    assert release.release_id == made["release_id"] == Path(made["folder"]).name
    assert release.parent is None
    assert release.metrics["rounds_completed"] == 4
    assert json.loads(call("release", "verify", made["folder"], "--json"))["privacy"] == (
        "no bound: it was trained without noise and may remember patients"
    )
    again = json.loads(call("release", "make", coordinator, "run-1", "--json"))
    assert again == made  # so a command that was killed is typed again
    assert "is current already" in call(
        "release", "make", coordinator, "run-1", "--after", 7, code=1
    )
    assert "has no run 'run-9'; it has run-1" in call(
        "release", "make", coordinator, "run-9", code=1
    )
    train(coordinator, f"parent: releases/{release.release_id}", round_settings(), "run-2")
    second = json.loads(call("release", "make", coordinator, "run-2", "--json"))
    assert second["parent"] == release.release_id
    assert (
        json.loads(call("rollback", coordinator, release.release_id, "--json"))["kind"]
        == "rollback"
    )
    listed = json.loads(call("release", "list", coordinator, "--json"))
    assert listed["current"]["number"] == 3
    assert listed["current"]["release_id"] == release.release_id
    assert [each["kind"] for each in listed["statements"]] == ["release", "release", "rollback"]
    assert "current" in call("release", "list", coordinator)


def test_the_next_run_starts_from_its_parent(coordinator: Path) -> None:
    run = train(coordinator, "", round_settings(rounds=1))
    parent = release_run(run, coordinator / "releases")
    settings = round_settings(rounds=1)
    started = RunSettings(
        run_id="run-2", sites=SITES, seed=1, parent=coordinator / "releases" / parent.release_id
    )
    first = first_model(TERMS, settings, started)
    np.testing.assert_array_equal(first.vector, parent.vector)
    options = MODEL.towers["report"].options | {"hidden": 4}
    tower = MODEL.towers["report"].model_copy(update={"options": options})
    smaller = settings.model_copy(
        update={"model": MODEL.model_copy(update={"towers": {"report": tower}})}
    )
    with pytest.raises(ModelError, match="has other towers or another vocabulary"):
        first_model(TERMS, smaller, started)
    other_words = TERMS.model_copy(update={"findings": ("no_finding", "nodule", "effusion")})
    with pytest.raises(ModelError, match="has other towers or another vocabulary"):
        first_model(other_words, settings, started)


def test_a_run_goes_on_with_the_inputs_that_it_began_with(coordinator: Path) -> None:
    run = train(coordinator, "", round_settings(rounds=1))
    parent = release_run(run, coordinator / "releases").release_id
    with pytest.raises(CheckpointError, match="another agreement or another parent"):
        train(coordinator, f"parent: releases/{parent}", round_settings(rounds=1))
    assert release_run(run, coordinator / "releases").release_id == parent, "byte for byte"
    (run / "inputs.json").write_text("{}")
    with pytest.raises(ReleaseError, match="is damaged"):
        release_run(run, coordinator / "releases")


def test_a_run_that_is_not_finished_is_released_on_demand_only(coordinator: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        release_run(coordinator / "runs" / "run-1", coordinator / "releases")
    stop = "the site's machine is switched off"

    class Stopped(InProcessEngine):
        rounds = 0

        def ask(self, *arguments: object, **options: object) -> object:
            self.rounds += 1
            if self.rounds > 2:
                raise KeyboardInterrupt(stop)
            return super().ask(*arguments, **options)

    app_folder = coordinator / "app-run-1"
    train(coordinator, "", round_settings(rounds=1))  # writes the files
    (coordinator / "round.yaml").write_text(resolved(round_settings(rounds=4)))
    run_file = coordinator / "run-1.yaml"
    run_file.write_text(run_file.read_text().replace("run-1", "run-3"))
    write_app_folder(
        app_folder, coordinator / "agreement.yaml", coordinator / "round.yaml", run_file
    )
    engine = Stopped([site_agent(site, agreement=TERMS) for site in SITES])
    with pytest.raises(KeyboardInterrupt, match=stop):
        train_run(engine, app_folder, coordinator / "runs")
    run = coordinator / "runs" / "run-3"
    with pytest.raises(CheckpointError, match="2 of 4 rounds"):
        release_run(run, coordinator / "releases")
    released = release_run(run, coordinator / "releases", unfinished_too=True)
    assert released.metrics["rounds_completed"] == 2


def test_no_release_is_made_where_sites_keep_layers_of_their_own(
    coordinator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = round_settings(learning={"normalisation_layers": "own"})
    refused = "learning.normalisation_layers is own: each site's model has layers"
    with pytest.raises(ConfigurationError) as caught:
        train(coordinator, "", settings)
    (problem,) = caught.value.problems
    assert problem.message.startswith(refused)
    line = (coordinator / "round.yaml").read_text().splitlines()[problem.line - 1]
    assert line.strip() == "normalisation_layers: own"
    rounds = ("--round", coordinator / "round.yaml")
    assert refused in " ".join(
        call("check", coordinator / "agreement.yaml", *rounds, code=1).split()
    )
    monkeypatch.setattr("fedhash_server.flower.check_release", lambda _: [])
    run = train(coordinator, "", settings)  # as one that was begun in another way
    with pytest.raises(ReleaseError, match=r"run-1: learning\.normalisation_layers is own"):
        release_run(run, coordinator / "releases")


def test_the_release_of_a_private_run_states_its_epsilon(tmp_path: Path) -> None:
    private = SitePrivacySettings(
        mode="site", clip_norm=1.0, noise_multiplier=2.0, sampling_rate=0.5
    )
    settings = round_settings(
        rounds=2,
        privacy=private,
        weighting="uniform",
        learning={"control_variates": False, "weight_decay": 0.0},
    )
    # the sites of this test have no ledger and refuse; the coordinator counts all that was asked
    with pytest.raises(ProtocolError, match="none of the 2 rounds was completed"):
        train(tmp_path, "", settings)
    release = release_run(tmp_path / "runs" / "run-1", tmp_path / "releases")
    assert release.metrics == {"rounds_completed": 0}
    assert release.privacy is not None
    assert release.privacy.epsilon
    assert release.privacy.trainings[0].steps == 4
    assert release.privacy.adds_up()
    forged = release.privacy.model_copy(update={"epsilon": 0.1})
    assert not forged.adds_up()


def test_a_frozen_tower_starts_from_the_head_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / frozen_file("image")
    path.write_bytes(FROZEN.to_bytes())
    run = RunSettings(run_id="run-1", sites=("a",), seed=0, frozen={"image": path})
    first = first_model(IMAGES, FROZEN_ROUNDS, run)
    assert FROZEN.head is not None
    np.testing.assert_array_equal(first.vector, FROZEN.head.numpy().ravel())
    assert np.abs(first.vector).max() > 0
    with pytest.raises(ModelError, match=r"its file is not named.*add to the run file frozen"):
        first_model(IMAGES, FROZEN_ROUNDS, run.model_copy(update={"frozen": {}}))
    stray = run.model_copy(update={"frozen": {"image": path, "report": path}})
    with pytest.raises(ModelError, match="no frozen tower of that modality"):
        first_model(IMAGES, FROZEN_ROUNDS, stray)
    other = FROZEN_ROUNDS.model_copy(update={"model": model_settings(sha256="ab" * 32)})
    with pytest.raises(ModelError, match="use the same file on all sides"):
        first_model(IMAGES, other, run)


def test_a_release_holds_the_files_of_its_frozen_towers_and_hands_them_on(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    path.write_bytes(FROZEN.to_bytes())
    run = RunSettings(run_id="run-1", sites=("a",), seed=0, frozen={"image": path})
    first = first_model(IMAGES, FROZEN_ROUNDS, run)
    folder = tmp_path / "runs" / "run-1"
    keep_inputs(folder, IMAGES, first)
    path.unlink()  # the run has its own copy
    plan = RunPlan(
        run_id="run-1",
        agreement_digest=IMAGES.digest(),
        layout_digest=first.layout.digest(),
        sites=("a",),
        settings=FROZEN_ROUNDS,
    )
    state = replace(CoordinatorState.start(plan, IMAGES, first.vector), round_number=1)
    Checkpoints(folder / "checkpoints").save(plan, state)
    release = release_run(folder, tmp_path / "releases")
    assert release.frozen["image"].sha256 == FROZEN.sha256
    place = tmp_path / "releases" / release.release_id
    assert (place / frozen_file("image")).read_bytes() == FROZEN.to_bytes()
    following = RunSettings(run_id="run-2", sites=("a",), seed=0, parent=place)
    second = first_model(IMAGES, FROZEN_ROUNDS, following)
    assert second.frozen["image"].sha256 == FROZEN.sha256
    np.testing.assert_array_equal(second.vector, first.vector)


def test_train_takes_a_parent_from_the_coordinators_releases(tmp_path: Path) -> None:
    place = Place(tmp_path)
    terms = place.folder.agreement()
    model = build_model(MODEL, terms.code_bits, seed=3)
    parent = save_release(
        place.folder.path / "releases",
        agreement=terms,
        model_settings=MODEL,
        vector=Layout.of(model).flatten(model),
        margins=Margins.constant(len(terms.findings), 0.3),
        metrics={},
        run_id="earlier",
        named_by_id=True,
    )
    round_file = tmp_path / "second.yaml"
    round_file.write_text(resolved(round_settings(rounds=1)))
    asked = {"round_file": round_file, "parent": parent.release_id}
    prepared = prepare_run(place.folder, **asked)
    assert prepared.run.parent == place.folder.path.resolve() / "releases" / parent.release_id
    bundled = read_settings(prepared.folder / "app" / "configs" / "run.yaml", RunSettings)
    assert bundled == prepared.run
    assert prepare_run(place.folder, **asked).goes_on
    with pytest.raises(ConfigurationError, match="begun with another parent"):
        prepare_run(place.folder, **(asked | {"parent": "ab" * 32}))
    lost = ("train", place.folder.path, round_file, "--run", "third", "--dry-run", "--parent")
    assert "is no complete release" in call(*lost, "ab" * 32, code=1)
    wrong = CliRunner().invoke(app, [*map(str, lost[:-1]), "--frozen", "image"])
    assert wrong.exit_code == 2
