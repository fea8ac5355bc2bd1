"""A study of simulations/studies/: runs its sweeps, then writes tables and pictures beside them.

Each `NAME.sweep.yaml` of the folder runs in build/studies/STUDY/NAME and goes on there after an
interruption. `NAME.csv` then holds its figures seed by seed, `NAME.png` the picture, and the
folder's README.md the table, between `<!-- table: NAME -->` and `<!-- end -->`.

    make study STUDY=code_length
    .venv/bin/python -m benchmarks.studies code_length --tables    # the tables alone, from the CSVs
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from rich.console import Console

from benchmarks.rows import Rows, as_markdown
from benchmarks.tables import with_tables
from fedhash.errors import DataError, FedhashError
from fedhash_sim.comparison import paired
from fedhash_sim.results import spread
from fedhash_sim.sweeps.points import read_sweep
from fedhash_sim.sweeps.running import run_sweep
from fedhash_sim.sweeps.settings import SweepSettings

__all__ = ["STUDIES", "study_rows"]

STUDIES = Path("simulations/studies")
RUNS = Path("build/studies")
_SUFFIX = ".sweep.yaml"
_METRICS = ["map", "chance_map", "macro_map", "chance_macro_map"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="a folder of simulations/studies")
    parser.add_argument("--only", help="one sweep of the study")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tables", action="store_true", help="run nothing")
    chosen = parser.parse_args()
    folder = STUDIES / chosen.study
    try:
        sweeps = {_name(sweep): sweep for sweep in _sweeps(folder)}
        if chosen.only not in {None, *sweeps}:
            raise DataError(f"--only: {folder} has no {chosen.only}, only {', '.join(sweeps)}")
        for sweep in sweeps.values():
            if not chosen.tables and chosen.only in {None, _name(sweep)}:
                _run(sweep, chosen.workers, Console())
        _write_readme(folder)
    except (FedhashError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def _sweeps(folder: Path) -> list[Path]:
    sweeps = sorted(folder.glob(f"*{_SUFFIX}"))
    if not sweeps:
        known = sorted(path.parent.name for path in STUDIES.glob(f"*/*{_SUFFIX}"))
        raise DataError(f"{folder} holds no {_SUFFIX}; there are {', '.join(dict.fromkeys(known))}")
    return sweeps


def _name(sweep: Path) -> str:
    return sweep.name.removesuffix(_SUFFIX)


def _run(path: Path, workers: int, console: Console) -> None:
    folder, name = path.parent, _name(path)
    sweep, out = read_sweep(path), RUNS / path.parent.name / _name(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    command = f"make study STUDY={folder.name}"
    run_sweep(sweep, out, workers=workers, command=command, console=console)
    table = pd.read_csv(out / "sweep.csv", dtype=str, keep_default_na=False)
    if sweep.settings.select is not None:
        table = table[table["queries"] == "test"]
    table = table[table["metric"].isin(_METRICS)]
    keys = [*sweep.settings.grid, "method", "seed", "query", "target"]
    wide = table.pivot_table(
        index=keys, columns="metric", values="value", aggfunc="first", sort=False
    )
    wide[_METRICS].reset_index().to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
    shutil.copyfile(out / "sweep.png", folder / f"{name}.png")


def _write_readme(folder: Path) -> None:
    path = folder / "README.md"
    tables = {
        _name(sweep): as_markdown(study_rows(sweep))
        if (folder / f"{_name(sweep)}.csv").is_file()
        else None
        for sweep in _sweeps(folder)
    }
    places = "".join(f"\n<!-- table: {name} -->\n<!-- end -->\n" for name in tables)
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# {folder.name}\n{places}"
    path.write_text(with_tables(text, path, tables), encoding="utf-8")


def study_rows(path: Path) -> Rows:
    """The figures of a sweep: a line for each combination, a column for each choice of one axis.

    The columns are those of the last axis that is not searched; a figure is the mean over all
    directions, mean ± sd over the seeds. ▲ and ▼ stand where the 95 % interval of the difference
    from the first column, paired by seed, lies above or below 0.

    Args:
        path: A sweep file whose CSV stands beside it.

    Raises:
        DataError: The CSV is damaged, or of another grid.
    """
    settings = read_sweep(path).settings
    metric = "macro_map" if settings.select is None else settings.select.metric
    *others, along = settings.asked_axes
    table = _figures(path.with_name(f"{_name(path)}.csv"), settings)
    choices = [name for name, _ in settings.choices(along)]
    lines = [*others, *(["method"] if table["method"].nunique() > 1 else [])]
    rows: Rows = [(*lines, *choices, "chance")]
    grouped = table.groupby(lines, sort=False) if lines else [((), table)]
    for line, figures in grouped:
        of = {
            choice: part.groupby("seed")[[metric, f"chance_{metric}"]].mean()
            for choice, part in figures.groupby(along, sort=False)
        }
        chance = pd.concat(each[f"chance_{metric}"] for each in of.values())
        cells = list(_cells(settings, along, {name: each[metric] for name, each in of.items()}))
        rows.append((*map(str, line), *cells, f"{chance.mean():.3f}"))
    return rows


def _figures(path: Path, settings: SweepSettings) -> pd.DataFrame:
    columns = {
        **dict.fromkeys([*settings.grid, "method"], str),
        "seed": int,
        "query": str,
        "target": str,
        **dict.fromkeys(_METRICS, float),
    }
    blank = {name: [""] for name in _METRICS}
    remedy = f"make it anew: make study STUDY={path.parent.name}"
    try:
        table = pd.read_csv(path, dtype=columns, keep_default_na=False, na_values=blank)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path} is damaged ({error}); {remedy}") from error
    if list(table.columns) != list(columns) or table.empty:
        raise DataError(f"{path} has other columns than the sweep's, or no rows; {remedy}")
    for axis in settings.grid:
        known = {name for name, _ in settings.choices(axis)}
        if unknown := sorted(set(table[axis]) - known):
            raise DataError(f"{path} has {axis} {unknown[0]}, which the grid has not; {remedy}")
    return table


def _cells(settings: SweepSettings, along: str, figures: dict[str, pd.Series]) -> Iterator[str]:
    """The figures of one line; the best mean is bold."""
    choices = [name for name, _ in settings.choices(along)]
    best = max(each.mean() for each in figures.values())
    first = figures.get(choices[0])
    for choice in choices:
        if choice not in figures:
            yield ""
            continue
        values = figures[choice]
        text = str(spread(values))
        if first is not None and choice != choices[0]:
            difference = paired(first.tolist(), values.reindex(first.index).tolist())
            if difference.low is not None and difference.low > 0:
                text += " ▲"
            elif difference.high is not None and difference.high < 0:
                text += " ▼"
        yield f"**{text}**" if values.mean() == best else text


if __name__ == "__main__":
    main()
