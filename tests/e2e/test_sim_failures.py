"""What `fedhash-sim` says when it cannot go on, and that what is done stays."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sim_command import run, study_of
from typer.testing import CliRunner

from fedhash_sim.cli import app
from fedhash_sim.run_folder import RunFolder

CELL = "cells/federated-seed-0"


def go_on(run_folder: Path, *, ok: bool = True) -> str:
    study = study_of(run_folder)
    return run("run", study, "--out", run_folder, "--workers", 1, "--set", "seeds=[0]", ok=ok)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\xff\x00" * (len(content) // 4)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damaged", "removed"),
    [
        (f"{CELL}/results.csv", f"{CELL}/results.csv"),
        (f"{CELL}/rounds.csv", f"{CELL}/results.csv"),
        ("data/seed-0/prepared.safetensors", "data/seed-0/prepared.safetensors"),
        ("data/seed-0/consortium.json", "data/seed-0"),
    ],
)
def test_damage_is_named_and_the_remedy_gives_the_same_figures(
    finished: Path, damaged: str, removed: str
) -> None:
    kept = (finished / "results.csv").read_bytes()
    damage(finished / damaged)
    message = go_on(finished, ok=False)
    assert str(finished / damaged) in message or str((finished / damaged).parent) in message
    assert "remove" in message
    remove(finished / removed)
    go_on(finished)
    assert (finished / "results.csv").read_bytes() == kept


@pytest.mark.parametrize(
    ("damaged", "remedies"),
    [
        # the round before it cannot be gone on from: the sites' memory is removed behind the last
        (
            "models/0/checkpoints/round-000004.checkpoint",
            ("models/0/checkpoints/round-000004.checkpoint", "models/0"),
        ),
        ("models/0/evaluation-000002.csv", ("models/0",)),
        ("models/0/evaluation-000004.csv", ("models/0",)),
    ],
)
def test_a_damaged_unfinished_cell_is_named_and_goes_on(
    finished: Path, damaged: str, remedies: tuple[str, ...]
) -> None:
    kept = (finished / "results.csv").read_bytes()
    (finished / CELL / "results.csv").unlink()
    damage(finished / CELL / damaged)
    for removed in remedies:
        message = go_on(finished, ok=False)
        assert str(finished / CELL / removed) in message
        assert "delete it" in message or "remove" in message
        remove(finished / CELL / removed)
    go_on(finished)
    assert (finished / "results.csv").read_bytes() == kept


def remove(path: Path) -> None:
    for each in sorted([path, *path.rglob("*")], reverse=True):
        each.rmdir() if each.is_dir() else each.unlink()


def test_damaged_tables_of_a_run_are_written_anew(finished: Path) -> None:
    kept = (finished / "results.csv").read_bytes()
    (finished / "run.json").write_text("{}")
    assert "run.json is of another version" in run("report", finished, ok=False)
    tables = (
        "holdings.csv",
        "partition.csv",
        "margins.csv",
        "privacy.csv",
        "run.json",
        "rounds.csv",
        "results.csv",
    )
    for name in tables:  # from the last to the first that is read
        damage(finished / name)
        message = run("report", finished, ok=False)
        assert f"{finished / name} is " in message
        assert "run the study again" in message
    go_on(finished)
    assert (finished / "results.csv").read_bytes() == kept


def test_a_table_cut_off_after_its_header_is_no_table(finished: Path) -> None:
    table = finished / "results.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    assert "0 rows of method, seed" in run("report", finished, "--json", ok=False)


def test_a_figure_that_is_none_is_damage(finished: Path) -> None:
    table = finished / "results.csv"
    header, first, *rest = table.read_text().splitlines()
    for value in ("inf", "1.5", "-0.1"):
        cells = first.split(",")
        cells[header.split(",").index("value")] = value
        table.write_text("\n".join([header, ",".join(cells), *rest]) + "\n")
        assert "values that are not from 0 to 1" in run("report", finished, "--json", ok=False)


def test_a_damaged_release_of_an_unfinished_cell_has_a_remedy(finished: Path) -> None:
    kept = (finished / "results.csv").read_bytes()
    damage(finished / CELL / "release" / "model.safetensors")
    (finished / CELL / "results.csv").unlink()
    message = go_on(finished, ok=False)
    assert f"{finished / CELL / 'release'} is in the way" in message
    assert "remove it and run the study again" in message
    remove(finished / CELL / "release")
    go_on(finished)
    assert (finished / "results.csv").read_bytes() == kept


def test_a_path_that_the_system_refuses_is_one_line(finished: Path) -> None:
    too_long = "a" * 300
    for command in (
        ("export", too_long, "--tensorboard", "x"),
        ("audit", "linkage", too_long),
        ("compare", too_long),
    ):
        assert "File name too long" in run(*command, ok=False)


def test_a_damaged_release_or_archive_answers_nothing(finished: Path) -> None:
    asked = ("search", finished, "--report", "No finding.")
    run(*asked)
    archive = min((finished / "archives").iterdir())
    kept = archive.read_bytes()
    damage(archive)
    assert f"{archive} is damaged" in run(*asked, ok=False)
    archive.write_bytes(kept)
    run(*asked)
    damage(finished / CELL / "release" / "model.safetensors")
    assert "model.safetensors is damaged or was altered" in run(*asked, ok=False)


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """The system refuses to write a file beyond the size, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_the_run_goes_on(study_file: Path, tmp_path: Path) -> None:
    one_cell = ("--set", "methods=[central]", "--set", "seeds=[0]")
    command = ("run", study_file, "--out", tmp_path / "run", "--workers", 1, *one_cell)
    for size_bytes, named in ((4096, "prepared.safetensors"), (70_000, f"{tmp_path / 'run'}")):
        with files_of_at_most(size_bytes):
            message = run(*command, ok=False)
        assert f"{named} cannot be used" in message
        assert "File too large" in message
        assert "check rights and disk space, then run the same command again" in message
    run(*command)


