"""What the network bench makes of the times that it notes; the network itself is not started."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench_network import CASE, CONTENDERS, figures_of, note_ends, seconds_of
from benchmarks.figures import Figure
from benchmarks.goals import NETWORK_GOALS
from benchmarks.rows import network_goal_rows, network_rows


def test_a_round_lasts_from_the_end_of_the_one_before() -> None:
    ends = {"round-1": 100.0, "train-2": 106.0, "round-2": 113.0, "round-3": 120.5}
    assert seconds_of(ends, 3) == {"round": [13.0, 7.5], "train": [6.0]}


@pytest.mark.parametrize("missing", ["round-1", "round-2", "round-3"])
def test_a_run_that_ended_early_has_no_figures(missing: str) -> None:
    ends = {f"round-{number}": float(number) for number in (1, 2, 3) if number != int(missing[-1])}
    with pytest.raises(RuntimeError, match=f"{missing} did not end"):
        seconds_of(ends, 3)


def test_ends_are_noted_before_their_files_are_gone(tmp_path: Path) -> None:
    ends: dict[str, float] = {}
    note_ends(tmp_path / "not there yet", ends)
    for name in ("round-000001.checkpoint", "round-000002.checkpoint.tmp", "train-2", "other-1"):
        (tmp_path / name).touch()
    note_ends(tmp_path, ends)
    (tmp_path / "round-000001.checkpoint").unlink()
    (tmp_path / "round-12").touch()
    note_ends(tmp_path, ends)
    assert ends.keys() == {"round-1", "train-2", "round-12"}
    assert ends["train-2"] == (tmp_path / "train-2").stat().st_mtime


def test_spread_and_multiples() -> None:
    seconds = {
        ("secure", "round"): [9.0, 6.0, 7.5],
        ("Flower averaging", "round"): [12.0],
        ("Flower averaging", "train"): [4.0, 6.0],
    }
    figures = list(figures_of(seconds))
    assert Figure(CASE, "secure", "round", "s", 7.5) in figures
    assert network_rows(figures)[1:] == [
        ("secure", "round", "3", "7.50", "6.00 to 9.00"),
        ("Flower averaging", "round", "1", "12.00", "12.00 to 12.00"),
        ("Flower averaging", "train", "2", "5.00", "4.00 to 6.00"),
    ]
    assert network_goal_rows(figures)[1:] == [
        ("Flower averaging: round", "at most 1.5", "0.62", "met", ""),
        ("Flower averaging: train", "at most 1.5", "1.50", "met", ""),
        ("Flower SecAgg+: round", "none set", "", "not run", ""),
    ]
    figures += figures_of({("secure, Flower's SuperNodes", "round"): [13.0]})
    slower = [
        each if each.contender != "secure" else Figure(CASE, "secure", each.figure, "s", 7.6)
        for each in figures
    ]
    assert network_goal_rows(slower)[2][2:] == ("1.52", "missed", "2.60")


def test_goals_name_contenders_that_the_bench_runs() -> None:
    assert {contender for contender, _ in NETWORK_GOALS} <= set(CONTENDERS)
