"""`fedhash-sim sweep` and `compare` on a study that trains in seconds."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_study
from sim_command import run

from fedhash_sim.cell_workers import Cell, run_cells
from fedhash_sim.progress import Progress
from fedhash_sim.run_folder import RunFolder

SWEEP = """\
name: rates
study: study.yaml
grid:
  loss:
    am: {round.loss: {name: anchor_margin}}
    csq: {round.loss: {name: csq}}
  round.learning.learning_rate: [0.0001, 0.02]
select: {over: [round.learning.learning_rate], metric: map}
"""
QUICK = ("--set", "methods=[federated]", "--set", "round.aggregation=plain")


def write_sweep(folder: Path, text: str = SWEEP) -> Path:
    write_study(folder)
    (folder / "sweep.yaml").write_text(text, encoding="utf-8")
    return folder / "sweep.yaml"


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep by one worker; not to be changed."""
    folder = tmp_path_factory.mktemp("swept")
    sweep = write_sweep(folder / "study")
    # the methods are the search's to set
    (folder / "study" / "study.yaml").write_text(
        (folder / "study" / "study.yaml").read_text() + "methods: [federated]\n"
    )
    changes = ("--set", "round.aggregation=plain")
    run("sweep", sweep, "--out", folder / "out", "--workers", 1, *changes)
    return folder / "out"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_loss_is_searched_on_val_and_asked_once_on_test(swept: Path) -> None:
    rows = table(swept / "sweep.csv")
    figures: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if (row["queries"], row["metric"]) == ("val", "map"):
            key = (row["loss"], row["round.learning.learning_rate"])
            figures.setdefault(key, []).append(float(row["value"]))
    assert {len(values) for values in figures.values()} == {2}  # seeds
    best = {
        loss: max(("0.0001", "0.02"), key=lambda rate: sum(figures[loss, rate]))
        for loss in ("am", "csq")
    }
    tested = {
        (row["loss"], row["round.learning.learning_rate"])
        for row in rows
        if row["queries"] == "test"
    }
    assert tested == set(best.items())
    folders = {each.name for each in swept.iterdir() if each.is_dir()}
    assert folders == {row["point"] for row in rows}
    assert len(folders) == 6
    for name in folders:
        assert (swept / name / "results.csv").is_file()
    assert (swept / "sweep.png").read_bytes().startswith(b"\x89PNG")
    text = (swept / "sweep.md").read_text()
    assert text.index("## Queries of test") < text.index("## Queries of val")
    for loss, rate in best.items():
        assert re.search(rf"\| {loss} \| {re.escape(rate)} \| 0\.\d{{3}} ± 0\.\d{{3}} \|", text)


