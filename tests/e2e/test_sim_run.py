"""`fedhash-sim run` as a researcher uses it: from the YAML file to the report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from sim_command import of_manifest, phantom_manifest, run, run_all, study_of

from fedhash.index import Archive
from fedhash.index.encoding import encode_entries
from fedhash.models.hash_model import encode_studies
from fedhash.registry.release import load_release
from fedhash.search import make_query
from fedhash_sim.cell_workers import Cell, run_cells
from fedhash_sim.consortium import Consortium
from fedhash_sim.kappa import kappa_table
from fedhash_sim.results import RESULT_COLUMNS, read_exchanges, read_results, read_rounds, read_sums
from fedhash_sim.run_folder import RunFolder
from fedhash_sim.search import SimulatedConsortium, simulated_handles
from fedhash_sim.settings import read_study
from fedhash_sim.study_run import open_cells, prepare_run


def test_a_run_has_every_figure_of_every_cell(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = json.loads(run("run", study_file, "--out", out, "--workers", 2, "--json"))
    results = read_results(out)
    assert tuple(results.columns) == RESULT_COLUMNS
    cells = results.groupby(["method", "seed", "round"]).ngroups
    assert cells == 3 * 2 * 2  # methods, seeds, evaluated rounds
    assert results["value"].between(0, 1).all()
    maps = results[(results["metric"] == "map") & (results["group"] == "all")]
    assert len(maps) == cells
    row = printed["tables"]["map"][0]
    last = maps[(maps["method"] == "federated") & (maps["round"] == 4)]["value"]
    assert row["federated"]["mean"] == pytest.approx(last.mean())
    assert row["federated"]["sd"] == pytest.approx(last.std())
    assert {"sex=female", "sex=male"} <= set(results["group"])
    rounds = read_rounds(out)
    assert (rounds["status"] == "ok").all()
    assert len(rounds) == 2 * (4 * 3 + 4 + 3 * 4)  # federated, central, local
    page = (out / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == len(list((out / "plots").glob("*.png")))
    assert "No differential privacy" in page
    assert {"code_space", "code_distances", "bit_balance"} <= {
        path.stem for path in (out / "plots").iterdir()
    }
    assert "no noise protects them" not in page
    table = kappa_table(results)
    assert printed["by_kappa"] == [row.as_json() for row in table]
    assert len(table) == 3 * 8  # methods and kappas, in one direction
    section = page[page.index("What a radius finds") :]
    for row in table:
        assert f"<td>{row.precision}</td>" in section
        assert f"<td>{row.recall}</td>" in section


def test_the_report_says_how_the_sums_were_made(study_file: Path, tmp_path: Path) -> None:
    for aggregation in ("secure", "plain"):
        out = tmp_path / aggregation
        change = f"round.aggregation={aggregation}"
        run("run", study_file, "--out", out, "--set", "seeds=[0]", "--set", change)
    page = (tmp_path / "secure" / "report.html").read_text()
    assert "<h2>Secure aggregation</h2>" in page
    assert "saw every site" not in page
    sums = read_sums(tmp_path / "secure")
    assert set(sums["method"]) == {"federated"}
    assert list(sums["set_up"]) == ["exchanges of its own"] + 3 * ["with the round before"]
    assert set(sums["survived"]) == {"3"}
    exchanges = read_exchanges(tmp_path / "secure")
    federated = exchanges[exchanges["method"] == "federated"]
    assert list(federated["stage"][:12]) == [
        stage for stage in ("advertise", "share", "mask", "unmask") for _ in range(3)
    ]
    assert "methods local and central train one party at a time" in " ".join(page.split())
    page = (tmp_path / "plain" / "report.html").read_text()
    assert "<h2>Secure aggregation</h2>" not in page
    assert "saw every site" in page
    assert "The coordinator saw each site's update." in page
    assert read_sums(tmp_path / "plain").empty


@pytest.mark.slow
def test_the_report_tells_the_aggregation_of_the_federated_method(
    study_file: Path, tmp_path: Path
) -> None:
    plainly = "method_settings={federated: {aggregation: plain}}"
    for methods, plain in (("[federated]", True), ("[local,central]", False)):
        out = tmp_path / methods
        change = plainly if plain else "round.aggregation=plain"
        chosen = f"methods={methods}"
        run("run", study_file, "--out", out, "--set", "seeds=[0]", "--set", chosen, "--set", change)
        page = (out / "report.html").read_text()
        assert ("saw every site" in page) == plain
        assert ("<h2>Plain aggregation</h2>" in page) == plain


def test_two_workers_and_one_give_the_same_bytes(study_file: Path, tmp_path: Path) -> None:
    """Cells of both engines, in one queue; `run` itself with two workers is tested above."""
    plain = ["engine=vectorised", "round.aggregation=plain"]
    engines = {"inprocess": read_study(study_file, ["seeds=[0]"])}
    engines["vectorised"] = read_study(study_file, ["seeds=[0]", *plain])
    for workers in (1, 2):
        cells: list[Cell] = []
        for engine, study in engines.items():
            folder = RunFolder.open(tmp_path / str(workers) / engine, study, replace=False)
            prepare_run(folder, study, "", Console(quiet=True))
            cells += open_cells(folder, study)
        run_cells(cells, workers, lambda *_: None)
    for engine, study in engines.items():
        one, two = (RunFolder(tmp_path / workers / engine) for workers in ("1", "2"))
        for folder in (one, two):
            folder.collect(study.settings.methods, study.settings.seeds)
        codes = [each.relative_to(one.path) for each in one.path.rglob("codes.safetensors")]
        assert len(codes) == 2  # federated and central
        for name in ("results.csv", *codes):
            assert (one.path / name).read_bytes() == (two.path / name).read_bytes()


def test_a_finished_run_is_not_run_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "cells").rglob("*.csv")}
    run_all(study_of(finished), finished, "--set", "seeds=[0]")
    after = {path: path.stat().st_mtime_ns for path in (finished / "cells").rglob("*.csv")}
    assert before == after


def test_a_trained_cell_needs_its_sites_memory_no_more(finished: Path) -> None:
    cell = finished / "cells" / "federated-seed-0"
    assert list(cell.glob("models/*/checkpoints/*"))
    assert not list(finished.glob("cells/*/models/*/sites/rounds"))
    before = (cell / "rounds.csv").read_bytes()  # has the seconds of each round
    lost = (cell / "results.csv", finished / "results.csv")
    figures = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    run_all(study_of(finished), finished, "--set", "seeds=[0]")
    assert [path.read_bytes() for path in lost] == figures
    assert (cell / "rounds.csv").read_bytes() == before


def test_another_study_does_not_go_on_in_the_folder(finished: Path) -> None:
    kept = (finished / "results.csv").read_bytes()
    message = run("run", study_of(finished), "--out", finished, "--set", "seeds=[5]", ok=False)
    assert "holds another run" in message
    assert "--replace" in message
    assert (finished / "results.csv").read_bytes() == kept


def test_replace_moves_the_earlier_run_aside(finished: Path) -> None:
    kept = (finished / "results.csv").read_bytes()
    run_all(
        study_of(finished),
        finished,
        "--set",
        "seeds=[5]",
        "--set",
        "methods=[central]",
        "--replace",
    )
    assert (finished.with_name("run.previous") / "results.csv").read_bytes() == kept
    assert set(read_results(finished)["seed"]) == {5}


def test_an_interrupted_replacement_goes_on_without_it(finished: Path) -> None:
    kept = (finished / "results.csv").read_bytes()
    (finished / "results.csv").unlink()  # as if its last cell were not done
    (finished / "cells" / "local-seed-0" / "results.csv").unlink()
    other = ("--set", "seeds=[5]", "--set", "methods=[central]")
    run_all(study_of(finished), finished, *other, "--replace")
    previous = finished.with_name("run.previous")
    run_all(study_of(finished), previous, "--set", "seeds=[0]")  # two cells of three were done
    assert (previous / "results.csv").read_bytes() == kept


def test_a_folder_may_be_a_link_to_another_disk(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    small = ("--set", "seeds=[0]", "--set", "methods=[central]")
    run_all(study_file, tmp_path / "link", *small)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "results.csv").is_file()


def test_replace_leaves_folders_that_are_no_runs_alone(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.png").write_bytes(b"beach")
    message = run("run", study_file, "--out", tmp_path / "photos", "--replace", ok=False)
    assert "is no run folder" in message
    assert (tmp_path / "photos" / "holiday.png").read_bytes() == b"beach"


def test_a_project_is_not_taken_for_a_run_for_its_study_file(study_file: Path) -> None:
    project = study_file.parent
    before = {each: each.read_bytes() for each in project.iterdir()}
    for more in ((), ("--replace",), ("--dry-run",), ("--dry-run", "--replace")):
        message = run("run", study_file, "--out", project, *more, ok=False)
        assert f"{project} is no run folder" in message
    assert {each: each.read_bytes() for each in project.iterdir()} == before


def test_replacements_keep_all_that_was_there_before(finished: Path) -> None:
    kept = (finished / "results.csv").read_bytes()
    small = ("--set", "methods=[central]", "--set", "evaluation.every_rounds=4", "--replace")
    run_all(study_of(finished), finished, *small, "--set", "seeds=[5]")
    shutil.rmtree(finished / "cells")  # as if it had not come to a cell
    (finished / "notes.txt").write_text("mine")
    run_all(study_of(finished), finished, *small, "--set", "seeds=[6]")
    assert (finished.with_name("run.previous") / "results.csv").read_bytes() == kept
    assert (finished.with_name("run.previous-2") / "notes.txt").read_text() == "mine"
    assert set(read_results(finished)["seed"]) == {6}


def test_a_run_may_be_replaced_from_within(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    small = ("--set", "methods=[central]", "--set", "evaluation.every_rounds=4", "--replace")
    run_all(study_of(finished), Path(), *small, "--set", "seeds=[5]")
    assert set(read_results(finished)["seed"]) == {5}
    assert (finished.with_name("run.previous") / "results.csv").is_file()


def test_a_run_may_begin_in_the_folder_one_stands_in(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    small = ("--set", "methods=[central]", "--set", "seeds=[0]")
    run_all(study_file, Path(), *small)
    assert (tmp_path / "here" / "results.csv").is_file()
    assert Path("results.csv").is_file()  # and one still stands in it


def test_what_somebody_put_into_a_run_outlasts_a_refusal(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDHASH_DATA", raising=False)
    change = "data={kind: recipe, recipe: covid_cxr}"
    out = tmp_path / "run"
    RunFolder.open(out, read_study(study_file, [change]), replace=False)  # and then it was killed
    (out / "notes.txt").write_text("mine")
    message = run("run", study_file, "--set", change, "--out", out, ok=False)
    assert "--set: the folder of covid_cxr is not known" in message
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    (out / "data").rmdir()
    run("run", study_file, "--set", change, "--out", out, ok=False)
    assert not out.exists()


def test_an_earlier_run_is_not_moved_onto_a_dangling_link(finished: Path) -> None:
    finished.with_name("run.previous").symlink_to(finished / "nowhere")
    small = ("--set", "methods=[central]", "--set", "seeds=[5]", "--replace")
    run_all(study_of(finished), finished, *small)
    assert (finished.with_name("run.previous-2") / "results.csv").is_file()


def test_a_missing_manifest_is_told_with_its_line(study_file: Path, tmp_path: Path) -> None:
    study_file.write_text(
        study_file.read_text().replace(
            "data: {kind: phantom, sites: 3, patients_per_site: 25}",
            "data:\n  kind: manifest\n  manifest: gone.csv",
        )
    )
    message = run("run", study_file, "--out", tmp_path / "run", ok=False)
    assert f"{study_file}:7: the manifest" in message
    assert "gone.csv cannot be read (No such file or directory); name a file" in message
    assert not (tmp_path / "run").exists()


def test_a_manifest_of_patients_without_consent_says_so(study_file: Path, tmp_path: Path) -> None:
    manifest = phantom_manifest(tmp_path / "phantom", lambda _, row: row.update(consent="no"))
    message = run("run", study_file, "--out", tmp_path / "run", *of_manifest(manifest), ok=False)
    assert "--set: " in message
    assert "studies are left out for want of consent" in message


def test_a_run_that_trained_no_federation_answers_no_search(finished: Path) -> None:
    (finished / "cells" / "federated-seed-0").rename(finished / "gone")
    study = finished / "study.yaml"
    study.write_text(study.read_text().replace("- federated\n", ""))
    message = run("search", finished, "--example", "report", ok=False)
    assert "the run has no method 'federated', only" in message


def test_a_moved_run_folder_still_answers(finished: Path, tmp_path: Path) -> None:
    moved = finished.rename(tmp_path / "elsewhere")
    (tmp_path / "study").rename(tmp_path / "gone")
    answer = json.loads(run("search", moved, "--report", "Large effusion.", "--json"))
    assert len(answer["hits"]) == 8


def test_a_dry_run_trains_nothing(study_file: Path, tmp_path: Path) -> None:
    plan = json.loads(run("run", study_file, "--out", tmp_path / "run", "--dry-run", "--json"))
    assert (plan["cells"], plan["cells done"]) == (6, 0)
    for seed in plan["seeds"]:
        assert set(seed["training studies"]) == {"site-0", "site-1", "site-2"}
        assert seed["training studies"] == seed["database studies"]
    assert not (tmp_path / "run").exists()


def test_a_dry_run_is_a_table_of_sites_and_seeds(study_file: Path) -> None:
    held_out = ("--set", "evaluation.held_out_database=0.2")
    seeds = json.loads(run("run", study_file, "--dry-run", "--json", *held_out))["seeds"]
    printed = run("run", study_file, "--dry-run", *held_out)
    assert "seed 0" in printed
    assert "seed 1" in printed
    for site in ("site-0", "site-1", "site-2"):
        (line,) = (line for line in printed.splitlines() if site in line)
        for each in seeds:
            trained, database = each["training studies"][site], each["database studies"][site]
            assert f"{trained} + {database} held out" in line


def test_a_partition_that_the_patients_do_not_allow_names_its_line(
    study_file: Path, tmp_path: Path
) -> None:
    text = study_file.read_text() + "partition:\n  scheme: shard\n  sites: 3\n"
    study_file.write_text(text + "  shards_per_site: 900\n")
    line = len(study_file.read_text().splitlines())
    message = run("run", study_file, "--out", tmp_path / "run", ok=False)
    assert f"study.yaml:{line}: seed 0: 3 sites of 900 shards need at least 2700" in message
    assert "lower partition.shards_per_site or partition.sites" in message
    assert not (tmp_path / "run").exists()  # it would keep the mended study out


def test_all_seeds_are_dealt_before_one_is_prepared(study_file: Path, tmp_path: Path) -> None:
    changes = ("--set", "data.patients_per_site=5", "--set", "evaluation.held_out_database=0.5")
    of_seeds = (*changes, "--set", "seeds=[2,3,4]")
    message = run("run", study_file, "--out", tmp_path / "run", *of_seeds, ok=False)
    assert "seed 4: site site-1 has 1 studies and none is left to train on" in message
    assert not (tmp_path / "run").exists()
    run_all(study_file, tmp_path / "run", "--set", "seeds=[2]", "--set", "methods=[central]")


def test_a_dry_run_finds_what_is_wrong_with_a_later_seed(study_file: Path) -> None:
    changes = ("--set", "data.patients_per_site=5", "--set", "evaluation.held_out_database=0.5")
    run("run", study_file, "--dry-run", *changes, "--set", "seeds=[2,3]")
    message = run("run", study_file, "--dry-run", *changes, "--set", "seeds=[2,3,4]", ok=False)
    assert "seed 4: site site-1 has 1 studies and none is left to train on" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seedz=[0]", 'did you mean "seeds"'),
        ("round.learning.lerning_rate=1", 'did you mean "learning_rate"'),
        ("agreement.code_bits=12", "multiple of 8"),
        ("partition.scheme=quantity", "natural"),
        ("round.loss.margin=0.9", "margin_range is 0.05 to 0.6"),
        ("evaluation.directions=[{query: report, target: mri}]", "asks for 'mri'"),
        ("method_settings={central: {rouns: 3}}", 'did you mean "rounds"'),
        ("partition={scheme: iid, sites: 200}", "need 200 patients"),
        ("partition={scheme: iid, sites: 1000}", "partition.sites: no graph of 1000 sites bears"),
        ("round.model.towers.report.options.hiden=3", "hiden"),
        ("method_settings={start: {nonsense: 3}}", 'unknown key "nonsense"'),
        ("data={kind: recipe, recipe: kermany}", 'did you mean "kermany_cxr"'),
        ("splits=published", "--set: seed 0: study site-0-p0-e0 has no attribute 'split'"),
        (
            "evaluation.directions=[" + 2 * "{query: report, target: report}," + "]",
            "holds report -> report twice",
        ),
        ("seeds=[4294967296]", "seeds"),
        ("round.loss={name: contrastive}", "model.towers has only report; add a tower"),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(
    study_file: Path, tmp_path: Path, change: str, message: str
) -> None:
    assert message in run("run", study_file, "--out", tmp_path / "run", "--set", change, ok=False)
    assert not (tmp_path / "run" / "cells").exists()


def test_the_merged_answer_is_that_of_one_index_holding_everything(
    finished: Path, tmp_path: Path
) -> None:
    consortium = Consortium.load(finished / "data" / "seed-0")
    release = load_release(finished / "cells" / "federated-seed-0" / "release")
    model = release.build_model()
    everything, site_of = [], {}
    for site in consortium.sites:
        studies = consortium.database(site)
        handles = simulated_handles(0, site, studies)
        site_of |= dict.fromkeys(handles, site)
        everything += encode_entries(model, studies, handles)
    queries = consortium.queries()
    outputs = encode_studies(model, queries, "report")
    with (
        SimulatedConsortium.open(finished) as sites,
        Archive(tmp_path / "all.sqlite", release.release_id, 64) as one,
    ):
        one.add(everything)
        for row, study_id in enumerate(queries.study_ids[:10]):
            answer = sites.ask(sites.example("report", study_id, None), k=7)
            query = make_query(
                outputs[row], release_id=release.release_id, modality="report", k=len(everything)
            )
            ordered = sorted(
                (match.distance, -match.score, site_of[match.handle], match.handle)
                for match in one.search(query)
            )
            assert [(h.distance, -h.score, h.site, h.handle) for h in answer.hits] == ordered[:7]


def test_filters_and_radius_reach_the_sites(finished: Path) -> None:
    def hits(*more: str) -> list[dict[str, object]]:
        text = run("search", finished, "--report", "No finding.", "-k", 50, "--json", *more)
        found: list[dict[str, object]] = json.loads(text)["hits"]
        return found

    studies = Consortium.load(finished / "data" / "seed-0")
    women = {
        handle
        for site in studies.sites
        for handle, attributes in zip(
            simulated_handles(0, site, studies.database(site)),
            studies.database(site).attributes,
            strict=True,
        )
        if attributes["sex"] == "female"
    }
    found = {str(hit["handle"]) for hit in hits("--where", "sex=female")}
    assert found
    assert found <= women
    assert not {str(hit["handle"]) for hit in hits()} <= women
    assert hits("--where", "sex=nobody") == []
    near = hits("--kappa", "0.5")
    assert near == [hit for hit in hits() if int(str(hit["distance"])) <= 8][: len(near)]
    assert len(near) < len(hits())
    unknown = run("search", finished, "--report", "x", "--where", "sexx=female", ok=False)
    assert "no study has the attribute 'sexx'; there are age_band, scanner, sex, site" in unknown
    assert "not NAME=VALUE" in run("search", finished, "--report", "x", "--where", "sex", ok=False)
    assert "exactly one" in run("search", finished, ok=False)
    assert "allows 100" in run("search", finished, "--report", "x", "-k", 101, ok=False)


def test_a_killed_run_goes_on_to_the_same_bytes(study_file: Path, tmp_path: Path) -> None:
    changes = ("--set", "round.rounds=12", "--set", "methods=[federated]", "--set", "seeds=[0]")
    run_all(study_file, tmp_path / "whole", *changes)
    command = [
        *(sys.executable, "-m", "fedhash_sim", "run", str(study_file), "--workers", "1"),
        *("--out", str(tmp_path / "killed"), *changes),
    ]
    for number in (2, 4, 7):  # killed as soon as that round is stored, training or evaluating
        checkpoint = f"cells/federated-seed-0/models/0/checkpoints/round-{number:06d}.checkpoint"
        process = subprocess.Popen(command, start_new_session=True)
        while process.poll() is None and not (tmp_path / "killed" / checkpoint).is_file():
            time.sleep(0.005)
        assert process.poll() is None, "killed before its end"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, check=False).returncode == 0
    whole, killed = ((tmp_path / name / "results.csv").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def test_a_study_of_a_manifest_reports_the_rows_it_could_not_use(
    study_file: Path, tmp_path: Path
) -> None:
    manifest = phantom_manifest(
        tmp_path / "phantom", lambda number, row: number == 3 and row.update(positive="gout")
    )
    out = tmp_path / "run"
    run_all(study_file, out, *of_manifest(manifest))
    about = json.loads((out / "run.json").read_text())
    (problem,) = about["problems"]
    assert "manifest.csv:5" in problem
    assert "gout" in problem
    assert "gout" in (out / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_flowers_simulation_gives_the_same_figures(study_file: Path, tmp_path: Path) -> None:
    changes = ("--set", "seeds=[0]", "--set", "methods=[federated]")
    run_all(study_file, tmp_path / "here", *changes)
    run_all(study_file, tmp_path / "flower", *changes, "--set", "engine=flower")
    here, flower = ((tmp_path / name / "results.csv").read_bytes() for name in ("here", "flower"))
    assert here == flower


def test_a_changed_manifest_is_another_run(study_file: Path, tmp_path: Path) -> None:
    manifest = phantom_manifest(tmp_path / "phantom")
    arguments = ("run", study_file, "--out", tmp_path / "run", *of_manifest(manifest))
    run(*arguments)
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join(lines[:-1]) + "\n")
    assert "its inputs.json differs" in run(*arguments, ok=False)


def test_failing_replacements_do_not_push_out_a_good_run(finished: Path) -> None:
    kept = (finished / "results.csv").read_bytes()
    for _ in range(2):
        wrong = ("--set", "partition={scheme: iid, sites: 200}", "--replace")
        run("run", study_of(finished), "--out", finished, *wrong, ok=False)
    assert (finished.with_name("run.previous") / "results.csv").read_bytes() == kept


def test_two_processes_do_not_work_in_one_folder(finished: Path) -> None:
    folder, _ = RunFolder.existing(finished)
    with folder.locked():
        again = run("run", study_of(finished), "--out", finished, "--set", "seeds=[0]", ok=False)
    assert "another process is working" in again


def test_a_folder_that_cannot_be_made_is_a_clear_error(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert "choose another --out" in run("run", study_file, "--out", out, ok=False)
    assert (tmp_path / "file").read_text() == "x"