def test_a_file_that_cannot_be_opened_is_named(finished: Path) -> None:
    (finished / "run.json").unlink()
    (finished / "run.json").mkdir()
    message = go_on(finished, ok=False)
    assert f"{finished / 'run.json'} cannot be used (Is a directory)" in message


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fedhash_sim", "recipe", "--json"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, check=False, env=buffered
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_without_the_extra_one_line_says_so(tmp_path: Path) -> None:
    program = "import sys; sys.modules['jinja2'] = None; import fedhash_sim.__main__ as it"
    command = [sys.executable, "-c", f"{program}; it.app()", "report", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == (
        "error: fedhash-sim needs the extra 'sim': pip install 'fedhash[sim]' "
        "(there is no module 'jinja2')\n"
    )


@pytest.mark.parametrize("option", ["--kappa", "--abstention-margin"])
def test_nan_is_no_number(finished: Path, option: str) -> None:
    ended = CliRunner().invoke(app, ["search", str(finished), "--report", "x", option, "nan"])
    assert ended.exit_code == 2
    assert "nan is no number" in ended.stderr


def test_a_search_is_checked_before_archives_are_opened(finished: Path) -> None:
    assert "exactly one" in run("search", finished / "nowhere", ok=False)
    for wrong in (("-k", 101), ("--target", "mri"), ("--where", "sexx=f"), ("--study", "s1")):
        run("search", finished, "--report", "x", *wrong, ok=False)
    assert not (finished / "archives").exists()


def test_a_phantom_replaces_nothing(tmp_path: Path) -> None:
    small = ("--sites", 1, "--patients-per-site", 3)
    printed = run("phantom", tmp_path / "new", *small, "--json")
    manifest = tmp_path / "new" / "site-0" / "manifest.csv"
    assert f'"{manifest}": ' in printed
    kept = manifest.read_bytes()
    message = run("phantom", tmp_path / "new", *small, "--seed", 1, ok=False)
    assert "is there already and not empty; name another FOLDER" in message
    assert manifest.read_bytes() == kept


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="processes are found in /proc")
def test_ctrl_c_ends_all_workers_even_while_they_start_and_no_second_run_disturbs_the_first(
    study_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    changes = ("--set", "round.rounds=3000", "--set", "seeds=[0]")
    arguments = ("run", study_file, "--out", out, "--workers", 2, *changes)
    process = subprocess.Popen(
        [sys.executable, "-m", "fedhash_sim", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as a terminal gives it
    )
    while sum("spawn_main" in command for command in living(process.pid)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    assert "another process is working in" in run(*arguments, ok=False)
    assert "another process is working in" in run(*arguments, "--replace", ok=False)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches every process of the group
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == "interrupted; run the same command again, it goes on where it stopped\n"
    while living(process.pid):
        time.sleep(0.02)
    with RunFolder.existing(out)[0].locked():
        pass  # nobody works in it any more


def living(group: int) -> list[str]:
    """Command lines of the processes of a group; a zombie has ended."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                commands.append((process / "cmdline").read_text())
        except OSError:
            continue  # it ended while we looked
    return commands


def test_an_interrupted_command_is_told_without_workers_too(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhash_sim.cell_workers.run_cell", interrupt)
    command = ["run", str(study_file), "--out", str(tmp_path / "run"), "--workers", "1"]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 130
    assert ended.stderr.startswith("interrupted; run the same command again")


def interrupt(*_: object) -> None:
    signal.raise_signal(signal.SIGINT)