def test_points_that_deal_the_same_data_share_its_files(swept: Path) -> None:
    files = list(swept.glob("*,queries=val/data/seed-0/prepared.safetensors"))
    assert len(files) == 4
    assert len({each.stat().st_ino for each in files}) == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)  # many spawned workers, each of which imports torch
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="processes are found in /proc")
def test_a_killed_sweep_goes_on_and_two_workers_give_the_bytes_of_one(
    swept: Path, tmp_path: Path
) -> None:
    study, out = swept.parent / "study" / "sweep.yaml", tmp_path / "out"
    arguments = ("sweep", study, "--out", out, "--workers", 2)
    changes = ("--set", "round.aggregation=plain")
    process = subprocess.Popen(
        [sys.executable, "-m", "fedhash_sim", *map(str, (*arguments, *changes))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (finished := sorted(out.glob("*/cells/*/results.csv"))):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    while living(process.pid):  # workers watch their parent
        time.sleep(0.02)
    assert not (out / "sweep.csv").exists()
    before = {path: path.stat().st_mtime_ns for path in finished}
    planned = json.loads(run(*arguments, *changes, "--dry-run", "--json"))["points"]
    assert sum(each["cells done"] for each in planned) >= len(before)
    run(*arguments, *changes)
    assert {path: path.stat().st_mtime_ns for path in finished} == before  # not run again
    for name in ("sweep.csv", "sweep.md"):
        assert (out / name).read_bytes() == (swept / name).read_bytes()


def living(group: int) -> list[int]:
    """Processes of a group; a zombie has ended."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it ended while we looked
        if int(its_group) == group and state != "Z":
            found.append(int(process.name))
    return found


def test_a_finished_sweep_is_not_run_again(swept: Path) -> None:
    cells = list(swept.glob("*/cells/*/results.csv"))
    before = {path: path.stat().st_mtime_ns for path in cells}
    tables = {path: path.read_bytes() for path in swept.glob("*/*.csv")}
    study = swept.parent / "study" / "sweep.yaml"
    changes = ("--set", "round.aggregation=plain")
    told = json.loads(run("sweep", study, "--out", swept, *changes, "--json"))
    assert {path: path.stat().st_mtime_ns for path in cells} == before
    assert {path: path.read_bytes() for path in swept.glob("*/*.csv")} == tables
    assert {each["queries"] for each in told["rows"]} == {"test"}
    assert [each["choices"]["loss"] for each in told["rows"]] == ["am", "csq"]
    assert len(told["chosen"]) == 2


def test_a_plan_trains_nothing_and_a_folder_of_another_run_is_refused(
    swept: Path, tmp_path: Path
) -> None:
    sweep = swept.parent / "study" / "sweep.yaml"
    plan = run("sweep", sweep, "--dry-run", "--out", tmp_path / "out")
    assert "Nothing was trained" in plan
    assert plan.count("0/2") == 8
    assert not (tmp_path / "out").exists()
    other = ("--set", "round.aggregation=plain", "--set", "round.rounds=2")
    before = table(swept / "sweep.csv")
    for more in (("--dry-run",), ()):
        message = run("sweep", sweep, "--out", swept, *other, *more, ok=False)
        assert "holds another run: its round.yaml differs" in message
    assert table(swept / "sweep.csv") == before
    asked_already = tmp_path / "out" / next(swept.glob("*=test")).name
    shutil.copytree(swept / asked_already.name, asked_already)
    for name in ("sweep.yaml", ".lock"):
        shutil.copy(swept / name, tmp_path / "out")
    message = run("sweep", sweep, "--out", tmp_path / "out", *other, ok=False)
    assert f"{asked_already} holds another run" in message  # before the search, not after it
    assert not list((tmp_path / "out").glob("*=val"))
    assert "is the folder of a single run" in run(
        "sweep", sweep, "--out", next(swept.glob("loss*")), ok=False
    )


def test_a_folder_that_no_sweep_has_made_is_left_as_it_is(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "study")
    before = {each: each.read_bytes() for each in sweep.parent.iterdir()}
    for more in ((), ("--replace",), ("--dry-run",)):
        message = run("sweep", sweep, "--out", sweep.parent, *more, ok=False)
        assert f"{sweep.parent} is not empty and no folder of a sweep" in message
    assert {each: each.read_bytes() for each in sweep.parent.iterdir()} == before


def test_a_damaged_sweep_file_may_be_removed(swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept, tmp_path / "out")
    sweep = swept.parent / "study" / "sweep.yaml"
    (tmp_path / "out" / "sweep.yaml").write_text("grid: [")
    arguments = ("sweep", sweep, "--out", tmp_path / "out", "--set", "round.aggregation=plain")
    assert "is damaged" in run(*arguments, ok=False)
    (tmp_path / "out" / "sweep.yaml").unlink()
    run(*arguments)
    assert (tmp_path / "out" / "sweep.csv").read_bytes() == (swept / "sweep.csv").read_bytes()


def test_commands_for_runs_name_a_point_of_a_sweep(swept: Path) -> None:
    for command in (("report",), ("search", "--example", "report"), ("export", "--mlflow", "x")):
        message = run(command[0], swept, *command[1:], ok=False)
        assert f"{swept} is no run folder but that of a sweep; name one of its points" in message


def test_a_manifest_that_is_not_there_is_told_at_its_choice(tmp_path: Path) -> None:
    phantom = "    drawn: {data: {kind: phantom, sites: 3, patients_per_site: 25}}\n"
    read = "    read: {data: {kind: manifest, manifest: gone.csv}}\n"
    text = f"name: x\nstudy: study.yaml\ngrid:\n  from:\n{phantom}{read}"
    sweep = write_sweep(tmp_path / "study", text)
    message = run("sweep", sweep, "--dry-run", ok=False)
    assert f"{sweep}:6: from = read: the manifest" in message
    assert "gone.csv cannot be read (No such file or directory); name a file" in message


def test_a_point_that_diverges_stops_no_other(tmp_path: Path) -> None:
    decays = "[1000.0, 0.0]"  # the weights grow a millionfold in a step of the first
    text = SWEEP.replace("[0.0001, 0.02]", decays).replace("learning_rate", "weight_decay")
    sweep = write_sweep(tmp_path / "study", text)
    out = tmp_path / "out"
    wild = ("--set", "round.learning.learning_rate=1000", "--set", "round.learning.local_steps=8")
    few = (*wild, "--set", "round.aggregation=plain", "--set", "round.rounds=5", "--workers")
    printed = run("sweep", sweep, "--out", out, *few, 2)
    assert " diverged: " in printed
    told = (out / "sweep.md").read_text()
    for loss in ("am", "csq"):
        point = f"loss={loss},weight_decay=1000.0,queries=val"
        assert f"| {point} | federated, seed 0: 0 of 3 sites count in round 3" in told
        assert "training_failed: the training left the finite numbers" in told
        assert f"| {loss} | 0.0 |" in told
    assert {each["round.learning.weight_decay"] for each in table(out / "sweep.csv")} == {"0.0"}
    # tried again, a point starts anew and diverges likewise; nothing else runs again
    run("sweep", sweep, "--out", out, *few, 1)
    assert (out / "sweep.md").read_text() == told


def test_what_no_search_can_choose_is_an_error_behind_the_others(tmp_path: Path) -> None:
    text = SWEEP.replace("csq: {round.loss: {name: csq}}", "csq: {round.loss: {name: csq}, WILD}")
    wild = "round.learning.learning_rate: 1000, round.learning.weight_decay: 1000"
    text = text.replace("WILD", wild).replace("am: {", "am: {round.learning.learning_rate: 0.01, ")
    rates, searched = "round.learning.learning_rate: [0.0001, 0.02]", "round.learning.local_steps"
    text = text.replace(rates, f"{searched}: [8, 9]")
    text = text.replace("over: [round.learning.learning_rate]", f"over: [{searched}]")
    sweep = write_sweep(tmp_path / "study", text)
    few = (*QUICK, "--set", "seeds=[0]", "--workers", 1)
    out = tmp_path / "out"
    message = run("sweep", sweep, "--out", out, *few, ok=False)
    assert "2 points diverged, the others are done" in message
    assert "loss=csq,local_steps=8,queries=val: federated, seed 0: 0 of 3 sites count" in message
    assert {(each["loss"], each["queries"]) for each in table(out / "sweep.csv")} == {
        ("am", "val"),
        ("am", "test"),
    }
    sweep.write_text(text[: text.index("select")])
    message = run("sweep", sweep, "--out", tmp_path / "all", *few, ok=False)
    assert "2 points diverged, the others are done" in message
    assert {each["loss"] for each in table(tmp_path / "all" / "sweep.csv")} == {"am"}


def test_impossible_points_are_told_before_any_work(tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path / "study",
        "name: x\nstudy: study.yaml\ngrid:\n  partition:\n  - {scheme: natural}\n"
        "  - {scheme: shard, sites: 3, shards_per_site: 900}\n  round.rounds: [1, 0]\n",
    )
    out = tmp_path / "out"
    message = run("sweep", sweep, "--out", out, ok=False)
    assert f"{sweep}:7: grid.round.rounds = 0: " in message
    assert not out.exists()
    sweep.write_text(sweep.read_text().replace("[1, 0]", "[1]"))
    message = run("sweep", sweep, "--out", out, ok=False)  # what only the data tells
    assert f"{sweep}:6: partition = " in message
    assert "3 sites of 900 shards need at least 2700" in message
    assert [each.name for each in out.iterdir()] == [".lock"]  # of no point, the first too
    assert "3 sites of 900 shards need" in run("sweep", sweep, "--dry-run", ok=False)


def test_the_folder_of_another_sweep_is_refused_and_a_grid_may_grow(
    swept: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path / "study", SWEEP.replace("0.02]", "0.02, 0.03]"))
    plan = ("sweep", sweep, "--out", swept, *QUICK, "--dry-run")
    before = (swept / "sweep.yaml").read_bytes()
    # the study stands in another folder, so it is another one
    assert "holds another sweep: its study differ" in run(*plan, ok=False)
    same = swept.parent / "study" / "grown.yaml"
    same.write_text(sweep.read_text())
    grown = run("sweep", same, "--out", swept, "--set", "round.aggregation=plain", "--dry-run")
    assert "learning_rate=0.03" in grown
    for change in (
        ("am: {round.loss: {name: anchor_margin}}", "am: {round.loss: {name: dpsh}}"),
        ("0.0001, ", ""),
        ("metric: map", "metric: macro_map"),
    ):
        same.write_text(SWEEP.replace(*change))
        told = run("sweep", same, "--out", swept, "--dry-run", ok=False)
        assert "choose another --out, or --replace" in told
    assert (swept / "sweep.yaml").read_bytes() == before
    run_of = next(swept.glob("*=test"))
    for wrong, message in ((run_of, "the folder of a single run"), (sweep, "is a file")):
        assert message in run("sweep", sweep, "--out", wrong, *QUICK, "--dry-run", ok=False)


def test_tables_of_finished_points_are_made_of_their_cells_again(
    swept: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    point = next(out.glob("*=test"))
    truth = (point / "results.csv").read_bytes()
    (point / "results.csv").write_bytes(b"\n".join(truth.splitlines()[:3]) + b"\n")
    sweep = swept.parent / "study" / "sweep.yaml"
    run("sweep", sweep, "--out", out, "--set", "round.aggregation=plain")
    assert (point / "results.csv").read_bytes() == truth
    assert (out / "sweep.csv").read_bytes() == (swept / "sweep.csv").read_bytes()


def test_a_table_in_a_pipe_is_whole(swept: Path) -> None:
    told = run("compare", swept)
    assert "…" not in told
    rows = [line for line in told.splitlines() if "report → report" in line]
    assert [line[0] for line in rows] == ["1", "2"]
    assert re.search(r"\[[-+]\d\.\d{3}, [-+]\d\.\d{3}\]  \d", rows[1])


def test_methods_of_one_run_are_compared_with_one_of_them(finished: Path) -> None:
    rows = json.loads(run("compare", finished, "--against", "local", "--json"))["rows"]
    by_method = {each["method"]: each for each in rows}
    assert by_method["local"]["difference"] is None
    for method in ("federated", "central"):
        expected = by_method[method]["figure"]["mean"] - by_method["local"]["figure"]["mean"]
        assert by_method[method]["difference"]["mean"] == pytest.approx(expected, abs=1e-6)
    assert "has no method 'fderated' to compare with; did you mean" in run(
        "compare", finished, "--against", "fderated", ok=False
    )


def test_steps_beyond_the_agreements_cap_are_told_at_their_choice(tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path / "study",
        "name: x\nstudy: study.yaml\nset: {round.learning.local_steps: null}\ngrid:\n"
        "  round.rounds: [1, 2]\n  round.learning.local_epochs:\n  - 1\n  - 2000\n",
    )
    for more in ((), ("--dry-run",)):
        message = run("sweep", sweep, "--out", tmp_path / "out", *more, ok=False)
        at = f"{sweep}:8: round.rounds = 1, round.learning.local_epochs = 2000: seed 0: "
        assert at in message
        assert "largest_local_steps cuts it at" in message
        assert not list((tmp_path / "out").glob("*/*"))


def test_what_the_data_does_not_allow_in_the_test_is_told_before_the_search(
    tmp_path: Path,
) -> None:
    sweep = write_sweep(
        tmp_path / "study",
        SWEEP.replace("metric: map", "metric: map, seeds: [0]")
        + "set: {partition: {scheme: iid, sites: 3, smallest_site_patients: 17}}\n",
    )
    message = run("sweep", sweep, "--out", tmp_path / "out", *QUICK, ok=False)
    where = f"{sweep}:3: loss = am, round.learning.learning_rate = 0.0001: seed 1: "
    assert message.startswith(f"error: {where}3 sites of at least 17 patients need 51 patients")
    assert message.count("seed") == 1  # of all points that deal alike once
    assert [each.name for each in (tmp_path / "out").iterdir()] == [".lock"]


def test_more_memory_than_is_allowed_starts_no_second_cell(finished: Path) -> None:
    folder = RunFolder(finished)
    cells = [Cell(finished, method, 0) for method in ("federated", "central", "local")]
    for cell in cells:
        (folder.cell(cell.method, 0).path / "results.csv").unlink()
    workers, done = set[int](), []

    def count(_cell: Cell, _news: Progress | None = None) -> None:
        workers.update(each.pid or 0 for each in multiprocessing.active_children())

    def finish(cell: Cell) -> None:
        count(cell)
        done.append(cell)

    run_cells(cells, 2, count, memory_bytes=1, done=finish)
    assert done == cells
    assert len(workers) == 1


def test_runs_are_compared_with_the_first_seed_by_seed(swept: Path) -> None:
    told = json.loads(run("compare", swept, "--metric", "map", "--json"))["rows"]
    assert len(told) == 2
    first, other = told
    assert first["difference"] is None
    values = {
        (row["point"], row["seed"]): float(row["value"])
        for row in table(swept / "sweep.csv")
        if row["metric"] == "map"
    }
    one, two = (
        [values[Path(each["run"]).name, seed] for seed in ("0", "1")] for each in (first, other)
    )
    assert first["figure"]["mean"] == pytest.approx(sum(one) / 2)
    mean = (two[0] - one[0] + two[1] - one[1]) / 2
    assert other["difference"]["mean"] == pytest.approx(mean)
    assert other["difference"]["seeds"] == 2
    assert "paired t-test" in run("compare", swept)


def test_runs_that_ask_something_else_are_not_compared(
    swept: Path, finished: Path, tmp_path: Path
) -> None:
    test, val = next(swept.glob("*=test")), next(swept.glob("*=val"))
    message = run("compare", test, val, ok=False)
    assert "evaluation.queries: val against test; compare runs that ask the same" in message
    assert run("compare", test, finished)  # seed 0 is common, and nothing else differs
    study = finished.parent / "study" / "study.yaml"
    changes = (*QUICK, "--set", "round.rounds=1", "--set", "evaluation.every_rounds=null")
    one, *others = (tmp_path / name for name in ("seed-7", "fewer", "held-out"))
    for out, more in (
        (one, ("seeds=[7]",)),
        (others[0], ("data.patients_per_site=40", "seeds=[0]")),
        (others[1], ("evaluation.held_out_database=0.5", "seeds=[0]")),
    ):
        sets = [part for change in more for part in ("--set", change)]
        run("run", study, "--out", out, "--workers", 1, *changes, *sets)
    assert "no seed in common" in run("compare", test, one, ok=False)
    assert "the queries of seed 0: " in run("compare", test, others[0], ok=False)
    assert "the database of seed 0: " in run("compare", test, others[1], ok=False)
    assert "is no run folder" in run("compare", test, tmp_path, ok=False)
    (tmp_path / "sweep.csv").write_text("a,b\n1,2\n")
    assert "sweep.csv is damaged" in run("compare", tmp_path, ok=False)


@pytest.mark.slow
def test_ctrl_c_is_told_and_the_live_table_is_drawn_on_a_terminal(
    swept: Path, tmp_path: Path
) -> None:
    leader, follower = os.openpty()
    sweep = swept.parent / "study" / "sweep.yaml"
    arguments = ("sweep", sweep, "--out", tmp_path / "out", "--workers", 1)
    process = subprocess.Popen(
        [sys.executable, "-m", "fedhash_sim", *map(str, arguments), "--set", "round.rounds=3000"],
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(follower)
    shown = b""
    while b"map so far" not in shown or b"/3000" not in shown:
        shown += os.read(leader, 4096)
    process.send_signal(signal.SIGINT)
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # how a terminal without a program ends
        pass
    os.close(leader)
    assert process.wait(60) == 130
    assert b"interrupted; run the same command again" in shown
