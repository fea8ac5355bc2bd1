"""`fedhash-sim export`: what TensorBoard and MLflow read back of a run."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_command import run

from fedhash_sim.export.history import RunHistory, _part
from fedhash_sim.results import final_round, read_costs, read_results, read_rounds

CELLS = ["local-seed-0", "federated-seed-0", "central-seed-0"]
MAP = "map/report to report"


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """The same run as it was while two of its cells trained."""
    copy = shutil.copytree(finished, tmp_path / "before" / "run")
    for name in ("local-seed-0", "central-seed-0"):
        (copy / "cells" / name / "results.csv").unlink()
    shutil.rmtree(copy / "plots")
    return copy


def test_a_history_is_that_of_the_tables(finished: Path) -> None:
    history = RunHistory.read(finished)
    assert [cell.name for cell in history.cells] == CELLS
    assert all(cell.is_done for cell in history.cells)
    assert {path.stem for path in history.pictures} >= {"map", "loss", "code_space"}
    results, rounds = read_results(finished), read_rounds(finished)
    for cell in history.cells:
        method = cell.name.split("-")[0]
        own = results[results["method"] == method]
        figures = own[(own["metric"] == "map") & (own["group"] == "all")]
        assert cell.curves[MAP] == tuple(zip(figures["round"], figures["value"], strict=True))
        of_women = final_round(own).query("metric == 'map' and group == 'sex=female'")["value"]
        assert cell.curves["map by sex/female/report to report"] == ((4, of_women.item()),)
        losses = rounds[(rounds["method"] == method)].groupby("round")["mean_loss"].mean()
        assert dict(cell.curves["training/loss"]) == pytest.approx(losses.to_dict())
        costs = read_costs(finished).query("method == @method")
        assert cell.curves["cost/request_bytes"] == ((4, costs["request_bytes"].sum()),)
        assert not any("radius" in name for name in cell.curves)
        assert cell.settings["round.learning.learning_rate"] == "0.005"
        assert cell.settings["round.model.towers.report.options.hidden"] == "16"
        assert cell.settings["agreement.code_bits"] == "64"
        assert cell.settings["data.patients_per_site"] == "25"
        assert cell.settings["method"] == method


def test_an_unfinished_run_tells_what_it_has_evaluated(finished: Path, unfinished: Path) -> None:
    whole, part = RunHistory.read(finished), RunHistory.read(unfinished)
    assert part.digest == whole.digest
    assert part.waiting == ("local-seed-0",)  # several models, and no mean over them yet
    assert part.cells[0] == whole.cells[1]
    assert not part.cells[1].is_done
    assert part.cells[1].curves[MAP] == whole.cells[2].curves[MAP]
    assert "training/loss" not in part.cells[1].curves
    assert part.pictures == ()


@settings(max_examples=50)
@given(st.text(), st.text())
def test_any_name_fits_and_stays_a_name_of_its_own(one: str, two: str) -> None:
    for text in (one, two):
        assert re.fullmatch(r"[\w.\- ]+", _part(text))
        assert not _part(text).startswith(".")
    assert (_part(one) == _part(two)) == (one == two)


def test_an_export_to_nowhere_is_refused(finished: Path) -> None:
    assert "name --tensorboard FOLDER" in run("export", finished, ok=False)
    assert "is no run folder" in run("export", finished / "cells", "--mlflow", "x", ok=False)


@pytest.mark.parametrize(
    ("option", "module"),
    [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow.exceptions")],
)
def test_an_absent_extra_is_named(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    message = run("export", finished, f"--{option}", tmp_path / "out", ok=False)
    assert f"pip install 'fedhash[{option}]'" in message


def events(folder: Path) -> dict[str, Any]:
    """Cell to what TensorBoard itself reads."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the extra 'tensorboard' is absent",
    )
    cells = [path for path in folder.iterdir() if path.is_dir()]
    read = {path.name: reader.EventAccumulator(str(path)) for path in cells}
    for each in read.values():
        each.Reload()
    return read


