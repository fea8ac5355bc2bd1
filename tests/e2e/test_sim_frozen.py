"""Studies with public patients: what is made of them, and that a run of it can be searched."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sim_command import phantom_manifest, run, run_all

from fedhash.models.frozen_features import FrozenFeatures
from fedhash.models.settings import TowerSettings
from fedhash.models.towers import build_tower
from fedhash.registry.release import load_release
from fedhash_sim.results import read_results

FROZEN_ROUND = """
model:
  towers:
    report: {name: frozen_report, options: {dimensions: 8}}
  head: logits
loss: {name: logistic}
learning: {local_steps: 2, learning_rate: 0.01}
rounds: 2
weighting: uniform
"""


@pytest.fixture
def frozen_study(study_file: Path) -> Path:
    (study_file.parent / "frozen.yaml").write_text(FROZEN_ROUND)
    text = study_file.read_text().replace("round: round.yaml", "round: frozen.yaml")
    public = "public: {share: 0.4, round: round.yaml}\nmethods: [federated, public, start]\n"
    study_file.write_text(text.replace("seeds: [0, 1]", "seeds: [0]") + public)
    return study_file


@pytest.mark.parametrize("layer", ["prepared", "last"])
def test_frozen_towers_are_made_of_the_public_patients(
    frozen_study: Path, tmp_path: Path, layer: str
) -> None:
    out = tmp_path / "run"
    run_all(frozen_study, out, "--set", f"public.layer={layer}")
    results = read_results(out)
    assert set(results["method"]) == {"federated", "public", "start"}
    assert set(results[results["method"] == "start"]["round"]) == {0}
    frozen = FrozenFeatures.load(out / "data" / "seed-0" / "frozen-report.safetensors")
    assert (frozen.layer, frozen.dimensions) == (layer, 8)
    (release,) = [
        load_release(path.parent) for path in out.rglob("manifest.json") if "federated" in str(path)
    ]
    assert release.model_settings.towers["report"].options["sha256"] == frozen.sha256
    found = json.loads(run("search", out, "--report", "Large pleural effusion.", "--json"))
    assert found["sites_asked"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("public=null", "need public patients"),
        ("public.round=null", "add public.round"),
        ("methods=[start]", "trains nothing; add"),
        ("public.share=1.5", "public.share"),
        ("public.round=frozen.yaml", "public.round has no tower for 'report'"),
        ("public.round=private.yaml", "public.round has privacy.mode site"),
        ("public.round=own.yaml", "public.round has learning.normalisation_layers own"),
        ("public.round=both.yaml", "public.round has a frozen tower of its own, for 'image'"),
        ("round.model.towers.report.options.dimensions=4000", "public studies"),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_remedy(
    frozen_study: Path, tmp_path: Path, change: str, message: str
) -> None:
    folder = frozen_study.parent
    trained = (folder / "round.yaml").read_text()
    privacy = "{mode: site, clip_norm: 1.0, noise_multiplier: 2.0, sampling_rate: 0.1}"
    (folder / "private.yaml").write_text(f"{trained}privacy: {privacy}\n")
    both = trained.replace("  towers:\n", "  towers:\n    image: {name: frozen_image}\n")
    (folder / "both.yaml").write_text(both)
    own = trained.replace("learning: {", "learning: {normalisation_layers: own, ")
    (folder / "own.yaml").write_text(own)
    for name in ("frozen", "private", "own", "both"):
        change = change.replace(f"={name}.yaml", f"={folder / name}.yaml")
    output = run("run", frozen_study, "--out", tmp_path / "run", "--set", change, ok=False)
    assert message in " ".join(output.split())


def test_a_run_needs_nothing_of_its_public_round_file_any_more(
    frozen_study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run_all(frozen_study, out)
    (frozen_study.parent / "round.yaml").unlink()
    found = json.loads(run("search", out, "--report", "Large pleural effusion.", "--json"))
    assert found["sites_asked"] == 4


def test_a_run_goes_on_with_its_own_public_round_file_only(
    frozen_study: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "run", tmp_path / "run" / "data" / "seed-0"
    run_all(frozen_study, out)
    before = {path.name: path.read_bytes() for path in data.glob("*.safetensors")}
    (data / "consortium.json").unlink()  # as a kill before it was written leaves the folder
    rounds = frozen_study.parent / "round.yaml"
    text = rounds.read_text()
    rounds.write_text(text.replace("word_features: 64", "word_features: 32"))
    said = run("run", frozen_study, "--out", out, "--workers", 1, ok=False)
    assert "its public_round.yaml differs" in said
    assert {path.name: path.read_bytes() for path in data.glob("*.safetensors")} == before
    rounds.write_text(text)
    run_all(frozen_study, out)
    assert {path.name: path.read_bytes() for path in data.glob("*.safetensors")} == before


def test_studies_are_never_read_with_other_frozen_features_than_they_were_prepared_with(
    frozen_study: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "run", tmp_path / "run" / "data" / "seed-0"
    run_all(frozen_study, out, "--set", "methods=[federated]")
    file = data / "frozen-report.safetensors"
    ours = FrozenFeatures.load(file)
    assert ours.head is not None
    other = replace(ours, head=ours.head * 2)
    file.write_bytes(other.to_bytes())
    shutil.rmtree(out / "cells")
    again = ("run", frozen_study, "--out", out, "--workers", 1, "--set", "methods=[federated]")
    assert "was changed since the studies beside it were" in run(*again, ok=False)
    assert not list(out.rglob("release"))
    about = data / "consortium.json"  # whoever corrects the digest there has the wrong studies yet
    digest = FrozenFeatures.load(file).sha256
    about.write_text(about.read_text().replace(ours.sha256, digest))
    assert "was prepared with other frozen features" in run(*again, ok=False)
    about.unlink()  # made anew, the studies that another file prepared are not taken
    (prepared,) = data.glob("prepared*.safetensors")
    prepared.rename(data / f"prepared-{'0' * 16}.safetensors")
    run(*again)
    assert prepared.is_file()


def freeze(folder: Path, *more: object, ok: bool = True) -> str:
    manifest = folder / "phantom" / "site-0" / "manifest.csv"
    if not manifest.exists():
        phantom_manifest(folder / "phantom")
    agreement = Path(__file__).parents[2] / "configs" / "agreement" / "phantom.yaml"
    return run(
        *("freeze", "image", "--agreement", agreement, "--manifest", manifest),
        *("--dimensions", 6, "--out", folder / "frozen.safetensors", *more),
        ok=ok,
    )


def test_a_file_is_made_of_a_towers_front_end(tmp_path: Path) -> None:
    facts = json.loads(freeze(tmp_path, "--tower", "image_hog", "--layer", "prepared", "--json"))
    frozen = FrozenFeatures.load(tmp_path / "frozen.safetensors")
    assert (facts["sha256"], facts["public studies"]) == (frozen.sha256, 52)
    assert (frozen.layer, frozen.dimensions) == ("prepared", 6)


def test_a_file_is_made_of_weights_of_ones_own(tmp_path: Path) -> None:
    settings = TowerSettings(name="image_convnet", options={"width": 8})
    own = build_tower("image", settings, 10).state_dict()
    save_file(own, tmp_path / "own.safetensors")
    options = ("--tower", "image_convnet", "--options", '{"width": 8}')
    printed = freeze(tmp_path, *options, "--weights", tmp_path / "own.safetensors")
    frozen = FrozenFeatures.load(tmp_path / "frozen.safetensors")
    assert f"name: frozen_image, options: {{dimensions: 6, sha256: {frozen.sha256}}}" in printed
    kept = frozen.tower.state_dict()
    shared = [name for name in own if own[name].shape == kept[name].shape]
    assert len(shared) == len(own) - 2  # the last layer has other outputs, and nobody reads them
    assert all(torch.equal(kept[name], own[name]) for name in shared)
    assert "exists" in freeze(tmp_path, *options, ok=False)


def test_a_file_is_made_of_a_release(finished: Path, tmp_path: Path) -> None:
    (release,) = [p.parent for p in finished.rglob("manifest.json") if "federated" in str(p)]
    manifest = phantom_manifest(tmp_path / "phantom")
    agreement = tmp_path / "study" / "agreement.yaml"
    run(
        *("freeze", "report", "--agreement", agreement, "--manifest", manifest, "--dimensions", 4),
        *("--release", release, "--out", tmp_path / "frozen.safetensors"),
        "--trained-on-public-data",
    )
    frozen = FrozenFeatures.load(tmp_path / "frozen.safetensors")
    trained = load_release(release).build_model().tower("report").state_dict()
    assert all(torch.equal(trained[name], v) for name, v in frozen.tower.state_dict().items())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "one of the two"),
        (("--release", "runs/federated"), "leaks them in every feature, without bound"),
        (("--tower", "image_convnet"), "--weights"),
        (("--tower", "image_convnet", "--layer", "first"), "no layer"),
        (("--tower", "image_hog", "--layer", "prepared", "--options", "["), "JSON object"),
        (("--tower", "image_hog", "--layer", "prepared", "--options", "[]"), "JSON object"),
        (
            ("--tower", "image_hog", "--layer", "prepared", "--options", "[" * 100_000),
            "JSON object",
        ),
        (
            ("--tower", "image_hog", "--layer", "prepared", "--options", '{"a": {"b": 1}}'),
            "'a' is no text",
        ),
        (("--tower", "frozen_image", "--layer", "prepared"), "is frozen itself"),
        (("--tower", "image_vit", "--layer", "prepared"), "image_convnet"),
        (("--tower", "image_convnet", "--weights", __file__), "does not hold the parameters"),
    ],
)
def test_what_no_file_can_be_made_of_is_refused(
    tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", freeze(tmp_path, *more, ok=False)).split())
    assert message in said
    assert not (tmp_path / "frozen.safetensors").exists()


def test_a_release_whose_tower_is_frozen_itself_is_refused(
    frozen_study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run_all(frozen_study, out, "--set", "methods=[public]")
    (release,) = [each.parent for each in out.rglob("manifest.json")]
    manifest = phantom_manifest(tmp_path / "phantom")
    said = run(
        *("freeze", "report", "--agreement", out / "agreement.yaml", "--manifest", manifest),
        *("--release", release, "--trained-on-public-data"),
        *("--out", tmp_path / "frozen.safetensors"),
        ok=False,
    )
    assert "is frozen itself; name the release or the tower" in said
    assert not (tmp_path / "frozen.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: torch.full_like(values, torch.nan), "features that are not finite"),
        (lambda values: torch.full_like(values, 3e38), "features that are not finite"),
        (torch.zeros_like, "vary in 0 dimensions"),
        (lambda values: values.to(torch.complex64), "give parameters of real numbers"),
        (lambda values: values[None], "does not hold the parameters"),
    ],
)
def test_weights_that_nothing_can_be_computed_with_are_refused_in_one_line(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    settings = TowerSettings(name="image_convnet", options={"width": 8})
    own = build_tower("image", settings, 64).state_dict()
    save_file({name: change(values) for name, values in own.items()}, tmp_path / "own.safetensors")
    phantom_manifest(tmp_path / "phantom")
    options = ("--tower", "image_convnet", "--options", '{"width": 8}')
    said = freeze(tmp_path, *options, "--weights", tmp_path / "own.safetensors", ok=False)
    assert message in said
    assert "\t" not in said  # as in torch's lists of what does not fit
    assert not (tmp_path / "frozen.safetensors").exists()
