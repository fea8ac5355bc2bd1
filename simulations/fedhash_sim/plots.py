"""The pictures of a run, one PNG each, all drawn from the run's tables.

>>> draw_plots(run, results, rounds, partition, holdings, margins)
{'map': Path('runs/demo/plots/map.png'), ...}
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedhash.search import radius_from_kappa
from fedhash_sim.kappa import KAPPAS, by_radius
from fedhash_sim.partition_plot import draw_partition
from fedhash_sim.plot_labels import shown
from fedhash_sim.results import final_round, main_table
from fedhash_sim.run_folder import file_name

__all__ = ["METHOD_COLOURS", "PLOT_STYLE", "draw_plots", "panel_grid", "save_pictures"]

# Okabe and Ito's palette: told apart by readers with any colour vision.
METHOD_COLOURS = {
    "local": "#E69F00",
    "federated": "#0072B2",
    "central": "#009E73",
    "public": "#CC79A7",
    "start": "#D55E00",
}
_CHANCE_COLOUR = "#6b7280"
PLOT_STYLE: dict[Any, Any] = {  # matplotlib types the keys one by one
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.dpi": 130,
    "legend.frameon": False,
    "text.parse_math": False,  # a site's name is no formula
}


def draw_plots(
    run: Path,
    results: pd.DataFrame,
    rounds: pd.DataFrame,
    partition: pd.DataFrame,
    holdings: pd.DataFrame,
    margins: pd.DataFrame,
) -> dict[str, Path]:
    """Draw every picture whose figures the run holds.

    Args:
        run: The run folder; pictures go to `plots/` in it.
        results: From :func:`fedhash_sim.results.read_results`.
        rounds: From :func:`fedhash_sim.results.read_rounds`.
        partition: From :func:`fedhash_sim.results.read_partition`.
        holdings: From :func:`fedhash_sim.results.read_holdings`.
        margins: From :func:`fedhash_sim.results.read_margins`.

    Returns:
        Name to file, in the order of the report.
    """
    drawings: dict[str, Callable[[], Figure | None]] = {
        "map": lambda: _map_bars(results),
        "map_by_round": lambda: _map_by_round(results),
        "loss": lambda: _loss_curves(rounds),
        "margins": lambda: _margin_curves(margins),
        "precision_recall": lambda: _precision_recall(results),
        "findings": lambda: _group_bars(results, "finding"),
        "partition": lambda: draw_partition(partition, holdings),
    }
    attributes = results["group"].str.split("=").str[0].unique()
    for attribute in sorted(set(attributes) - {"all", "finding", "radius", "site_model"}):
        drawings[f"group_{attribute}"] = lambda attribute=attribute: _group_bars(results, attribute)  # type: ignore[misc]
    if (results["group"].str.startswith("site_model=")).any():
        drawings["site_models"] = lambda: _group_bars(results, "site_model")
    return save_pictures(run / "plots", drawings)


def save_pictures(
    folder: Path, drawings: Mapping[str, Callable[[], Figure | None]]
) -> dict[str, Path]:
    """Draw each picture into `folder`, in the style of the report; a drawing may be of nothing.

    Returns:
        Name to file of those that there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    with mpl.rc_context(PLOT_STYLE), warnings.catch_warnings():
        # scripts that the font lacks become boxes in the picture; the tables have the names
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        for name, draw in drawings.items():
            figure = draw()
            if figure is not None:
                attribute = name.removeprefix("group_")
                safe = name if attribute == name else f"group_{file_name(attribute)}"
                files[name] = folder / f"{safe}.png"
                figure.savefig(files[name], bbox_inches="tight")
    return files