def test_tensorboard_reads_every_curve_once(
    finished: Path, unfinished: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is absent")
    folder = tmp_path / "tensorboard"
    said = run("export", unfinished, "--tensorboard", folder)
    assert "not finished: central-seed-0, local-seed-0" in said
    assert set(events(folder / "run")) == {"federated-seed-0", "central-seed-0", "run"}
    for _ in range(2):
        told = json.loads(run("export", finished, "--tensorboard", folder, "--json"))
    assert told["tensorboard"] == str(folder / "run")
    assert told["cells"] == CELLS
    assert told["unfinished"] == told["waiting"] == []
    read = events(folder / "run")
    history = RunHistory.read(finished)
    for cell in history.cells:
        assert set(read[cell.name].Tags()["scalars"]) == set(cell.curves)
        for name, curve in cell.curves.items():
            points = [(each.step, each.value) for each in read[cell.name].Scalars(name)]
            assert points == [(number, pytest.approx(value)) for number, value in curve]
    assert set(read["run"].Tags()["images"]) == {path.stem for path in history.pictures}
    assert [path.name for path in folder.iterdir()] == ["run"]


def test_tensorboard_replaces_no_other_files(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is absent")
    before = sorted(finished.rglob("*"))
    message = run("export", finished, "--tensorboard", finished.parent, ok=False)  # .../run itself
    assert "is no event file" in message
    assert sorted(finished.rglob("*")) == before


def test_tensorboard_replaces_no_other_run_of_the_same_name(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is absent")
    folder = tmp_path / "tensorboard"
    run("export", finished, "--tensorboard", folder)
    other = shutil.copytree(finished, tmp_path / "other" / "run")
    text = (other / "round.yaml").read_text()
    (other / "round.yaml").write_text(text.replace("rounds: 4", "rounds: 3"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    message = run("export", other, "--tensorboard", folder, ok=False)
    assert f"{folder / 'run'} holds another run of this name" in message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_damaged_picture_is_named(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is absent")
    copy = shutil.copytree(finished, tmp_path / "copy" / "run")
    (copy / "plots" / "map.png").write_bytes(b"\x89PNG")
    message = run("export", copy, "--tensorboard", tmp_path / "events", ok=False)
    assert re.search(r"map\.png is no picture .* fedhash-sim report", message)
    assert list((tmp_path / "events").iterdir()) == []


def test_an_attribute_may_begin_like_a_group_of_ours(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy" / "run")
    table = copy / "cells" / "federated-seed-0" / "results.csv"
    table.write_text(table.read_text().replace(",sex=", ",allergy="))
    (told,) = (each for each in RunHistory.read(copy).cells if each.name == "federated-seed-0")
    assert "map by allergy/female/report to report" in told.curves


@pytest.fixture
def quiet_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """MLflow, as the command imports it; artifacts of a database go to the working folder."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    module: ModuleType = pytest.importorskip("mlflow", reason="the extra 'mlflow' is absent")
    return module


# MLflow 3.17 uses what SQLAlchemy 2.1 deprecates
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.slow  # MLflow makes its database by some fifty migrations
def test_mlflow_reads_every_curve_once(
    finished: Path, unfinished: Path, tmp_path: Path, quiet_mlflow: ModuleType
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    complete = RunHistory.read(finished)
    run("export", unfinished, "--mlflow", uri)
    client = quiet_mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("small").experiment_id
    (first,) = (each for each in client.search_runs([experiment]) if each.info.run_name == "run")
    client.update_run(first.info.run_id, status="RUNNING")  # as an interrupted export leaves it
    told = [json.loads(run("export", finished, "--mlflow", uri, "--json")) for _ in range(2)]
    assert told[0]["mlflow experiment"] == "small"
    runs = {each.info.run_name: each for each in client.search_runs([experiment])}
    assert set(runs) == {"run", *(f"run {cell}" for cell in CELLS)}
    assert len(client.search_runs([experiment])) == 4
    assert {each.info.status for each in runs.values()} == {"FINISHED"}
    whole = runs["run"].info.run_id
    pictures = {Path(each.path).stem for each in client.list_artifacts(whole, "plots")}
    assert pictures == {path.stem for path in complete.pictures}
    for cell in complete.cells:
        of_cell = runs[f"run {cell.name}"]
        assert of_cell.data.tags["mlflow.parentRunId"] == whole
        assert of_cell.data.params == dict(cell.settings)
        assert set(of_cell.data.metrics) == set(cell.curves)
        for name in (MAP, "training/loss"):
            history = client.get_metric_history(of_cell.info.run_id, name)
            points = [(each.step, each.value) for each in history]
            assert points == [(number, pytest.approx(value)) for number, value in cell.curves[name]]


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "uri",
    [
        "http://me:secret@127.0.0.1:9",  # the port that discards, where nothing listens
        "mysqlite://me:secret@nowhere",
        "sqlite:////proc/nowhere/secret.db",
    ],
)
def test_mlflow_that_refuses_is_told_without_the_password(
    finished: Path, quiet_mlflow: ModuleType, uri: str
) -> None:
    message = run("export", finished, "--mlflow", uri, ok=False)
    assert "--mlflow: MLflow refuses" in message
    assert "secret" not in message
