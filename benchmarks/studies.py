"""A study of simulations/studies/: runs its sweeps, then writes tables and pictures beside them.

Each `NAME.sweep.yaml` of the folder runs in build/studies/STUDY/NAME and goes on there after an
interruption. `NAME.csv` then holds its figures seed by seed, `NAME.png` the picture, and the
folder's README.md the table, between `<!-- table: NAME -->` and `<!-- end -->`; where it asks for
`NAME-worst`, that of the finding that is found worst.

    make study STUDY=code_length
    .venv/bin/python -m benchmarks.studies code_length --tables    # the tables alone, from the CSVs
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

import pandas as pd
from rich.console import Console

from benchmarks.rows import as_markdown
from benchmarks.study_tables import METRICS, SWEEP, figures_of, study_rows, sweep_name
from benchmarks.tables import with_tables
from fedhash.errors import DataError, FedhashError
from fedhash_sim.sweeps.points import read_sweep
from fedhash_sim.sweeps.running import run_sweep

STUDIES = Path("simulations/studies")
RUNS = Path("build/studies")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="a folder of simulations/studies")
    parser.add_argument("--only", help="one sweep of the study")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tables", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    folder = STUDIES / chosen.study
    try:
        sweeps = {sweep_name(sweep): sweep for sweep in _sweeps(folder)}
        if chosen.only not in {None, *sweeps}:
            raise DataError(f"--only: {folder} has no {chosen.only}, only {', '.join(sweeps)}")
        for sweep in sweeps.values():
            if not chosen.tables and chosen.only in {None, sweep_name(sweep)}:
                _run(sweep, chosen.workers, Console())
        _write_readme(folder)
    except (FedhashError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def _sweeps(folder: Path) -> list[Path]:
    sweeps = sorted(folder.glob(f"*{SWEEP}"))
    if not sweeps:
        known = sorted(path.parent.name for path in STUDIES.glob(f"*/*{SWEEP}"))
        raise DataError(f"{folder} holds no {SWEEP}; there are {', '.join(dict.fromkeys(known))}")
    return sweeps


def _run(path: Path, workers: int, console: Console) -> None:
    folder, name = path.parent, sweep_name(path)
    sweep, out = read_sweep(path), RUNS / folder.name / name
    out.parent.mkdir(parents=True, exist_ok=True)
    command = f"make study STUDY={folder.name}"
    run_sweep(sweep, out, workers=workers, command=command, console=console)
    table = pd.read_csv(out / "sweep.csv", dtype=str, keep_default_na=False)
    if sweep.settings.select is not None:
        table = table[table["queries"] == "test"]
    table = table[table["metric"].isin(METRICS)]
    keys = [*sweep.settings.grid, "method", "seed", "query", "target"]
    wide = table.pivot_table(
        index=keys, columns="metric", values="value", aggfunc="first", sort=False
    )
    wide[METRICS].reset_index().to_csv(figures_of(path), index=False, lineterminator="\n")
    shutil.copyfile(out / "sweep.png", folder / f"{name}.png")


def _write_readme(folder: Path) -> None:
    path = folder / "README.md"
    tables: dict[str, str | None] = {}
    places = ""
    for sweep in _sweeps(folder):
        name, run = sweep_name(sweep), figures_of(sweep).is_file()
        tables[name] = as_markdown(study_rows(sweep)) if run else None
        tables[f"{name}-worst"] = as_markdown(study_rows(sweep, "worst_map")) if run else None
        places += f"\n<!-- table: {name} -->\n<!-- end -->\n"
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# {folder.name}\n{places}"
    path.write_text(with_tables(text, path, tables), encoding="utf-8")


if __name__ == "__main__":
    main()
