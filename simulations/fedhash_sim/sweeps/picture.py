"""What a sweep found as one picture: figures along the last axis of the grid not searched.

One panel a direction, one line for each method under each combination of the other axes, mean and
standard deviation over the seeds; chance, the mean over the lines, is dashed. Numbers stand where
they belong on the axis, on a logarithmic one where they span more than a decade, and names in the
order of the grid.

>>> draw_sweep(Path("runs/losses"), sweep.settings, sweep_rows(Path("runs/losses"), points))
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes

from fedhash_sim.plots import PLOT_STYLE, panel_grid
from fedhash_sim.run_folder import explained
from fedhash_sim.sweeps.settings import SweepSettings
from fedhash_sim.sweeps.tables import METRICS, SweepRow

__all__ = ["draw_sweep"]

_DECADE = 10


def draw_sweep(out: Path, settings: SweepSettings, rows: Sequence[SweepRow]) -> None:
    """Draw `sweep.png`.

    Args:
        out: The sweep's folder.
        settings: The sweep file.
        rows: Those of the test, or all where nothing is chosen.
    """
    axes = settings.asked_axes
    metric = "macro_map" if settings.select is None else settings.select.metric
    panels: defaultdict[tuple[str, str], list[SweepRow]] = defaultdict(list)
    for row in rows:
        panels[row.query, row.target].append(row)
    with mpl.rc_context(PLOT_STYLE):
        figure, drawn = panel_grid(len(panels), width=4.0, height=3.0)
        for axis, ((query, target), of_direction) in zip(drawn, panels.items(), strict=True):
            _draw_direction(axis, settings, of_direction, axes, metric)
            axis.set_title(f"{query} → {target}")
            axis.set_ylabel(METRICS[metric])
        figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
        with explained(out / "sweep.png"):
            figure.savefig(out / "sweep.png", bbox_inches="tight")


def _draw_direction(
    axis: Axes,
    settings: SweepSettings,
    rows: Sequence[SweepRow],
    axes: Sequence[str],
    metric: str,
) -> None:
    *beside, along = axes
    choices = [name for name, _ in settings.choices(along)]
    numbers = _numbers(choices)
    place_of = dict(zip(choices, numbers or range(len(choices)), strict=True))
    lines: defaultdict[str, list[SweepRow]] = defaultdict(list)
    several_methods = len({row.method for row in rows}) > 1
    for row in rows:
        others = [row.point.choices[each] for each in beside]
        label = ", ".join([*others, *([row.method] if several_methods else [])])
        lines[label or row.method].append(row)
    for number, (label, line) in enumerate(lines.items()):
        axis.errorbar(
            [place_of[row.point.choices[along]] for row in line],
            [row.figures[metric].mean for row in line],
            [0 if math.isnan(row.figures[metric].sd) else row.figures[metric].sd for row in line],
            color=mpl.colormaps["tab20"](number % 20),
            marker="o",
            markersize=3,
            capsize=2,
            linestyle="-" if numbers else "none",
            label=label,
        )
    chance: defaultdict[float, list[float]] = defaultdict(list)
    for row in rows:
        chance[place_of[row.point.choices[along]]].append(row.chance[metric].mean)
    at = sorted(chance)
    axis.plot(
        at,
        [fmean(chance[each]) for each in at],
        color="#6b7280",
        linestyle="--",
        linewidth=1.2,
        label="chance",
    )
    if numbers and min(numbers) > 0 and max(numbers) > _DECADE * min(numbers):
        axis.set_xscale("log")
    axis.set_xticks(list(place_of.values()), choices, rotation=0 if numbers else 40)
    axis.minorticks_off()
    axis.set_xlabel(along)


def _numbers(choices: Sequence[str]) -> list[float] | None:
    """The choices as numbers; None where one of them is none."""
    try:
        numbers = [float(each) for each in choices]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None