def panel_grid(panels: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, at most four beside each other; sizes in inches."""
    columns = min(4, panels)
    lines = -(-panels // columns)
    figure = Figure(figsize=(max(4.0, width * columns), height * lines), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for unused in axes[panels:]:
        unused.set_axis_off()
    return figure, list(axes[:panels])


def _panels(
    results: pd.DataFrame, width: float = 3.1, height: float = 2.7
) -> tuple[Figure, list[tuple[Axes, str, str]]]:
    """A figure with one panel a direction."""
    directions = list(results.groupby(["query", "target"], sort=False).groups)
    figure, axes = panel_grid(len(directions), width=width, height=height)
    return figure, [
        (axis, str(query), str(target))
        for axis, (query, target) in zip(axes, directions, strict=True)
    ]


def _of(results: pd.DataFrame, query: str, target: str) -> pd.DataFrame:
    return results[(results["query"] == query) & (results["target"] == target)]


def _methods(table: pd.DataFrame) -> list[str]:
    return [method for method in METHOD_COLOURS if (table["method"] == method).any()]


def _map_bars(results: pd.DataFrame) -> Figure:
    rows = main_table(results)
    figure = Figure(figsize=(max(5.0, 1.7 * len(rows) + 1), 3.2), layout="constrained")
    axis = figure.subplots()
    methods = [method for method in METHOD_COLOURS if method in rows[0].methods]
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        spreads = [row.methods[method] for row in rows]
        axis.bar(
            np.arange(len(rows)) + (place - (len(methods) - 1) / 2) * width,
            [each.mean for each in spreads],
            0.92 * width,
            yerr=[0 if np.isnan(each.sd) else each.sd for each in spreads],
            color=METHOD_COLOURS[method],
            label=method,
            capsize=2,
        )
    for index, row in enumerate(rows):
        axis.hlines(
            row.chance.mean,
            index - 0.45,
            index + 0.45,
            color=_CHANCE_COLOUR,
            linestyle="--",
            linewidth=1.2,
            label="chance" if index == 0 else "_",
        )
    axis.set_xticks(range(len(rows)), [f"{row.query} → {row.target}" for row in rows])
    axis.set_ylabel("mAP")
    axis.set_ylim(0, 1)
    axis.grid(axis="x", visible=False)
    axis.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.14))
    return figure


def _map_by_round(results: pd.DataFrame) -> Figure | None:
    table = results[(results["metric"] == "map") & (results["group"] == "all")]
    if not (table.groupby("method")["round"].nunique() > 1).any():
        return None
    figure, panels = _panels(table)
    for axis, query, target in panels:
        direction = _of(table, query, target)
        for method in _methods(direction):
            curve = direction[direction["method"] == method].groupby("round")["value"]
            mean, sd = curve.mean(), curve.std(ddof=1).fillna(0)
            axis.plot(mean.index, mean, color=METHOD_COLOURS[method], label=method)
            axis.fill_between(
                mean.index, mean - sd, mean + sd, color=METHOD_COLOURS[method], alpha=0.15, lw=0
            )
        axis.set_title(f"{query} → {target}")
        axis.set_xlabel("round")
        axis.set_ylabel("mAP")
    panels[0][0].legend(loc="lower right")
    return figure


def _loss_curves(rounds: pd.DataFrame) -> Figure | None:
    answered = rounds.dropna(subset="mean_loss")
    if answered.empty:
        return None
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axis = figure.subplots()
    for method in _methods(answered):
        curve = answered[answered["method"] == method].groupby("round")["mean_loss"]
        axis.plot(curve.mean(), color=METHOD_COLOURS[method], label=method)
        axis.fill_between(
            curve.mean().index,
            curve.quantile(0.1),
            curve.quantile(0.9),
            color=METHOD_COLOURS[method],
            alpha=0.15,
            lw=0,
        )
    axis.set_xlabel("round")
    axis.set_ylabel("training loss\n(mean; band: 10th to 90th percentile of sites)")
    axis.legend(loc="upper right")
    return figure


def _margin_curves(margins: pd.DataFrame) -> Figure | None:
    """One line a finding, of the method that trains with all sites, or of the first one."""
    if margins.empty:
        return None
    methods = _methods(margins)
    method = "federated" if "federated" in methods else methods[0]
    table = margins[margins["method"] == method]
    first = table.iloc[0]
    table = table[(table["seed"] == first["seed"]) & (table["model_of"] == first["model_of"])]
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axis = figure.subplots()
    colours = mpl.colormaps["tab20"]
    for place, (finding, curve) in enumerate(table.groupby("finding", sort=False)):
        colour = colours(place % colours.N)
        axis.plot(curve["round"], curve["mu"], color=colour, label=shown(str(finding)))
    axis.set_title(f"{method}, seed {first['seed']}")
    axis.set_xlabel("round")
    axis.set_ylabel("margin")
    if table["finding"].nunique() <= 2 * colours.N:
        axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _precision_recall(results: pd.DataFrame) -> Figure | None:
    table = by_radius(results)
    if not (table["metric"] == "recall_in_radius").any():
        return None
    figure, panels = _panels(table)
    for axis, query, target in panels:
        direction = _of(table, query, target)
        methods = _methods(direction)
        numbered = [name for name in ("federated", *methods) if name in methods][:1]
        for method in methods:
            curve = (
                direction[direction["method"] == method]
                .pivot_table(index="radius_bits", columns="metric", values="value", aggfunc="mean")
                .reindex(columns=["recall_in_radius", "precision_in_radius"])
            )
            axis.plot(
                curve["recall_in_radius"],
                curve["precision_in_radius"],
                marker=".",
                markersize=3,
                color=METHOD_COLOURS[method],
                label=method,
            )
            ticks = curve.loc[
                [radius_from_kappa(kappa, int(curve.index.max())) for kappa in KAPPAS]
            ]
            axis.plot(
                ticks["recall_in_radius"],
                ticks["precision_in_radius"],
                "o",
                markersize=4,
                markerfacecolor="white",
                color=METHOD_COLOURS[method],
            )
            if method in numbered:
                for kappa, point in zip(KAPPAS, ticks.to_numpy(), strict=True):
                    axis.annotate(
                        f"{kappa:g}", point, (0, 5), textcoords="offset points", fontsize=6
                    )
        axis.set_title(f"{query} → {target}")
        axis.set_xlabel("recall")
        axis.set_ylabel("precision")
        axis.set_xlim(0, 1.02)
        axis.set_ylim(0, 1.02)
    panels[0][0].legend(loc="lower right")
    return figure


def _group_bars(results: pd.DataFrame, attribute: str) -> Figure | None:
    table = final_round(results)
    table = table[table["group"].str.startswith(f"{attribute}=")]
    if table[table["metric"] == "map"].empty:
        return None
    names = list(dict.fromkeys(table["group"]))
    figure, panels = _panels(table, width=3.4, height=0.9 + 0.24 * len(names))
    for axis, query, target in panels:
        direction = _of(table, query, target)
        methods = _methods(direction)
        height = 0.8 / len(methods)
        for place, method in enumerate(methods):
            means = (
                direction[(direction["method"] == method) & (direction["metric"] == "map")]
                .groupby("group")["value"]
                .mean()
                .reindex(names)
            )
            axis.barh(
                np.arange(len(names)) + ((len(methods) - 1) / 2 - place) * height,
                means,
                0.9 * height,
                color=METHOD_COLOURS[method],
                label=method,
            )
        chance = direction[direction["metric"] == "chance_map"].groupby("group")["value"].mean()
        for index, level in enumerate(chance.reindex(names)):
            axis.vlines(level, index - 0.45, index + 0.45, color=_CHANCE_COLOUR, linestyle="--")
        axis.set_yticks(range(len(names)), [shown(name.split("=", 1)[1]) for name in names])
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_xlabel("mAP (dashed: chance)")
        axis.set_title(f"{query} → {target}")
        axis.grid(axis="y", visible=False)
    panels[0][0].legend(fontsize=7, loc="lower left")
    return figure
