"""The tables of costs, against sums by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fedhash_sim.costs import training_costs
from fedhash_sim.peak_memory import PeakMemory
from fedhash_sim.results import COST_COLUMNS, read_costs
from fedhash_sim.run_folder import write_table

# site_count, patients, parameters, planned_steps, rounds, failed_rounds, round_seconds, requests,
# request_bytes, reply_bytes, evaluations, evaluation_seconds, peak_memory_bytes
FEDERATED = (3, 90, 5000, 12, 10, 1, 5.0, 60, 600_000, 300_000, 2, 1.0, 400_000_000)
ANOTHER_SEED = (3, 88, 5000, 15, 10, 0, 7.0, 60, 600_000, 360_000, 0, 0.0, "")
SILENT = (1, 90, 5000, 40, 10, 0, 20.0, 0, 0, 0, 1, 0.5, "")
UNTRAINED = (1, 9, 5000, 0, 0, 0, 0.0, 0, 0, 0, 1, 0.25, 300_400_000)


def table_of(folder: Path, *rows: tuple[object, ...]) -> list[dict[str, str]]:
    write_table(folder / "costs.csv", COST_COLUMNS, rows)
    return training_costs(read_costs(folder))


def test_costs_are_of_one_site_in_one_round(tmp_path: Path) -> None:
    (row,) = table_of(
        tmp_path,
        ("federated", 0, "consortium", *FEDERATED),
        ("federated", 1, "consortium", *ANOTHER_SEED),
    )
    assert row == {
        "method": "federated",
        "models": "2",
        "sites": "3",
        "parameters": "5,000",
        "rounds": "20",
        "failed": "1",
        "s a round": "0.600",
        "local steps": "4.5",
        "requests": "2.0",
        "to the site, kB": "20.0",
        "from the site, kB": "11.0",
        "s an evaluation": "0.500",
        "peak memory, MB": "400",
    }


def test_what_was_not_recorded_is_a_dash_and_no_zero(tmp_path: Path) -> None:
    central, start = table_of(
        tmp_path, ("central", 0, "central", *SILENT), ("start", 0, "public", *UNTRAINED)
    )
    assert {name for name, value in central.items() if value == "-"} == {
        "requests",
        "to the site, kB",
        "from the site, kB",
        "peak memory, MB",
    }
    assert central["s a round"] == "2.000"
    assert start["rounds"] == "0"
    assert start["s a round"] == start["local steps"] == start["requests"] == "-"
    assert start["s an evaluation"] == "0.250"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")
def test_the_peak_is_that_since_the_start(tmp_path: Path) -> None:
    def hold(megabytes: int) -> None:
        np.ones(megabytes << 20, np.uint8)

    hold(300)
    memory = PeakMemory()
    before = memory.peak_bytes()
    if before is None:
        pytest.skip("this system does not let a process forget its peak")
    hold(100)
    after = memory.peak_bytes()
    assert after is not None
    assert 80 << 20 < after - before < 200 << 20


def test_a_system_that_does_not_tell_has_no_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhash_sim.peak_memory._OWN", tmp_path / "absent")
    assert PeakMemory().peak_bytes() is None
