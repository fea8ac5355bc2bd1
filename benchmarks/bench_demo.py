"""Seconds and peak memory of `make demo`: a study, its index and two searches.

Runs the commands of the Makefile's target in a temporary folder. Memory is the sum over all of
their processes (see `benchmarks.process_memory`); Linux only. Writes build/bench/demo.csv with the
columns case, contender, figure, unit, value.

    make bench-demo
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks.figures import BENCH, Figure, write_figures
from benchmarks.process_memory import run_measured
from benchmarks.rows import as_table, demo_rows


def main() -> None:
    with TemporaryDirectory(prefix="fedhash-demo-") as folder:
        command = ["make", "--no-print-directory", "demo", f"DEMO={Path(folder) / 'demo'}"]
        try:
            seconds, peak_bytes = run_measured(command)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"error: the demo was not measured: {error}") from error
    figures = [
        Figure("make demo", "fedhash-sim", "wall time", "s", seconds),
        Figure("make demo", "fedhash-sim", "peak memory", "GB", peak_bytes / 1e9),
    ]
    write_figures(BENCH / "demo.csv", Figure, figures)
    Console().print(as_table(demo_rows(figures), "the demo beside its goals"))


if __name__ == "__main__":
    main()
