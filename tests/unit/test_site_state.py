"""How long a site keeps what it carries: two states of a run, and the eight newest runs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fedhash.rounds.site_state import FileSiteState

CARRIED = {"control": np.zeros(3, np.float32)}


def trained(state: FileSiteState, folder: Path, run_id: str, time_s: int) -> None:
    """Keep a round of the run as if it had been trained at `time_s`."""
    state.keep(run_id, state.newest_round(run_id) + 1, CARRIED, counted_round=0)
    os.utime(folder / run_id, (time_s, time_s))


def test_the_eight_runs_that_trained_last_are_kept(tmp_path: Path) -> None:
    state = FileSiteState(tmp_path)
    for number in range(8):
        trained(state, tmp_path, f"run-{number}", 1000 + number)
    trained(state, tmp_path, "run-0", 2000)  # paused meanwhile, and now the newest
    (tmp_path / "notes").mkdir()
    assert all(state.newest_round(f"run-{number}") for number in range(8))
    trained(state, tmp_path, "run-8", 2001)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"notes", "run-0", *(f"run-{number}" for number in range(2, 9))}
    assert state.newest_round("run-1") == 0
    assert state.carried("run-1", 1) is None


def test_the_run_that_trains_is_kept_whatever_the_clock_says(tmp_path: Path) -> None:
    state = FileSiteState(tmp_path)
    for number in range(8):
        trained(state, tmp_path, f"run-{number}", 4_000_000_000)
    state.keep("new", 1, CARRIED, counted_round=0)
    assert state.newest_round("new") == 1
    assert len(list(tmp_path.iterdir())) == 8
