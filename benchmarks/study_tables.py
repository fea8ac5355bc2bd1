"""The tables of a study of simulations/studies/, made of its sweeps' CSVs.

study_rows(Path("simulations/studies/alpha/kermany_cxr.sweep.yaml"))
comparison_rows(Path("simulations/studies/main_comparison"))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from benchmarks.rows import Rows
from fedhash.errors import DataError
from fedhash_sim.comparison import paired
from fedhash_sim.results import spread
from fedhash_sim.sweeps.points import read_sweep
from fedhash_sim.sweeps.settings import SweepSettings

__all__ = ["METRICS", "SWEEP", "comparison_rows", "figures_of", "study_rows", "sweep_name"]

SWEEP = ".sweep.yaml"
_CHANCE = {  # of a metric
    "map": "chance_map",
    "macro_map": "macro_chance_map",
    "worst_map": "worst_chance_map",
}
METRICS = [*_CHANCE, *_CHANCE.values()]


def sweep_name(sweep: Path) -> str:
    """The name of a sweep file without its ending."""
    return sweep.name.removesuffix(SWEEP)


def figures_of(sweep: Path) -> Path:
    """The CSV beside a sweep file."""
    return sweep.with_name(f"{sweep_name(sweep)}.csv")


def study_rows(path: Path, metric: str | None = None) -> Rows:
    """The figures of a sweep: a line for each combination, a column for each choice of one axis.

    The columns are those of the last axis that is not searched; a figure is the mean over all
    directions, mean ± sd over the seeds. ▲ and ▼ stand where the 95 % interval of the difference
    from the first column, paired by seed, lies above or below 0.

    Args:
        path: A sweep file whose CSV stands beside it.
        metric: map, macro_map or worst_map; without it what the sweep chooses by, else macro_map.

    Raises:
        DataError: The CSV is damaged, or of another grid.
    """
    settings = read_sweep(path).settings
    metric = metric or _metric(settings)
    along = settings.asked_axes[-1]
    choices = [name for name, _ in settings.choices(along)]
    rows: Rows = []
    for line, figures, chance in _lines(path, settings, metric):
        rows.append((*line.values(), *_cells(choices, figures), f"{chance:.3f}"))
    return [(*line, *choices, "chance"), *rows]


def comparison_rows(folder: Path) -> Rows:
    """A loss beside the strongest other one, for every combination of every sweep that was run.

    The columns are the loss that comes first in the grid, its variants, whose names begin with its
    own, and of all others the one with the largest mean. Marks are as in `study_rows`.

    Args:
        folder: A study whose sweeps end in the same axes, the losses last.

    Raises:
        DataError: A CSV is damaged, or of another grid.
    """
    rows: Rows = []
    for path in sorted(folder.glob(f"*{SWEEP}")):
        settings = read_sweep(path).settings
        own = [name for name, _ in settings.choices(settings.asked_axes[-1])]
        own = [name for name in own if name.startswith(own[0])]
        if not rows:
            axes = settings.asked_axes[:-1]
            rows.append(("set", *axes, *own, "strongest other", "its mAP", "chance"))
        if not figures_of(path).is_file():
            continue
        for line, figures, chance in _lines(path, settings, _metric(settings)):
            strongest = max(sorted(set(figures) - set(own)), key=lambda name: figures[name].mean())
            cells = _cells([*own, strongest], figures)
            name = sweep_name(path)
            rows.append((name, *line.values(), *cells[:-1], strongest, cells[-1], f"{chance:.3f}"))
    return rows


def _metric(settings: SweepSettings) -> str:
    return "macro_map" if settings.select is None else settings.select.metric


def _lines(
    path: Path, settings: SweepSettings, metric: str
) -> Iterator[tuple[dict[str, str], dict[str, pd.Series], float]]:
    """Of each combination of the other axes: what it is, figures by choice and seed, and chance."""
    *others, along = settings.asked_axes
    table = _table(path, settings)
    names = [*others, *(["method"] if table["method"].nunique() > 1 else [])]
    grouped = table.groupby(names, sort=False) if names else [((), table)]
    chance = _CHANCE[metric]
    for line, of_line in grouped:
        by_seed = {
            str(choice): part.groupby("seed")[[metric, chance]].mean()
            for choice, part in of_line.groupby(along, sort=False)
        }
        level = pd.concat(each[chance] for each in by_seed.values()).mean()
        figures = {choice: each[metric] for choice, each in by_seed.items()}
        yield dict(zip(names, map(str, line), strict=True)), figures, float(level)


def _table(path: Path, settings: SweepSettings) -> pd.DataFrame:
    path = figures_of(path)
    columns = {
        **dict.fromkeys([*settings.grid, "method"], str),
        "seed": int,
        "query": str,
        "target": str,
        **dict.fromkeys(METRICS, float),
    }
    blank = {name: [""] for name in METRICS}
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


def _cells(choices: Sequence[str], figures: Mapping[str, pd.Series]) -> list[str]:
    """The figures of one line; the best mean is bold."""
    found = {choice: figures[choice] for choice in choices if choice in figures}
    best = max(values.mean() for values in found.values())
    first = found.get(choices[0])
    cells = dict.fromkeys(choices, "")
    for choice, values in found.items():
        text = str(spread(values))
        if first is not None and values is not first:
            difference = paired(first.tolist(), values.reindex(first.index).tolist())
            if difference.low is not None and difference.low > 0:
                text += " ▲"
            elif difference.high is not None and difference.high < 0:
                text += " ▼"
        cells[choice] = f"**{text}**" if values.mean() == best else text
    return list(cells.values())
