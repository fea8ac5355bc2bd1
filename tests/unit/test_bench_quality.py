"""The bench of retrieval quality goes on past a study that fails, and says how to begin it anew."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from benchmarks import bench_quality
from benchmarks.figures import BENCH, SeededFigure, read_figures, write_figures
from fedhash_sim.kappa import kappa_table
from fedhash_sim.results import read_results

ROOT = Path(__file__).parents[2]
ROUND = """
model:
  towers:
    report: {name: report_ngrams, options: {hidden: 8, word_features: 32, character_features: 32}}
learning: {local_steps: 1}
rounds: 1
weighting: uniform
"""
STUDY = """
name: tiny
agreement: ../agreement.yaml
round: ../round.yaml
data: {kind: phantom, sites: 3, patients_per_site: 20}
methods: [federated, central]
seeds: [0, 1]
"""


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two studies that train in a moment, in the working directory."""
    folder = tmp_path / "configs/study"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "configs/agreement/phantom.yaml", tmp_path / "configs/agreement.yaml")
    (tmp_path / "configs/round.yaml").write_text(ROUND)
    for name in ("first", "second"):
        (folder / f"{name}.yaml").write_text(STUDY)
    monkeypatch.setattr(bench_quality, "STUDIES", ("first", "second"))
    monkeypatch.setattr(bench_quality, "RADIUS_STUDIES", ("second", "third"))
    monkeypatch.chdir(tmp_path)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_quality", "--workers", "1", *arguments])
    bench_quality.main()


@pytest.mark.slow
def test_a_folder_of_another_version_stops_its_study_alone(
    studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    former = [
        SeededFigure(study, "kappa 1, 0 bits", "recall report -> report", "share of 1", 0.5, 0.1, 2)
        for study in ("second", "third")
    ]
    write_figures(BENCH / "quality-radius.csv", SeededFigure, former)
    older = BENCH / "quality/first"
    older.mkdir(parents=True)
    (older / "study.yaml").write_text("name: older\n")
    (older / "inputs.json").write_text("{}\n")
    (older / "results.csv").write_text("worth keeping\n")
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch)
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    ending = printed[printed.rindex("failed: first: ") :]
    assert "build/bench/quality/first holds another run" in ending
    assert "--only first --replace" in ending
    assert "failed: second" not in printed
    assert not (BENCH / "quality.csv").exists()
    figures = read_figures(BENCH / "quality-part.csv", SeededFigure)
    assert {each.case for each in figures} == {"second"}
    assert {each.contender for each in figures} == {"federated", "central", "chance"}
    assert {each.figure for each in figures} == {
        "map report -> report",
        "macro_map report -> report",
    }
    assert {each.seeds for each in figures} == {2}
    kept, *by_kappa = read_figures(BENCH / "quality-radius.csv", SeededFigure)
    assert kept == former[1]  # of a study that did not run now
    assert {each.case for each in by_kappa} == {"second"}
    assert len(by_kappa) == 8 * 5  # kappas and figures, of the federated method alone
    results = read_results(BENCH / "quality/second")
    row = next(row for row in kappa_table(results) if (row.method, row.kappa) == ("federated", 0.5))
    recall = SeededFigure(
        *("second", "kappa 0.5, 8 bits", "recall report -> report", "share of 1"),
        *(row.recall.mean, row.recall.sd, 2),
    )
    assert recall in by_kappa

    run(monkeypatch, "--only", "first", "--replace")
    assert (older.with_name("first.previous") / "results.csv").read_text() == "worth keeping\n"
    cells = {path: path.stat().st_mtime_ns for path in BENCH.rglob("cells/*/results.csv")}
    run(monkeypatch)  # both are finished, none is trained again
    assert len(cells) == 8
    assert cells == {path: path.stat().st_mtime_ns for path in cells}
    both = read_figures(BENCH / "quality.csv", SeededFigure)
    assert {each.case for each in both} == {"first", "second"}
    assert [each for each in both if each.case == "second"] == figures
    assert "not run" in capsys.readouterr().out  # the goals' own studies are not here


def test_a_study_without_its_data_is_left_out(
    studies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = STUDY.replace(
        "{kind: phantom, sites: 3, patients_per_site: 20}", "{kind: recipe, recipe: vqarad}"
    )
    (studies / "first.yaml").write_text(f"{text}partition: {{scheme: iid, sites: 3}}\n")
    monkeypatch.setenv("FEDHASH_DATA", str(studies / "absent"))
    run(monkeypatch, "--only", "first")
    assert "left out: " in capsys.readouterr().out
    assert read_figures(BENCH / "quality-part.csv", SeededFigure) == []
    assert not (BENCH / "quality-radius.csv").exists()
