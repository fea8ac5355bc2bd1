"""Studies with public patients: what is made of them, and that a run of it can be searched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sim_command import run, run_all

from fedhash.models.frozen_features import FrozenFeatures
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
    public = "public: {share: 0.4, round: round.yaml}\nmethods: [federated, public]\n"
    study_file.write_text(text.replace("seeds: [0, 1]", "seeds: [0]") + public)
    return study_file


@pytest.mark.parametrize("layer", ["prepared", "last"])
def test_frozen_towers_are_made_of_the_public_patients(
    frozen_study: Path, tmp_path: Path, layer: str
) -> None:
    out = tmp_path / "run"
    run_all(frozen_study, out, "--set", f"public.layer={layer}")
    results = read_results(out)
    assert set(results["method"]) == {"federated", "public"}
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
        ("public.share=1.5", "public.share"),
        ("public.round=frozen.yaml", "public.round has no tower for 'report'"),
        ("round.model.towers.report.options.dimensions=4000", "public studies"),
    ],
)
def test_what_cannot_be_made_is_refused_with_the_remedy(
    frozen_study: Path, tmp_path: Path, change: str, message: str
) -> None:
    change = change.replace("frozen.yaml", str(frozen_study.parent / "frozen.yaml"))
    output = run("run", frozen_study, "--out", tmp_path / "run", "--set", change, ok=False)
    assert message in " ".join(output.split())
