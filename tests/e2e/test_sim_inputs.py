"""What `fedhash-sim run` makes of odd data: hostile names and rows, files that change."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from sim_command import of_manifest, phantom_manifest, run, run_all

from fedhash.registry.release import load_release
from fedhash_sim.cell_evaluation import evaluate_model
from fedhash_sim.consortium import Consortium
from fedhash_sim.results import read_results, read_rounds
from fedhash_sim.settings import Direction, read_study
from fedhash_sim.sources import load_pool

ONE_TOWER = ("--set", "round.model.towers={image: {name: image_hog, options: {hidden: 8}}}")


def test_a_changed_image_is_another_run(study_file: Path, tmp_path: Path) -> None:
    manifest = phantom_manifest(tmp_path / "phantom")
    # with looks of its sites, a seed has prepared studies of its own
    changes = (*of_manifest(manifest), *ONE_TOWER, "--set", "feature_shift={strength: 1.0}")
    run_all(study_file, tmp_path / "run", *changes)
    kept = (tmp_path / "run" / "results.csv").read_bytes()
    image = sorted(manifest.parent.glob("images/*.png"))[5]
    PIL.Image.fromarray(255 - np.asarray(PIL.Image.open(image))).save(image)
    arguments = ("run", study_file, "--out", tmp_path / "run", "--workers", 1, *changes)
    message = run(*arguments, ok=False)
    assert f"{image} has changed or is gone, 1 files in all" in message
    assert "--replace" in message
    assert (tmp_path / "run" / "results.csv").read_bytes() == kept


@pytest.mark.parametrize(
    "scheme", ["{scheme: iid, sites: 3}", "{scheme: dirichlet, sites: 3, alpha: 1}"]
)
def test_two_more_rows_leave_all_other_studies_as_they_were(
    study_file: Path, tmp_path: Path, scheme: str
) -> None:
    manifest = phantom_manifest(tmp_path / "phantom")

    def consortium_of(name: str) -> Consortium:
        changes = (*of_manifest(manifest, scheme=scheme), "--set", "round.rounds=1")
        changes = (*changes, "--set", "evaluation.held_out_database=0.3")
        run_all(study_file, tmp_path / name, *changes)
        return Consortium.load(tmp_path / name / "data" / "seed-0")

    def roles_of(consortium: Consortium) -> dict[str, tuple[str, str]]:
        roles = consortium.roles
        of_sites = (("training", roles.training), ("database", roles.database))
        return dict.fromkeys(roles.queries, ("query", "")) | {
            study_id: (role, site)
            for role, sites in of_sites
            for site, study_ids in sites.items()
            for study_id in study_ids
        }

    before = consortium_of("before")
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows.insert(0, {**rows[7], "study_id": "new-1", "patient_id": "new"})
    rows.insert(20, {**rows[30], "study_id": "new-2"})  # of a patient that was there
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    after = consortium_of("after")

    assert roles_of(before).items() <= roles_of(after).items()
    ids = after.prepared.study_ids
    assert set(ids) - set(before.prepared.study_ids) == {"new-1", "new-2"}
    kept = after.prepared.select([ids.index(each) for each in before.prepared.study_ids])
    assert kept.patient_ids == before.prepared.patient_ids
    assert kept.attributes == before.prepared.attributes
    assert torch.equal(kept.labels, before.prepared.labels)
    for modality, inputs in before.prepared.inputs.items():
        assert torch.equal(kept.inputs[modality], inputs)
        assert torch.equal(kept.present[modality], before.prepared.present[modality])


def test_site_names_may_be_of_any_script_and_hostile(study_file: Path, tmp_path: Path) -> None:
    outside = f"{tmp_path}/outside"
    names = ["Hôpital Łódź 病院", "St. $\\x$ [/bold]", "NA", outside.ljust(200, "x"), "007"]
    manifest = phantom_manifest(
        tmp_path / "phantom", lambda number, row: row.update({"attr.site": names[number % 5]})
    )
    out = tmp_path / "deep" / "er" / "run"
    before = {each.name for each in tmp_path.iterdir()} | {"deep"}
    run_all(
        study_file,
        out,
        *of_manifest(manifest, scheme="{scheme: natural}"),
        *("--set", "methods=[federated, local]", "--set", "evaluation.groups=[site]"),
    )
    assert {each.name for each in tmp_path.iterdir()} == before
    assert [each.name for each in out.parent.iterdir()] == ["run"]
    groups = set(read_results(out)["group"])
    assert {f"site={name}" for name in names} <= groups
    assert {f"site_model={name}" for name in names} <= groups
    assert set(read_rounds(out)["site"]) == set(names)
    answer = json.loads(run("search", out, "--report", "No finding.", "-k", 50, "--json"))
    assert {hit["site"] for hit in answer["hits"]} == set(names)
    assert "Łódź" in run("search", out, "--report", "No finding.", "-k", 50)


def test_hostile_rows_of_arrays_cost_their_own_study_only(study_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "phantom" / "site-0"
    cells = {
        3: "images.npz#images/1000",
        4: "images.npz#images/99999999999",
        5: "images.npz#nothing/0",
        6: "objects.npz#images/0",
        7: "cut.npz#images/0",
        8: "wild.npz#images/0",
        9: "../images.npz#images/0",
        10: "images.npz#images/-1",
    }

    def change(number: int, row: dict[str, str]) -> None:
        row["image"] = cells.get(number, f"images.npz#images/{number}")

    manifest = phantom_manifest(tmp_path / "phantom", change)
    images = np.random.default_rng(0).integers(0, 256, (100, 64, 64), dtype=np.uint8)
    np.savez_compressed(folder / "images.npz", images=images)
    np.savez(folder / "objects.npz", images=np.array([{"a": 1}], dtype=object))
    np.savez(folder / "wild.npz", images=np.full((1, 64, 64), np.nan))
    (folder / "cut.npz").write_bytes((folder / "images.npz").read_bytes()[:500])
    out = tmp_path / "run"
    run_all(study_file, out, *of_manifest(manifest), *ONE_TOWER)
    about = json.loads((out / "run.json").read_text())
    lines = [int(problem.split("manifest.csv:")[1].split(":")[0]) for problem in about["problems"]]
    assert lines == [number + 2 for number in cells]
    stamped = json.loads((out / "data" / "input_files.json").read_text())
    assert list(stamped) == [str(folder / "images.npz")]
    assert read_results(out)["value"].between(0, 1).all()


def test_queries_that_share_no_finding_with_anybody_have_no_map(
    study_file: Path, tmp_path: Path
) -> None:
    def change(number: int, row: dict[str, str]) -> None:
        asks = number % 4 == 0
        row["patient_id"] = f"p{number}"
        row["positive"], row["uncertain"] = ("nodule", "") if asks else ("no_finding", "")
        row["attr.split"] = "test" if asks else "train"

    manifest = phantom_manifest(tmp_path / "phantom", change)
    out = tmp_path / "run"
    changes = (*of_manifest(manifest), "--set", "splits=published")
    printed = json.loads(run("run", study_file, "--out", out, "--workers", 1, "--json", *changes))
    assert printed["tables"]["map"][0]["central"] == {"mean": None, "sd": None, "seeds": 0}
    assert printed["tables"]["map"][0]["chance"] is None
    assert "none" in run("report", out)
    assert not (read_results(out)["metric"] == "map").any()
    assert "no finding" not in (out / "report.html").read_text()


def test_the_depth_reaches_the_figures_and_the_report(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    one_cell = ("--set", "seeds=[0]", "--set", "methods=[central]")
    run_all(study_file, out, *one_cell, "--set", "evaluation.depth=2")
    consortium = Consortium.load(out / "data" / "seed-0")
    release = load_release(out / "cells" / "central-seed-0" / "release")

    def mean_precision(depth: int | None) -> float:
        rows = evaluate_model(
            release.build_model(),
            consortium.queries(),
            consortium.database(*consortium.sites),
            [Direction(query="report", target="report")],
            release.agreement.findings,
            (),
            depth,
        )
        (value,) = (row.value for _, row in rows if (row.metric, row.group) == ("map", "all"))
        return value

    results = read_results(out).query("metric == 'map' and group == 'all' and round == 4")
    assert results["value"].item() == pytest.approx(mean_precision(2), abs=1e-6)
    assert mean_precision(2) != pytest.approx(mean_precision(None), abs=1e-3)
    assert "the first 2 ranks count" in (out / "report.html").read_text()


def test_a_recipe_stamps_every_file_of_its_set(data_folder: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2] / "configs"
    text = (root / "study" / "ptbxl_sites.yaml").read_text()
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "s.yaml").write_text(text)
    for kind in ("agreement", "round"):
        shutil.copytree(root / kind, tmp_path / kind)
    pool = load_pool(read_study(tmp_path / "study" / "s.yaml"), 0, tmp_path)
    names = {path.relative_to(data_folder.resolve() / "ptbxl_subset") for path in pool.files}
    assert {Path("metadata.csv"), Path("ecg100.npz")} <= names
