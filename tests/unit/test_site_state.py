"""How long a site keeps what it carries: two states of a run, and the eight newest runs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fedhash.errors import CheckpointError
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


def test_a_copy_beside_a_state_is_not_taken_for_one(tmp_path: Path) -> None:
    state = FileSiteState(tmp_path)
    state.keep("run-1", 1, CARRIED, counted_round=0)
    stored = tmp_path / "run-1" / "round-000001.state"
    (tmp_path / "run-1" / "round-000009 (copy).state").write_bytes(stored.read_bytes())
    assert state.newest_round("run-1") == 1
    state.keep("run-1", 2, CARRIED, counted_round=1)
    assert state.newest_round("run-1") == 2


def test_a_memory_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "run-1").write_text("no folder")
    with pytest.raises(CheckpointError, match="run-1 cannot be read"):
        FileSiteState(tmp_path).newest_round("run-1")


def test_what_cannot_be_tidied_up_costs_no_round(tmp_path: Path) -> None:
    state = FileSiteState(tmp_path)
    (tmp_path / "run-1" / "round-000007.state").mkdir(parents=True)  # cannot be unlinked
    state.keep("run-1", 8, CARRIED, counted_round=0)
    assert state.carried("run-1", 8) is not None
