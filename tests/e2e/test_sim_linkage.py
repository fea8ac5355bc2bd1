"""`fedhash-sim audit linkage` on finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import write_study
from sim_command import run

from fedhash.errors import DataError
from fedhash_sim.audits.linkage import audit_run
from fedhash_sim.consortium import Consortium
from fedhash_sim.run_folder import RunFolder

PAIRED = """
model:
  towers:
    image: {name: image_hog}
    report: {name: report_ngrams, options: {hidden: 16, word_features: 64, character_features: 64}}
learning: {local_steps: 8, learning_rate: 0.005}
rounds: 4
weighting: uniform
aggregation: plain
"""


@pytest.fixture(scope="module")
def paired_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = write_study(tmp_path_factory.mktemp("paired") / "study")
    (study.parent / "round.yaml").write_text(PAIRED)
    return study


def run_paired(study: Path, out: Path, *more: str) -> Path:
    changes = ("--set", "evaluation.every_rounds=4", "--set", "splits={val: 0.1, test: 0.5}")
    methods = ("--set", "methods=[federated]")
    run("run", study, "--out", out, "--workers", 1, *changes, *methods, *more)
    return out


@pytest.fixture(scope="module")
def paired(paired_study: Path) -> Path:
    """A run of two seeds with images and reports."""
    return run_paired(paired_study, paired_study.parent.parent / "run")


def test_both_directions_of_all_seeds_are_told(paired: Path, tmp_path: Path) -> None:
    plot = tmp_path / "linkage.png"
    told = json.loads(
        run("audit", "linkage", paired, "--pool", 10, "--pool", 20, "--json", "--out", plot)
    )
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = told["rows"]
    assert {(row["query"], row["target"]) for row in rows} == {
        ("image", "report"),
        ("report", "image"),
    }
    assert {row["seed"] for row in rows} == {0, 1}
    assert {row["pool"] for row in rows if row["pools"] == "random"} == {10, 20}
    queries = Consortium.load(RunFolder(paired).data(0)).queries()
    assert {row["patients"] for row in rows if row["pools"] == "random" and row["seed"] == 0} == {
        len(set(queries.patient_ids))
    }
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"] or row["metric"] == "median_rank"
        if row["metric"].startswith("recall"):
            assert 0 <= row["value"] <= 1
    (mean,) = [
        each
        for each in told["means"]
        if each
        == each
        | {"query": "image", "target": "report", "pools": "random", "pool": 20}
        | {"representation": "floats", "metric": "recall@1"}
    ]
    values = [
        row["value"]
        for row in rows
        if all(row[name] == mean[name] for name in mean if name not in {"mean", "sd", "seeds"})
    ]
    assert len(values) == mean["seeds"] == 2
    assert mean["mean"] == pytest.approx(sum(values) / 2)
    assert {(each["modality"], each["representation"]) for each in told["probes"]} == {
        (modality, representation)
        for modality in ("image", "report")
        for representation in ("codes", "floats")
    }
    for each in told["probes"]:
        assert each["findings"] + each["skipped"] == 14
        assert 0 < each["macro_auroc"] < 1
    # a finding's words stand in the report, and a trained code keeps some of them
    assert max(each["macro_auroc"] for each in told["probes"]) > 0.6


@pytest.mark.slow
def test_the_table_has_intervals_for_one_seed_and_deviations_for_two(paired: Path) -> None:
    one = run("audit", "linkage", paired, "--pool", 10, "--seed", 1)
    assert "image → report, 1 seed, 95 % intervals" in one
    assert "Linear probe, fitted to the sites' patients" in one
    both = run("audit", "linkage", paired, "--pool", 10)
    assert "image → report, 2 seeds, ± standard deviation" in both
    assert run("audit", "linkage", paired, "--pool", 10, "--seed", 1) == one


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["contrastive", "private"])
def test_runs_of_other_losses_and_private_ones_are_audited_alike(
    kind: str, paired_study: Path, tmp_path: Path
) -> None:
    privacy = "{mode: site, clip_norm: 1.0, noise_multiplier: 0.5, sampling_rate: 0.5}"
    changes = {
        "contrastive": ("--set", "round.loss.name=contrastive"),
        "private": (
            *("--set", f"round.privacy={privacy}"),
            *("--set", "agreement.privacy={epsilon_cap: 1000, delta: 1.0e-5}"),
        ),
    }[kind]
    methods = ("--set", "seeds=[0]", "--set", "methods=[central]")
    out = run_paired(paired_study, tmp_path / "run", *changes, *methods)
    told = json.loads(run("audit", "linkage", out, "--method", "central", "--json"))
    assert {row["representation"] for row in told["rows"]} == {"codes", "floats"}
    # fewer patients than in the smallest pool: all of them are one
    assert {row["pool"] for row in told["rows"]} == {100}
    random = [row for row in told["rows"] if row["pools"] == "random"]
    assert all(row["median_pool"] == row["patients"] < 100 for row in random)


def test_what_cannot_be_audited_is_told(paired: Path, finished: Path) -> None:
    for method in ("local", "../../x", "a\nb"):
        said = run("audit", "linkage", paired, "--method", method, ok=False)
        assert f"the run has no method {method!r}, only federated" in said
    assert "a pool of 1000000000000 was asked for, and" in run(
        "audit", "linkage", paired, "--pool", 5, "--pool", 10**12, ok=False
    )
    assert "the run has no seed 7, only 0, 1" in run(
        "audit", "linkage", paired, "--seed", 7, ok=False
    )
    assert "is no run folder" in run("audit", "linkage", paired.parent, ok=False)
    # reports alone
    assert "there is nothing to link" in run("audit", "linkage", finished, ok=False)


def test_patients_who_were_trained_on_are_no_test(
    paired: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Consortium, "queries", lambda self: self.training(*self.sites))
    with pytest.raises(DataError, match="patients both ask and were trained on"):
        audit_run(paired, "federated", 0, [10])
