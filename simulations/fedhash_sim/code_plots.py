"""Pictures of the codes that a run's model makes: the code space, distances, and bits in use.

They show the sample that the cell of one method under the first seed kept
(`fedhash_sim.code_sample`): of `federated`, or else of the first method that releases a model.

Shape suffixes: n codes, b bits, K findings.

    >>> draw_code_plots(Path("runs/demo"))
    {'code_space': Path('runs/demo/plots/code_space.png'), ...}
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib as mpl
import matplotlib.lines
import matplotlib.patches
import numpy as np
from jaxtyping import Float64, Int8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedhash.codes import hamming_distances, unpack_signs
from fedhash.models.anchors import Anchors
from fedhash_sim.code_sample import CodedStudies, CodeSample
from fedhash_sim.plot_labels import shown
from fedhash_sim.plots import METHOD_COLOURS, panel_grid, save_pictures
from fedhash_sim.run_folder import RunFolder
from fedhash_sim.settings import Direction

__all__ = ["draw_code_plots", "principal_plane"]

_RELEVANT, _IRRELEVANT = "#0072B2", "#D55E00"
_SEVERAL, _NONE = "#6b7280", "#d1d5db"
_MOST_NAMED = 40


def draw_code_plots(run: Path) -> dict[str, Path]:
    """Draw the pictures of the run's main method; none if no method of it releases a model.

    Raises:
        DataError: The kept sample is damaged.
        FedhashError: The run's configuration is damaged.
    """
    folder, study = RunFolder.existing(run)
    seed = study.settings.seeds[0]
    for method in dict.fromkeys(("federated", *METHOD_COLOURS)):
        path = folder.cell(method, seed).path / "codes.safetensors"
        if path.is_file():
            sample = CodeSample.load(path)
            break
    else:
        return {}
    title = (
        f"{method}, seed {seed}: {len(sample.queries):,} of {sample.queries.of:,} queries, "
        f"{len(sample.database):,} of {sample.database.of:,} studies of the database"
    )
    drawings = {
        "code_space": partial(_code_space, sample, Anchors.build(study.agreement), title),
        "code_distances": partial(_distances, sample, study.directions, title),
        "bit_balance": partial(_bit_balance, sample.database, title),
    }
    return save_pictures(run / "plots", drawings)


def principal_plane(
    codes_nb: Int8[np.ndarray, "n b"],
) -> tuple[Float64[np.ndarray, " b"], Float64[np.ndarray, "2 b"], Float64[np.ndarray, " 2"]]:
    """Mean, the two directions of largest variance, and their share of all variance.

    A direction and its negative are equally good: the one whose largest entry is positive is taken.
    """
    mean = codes_nb.mean(axis=0)
    centred = codes_nb - mean
    variances, directions = np.linalg.eigh(centred.T @ centred)
    plane = directions[:, :-3:-1].T
    largest = np.abs(plane).argmax(axis=1)
    plane = plane * np.sign(plane[np.arange(2), largest])[:, None]
    total = variances.sum()
    return mean, plane, variances[:-3:-1] / total if total > 0 else np.zeros(2)


def _code_space(sample: CodeSample, anchors: Anchors, title: str) -> Figure:
    """One panel a modality, all on the same plane."""
    roles = ((sample.database, "o", 12), (sample.queries, "x", 14))
    modalities = list(sample.database.codes)
    everything = [unpack_signs(role.having(m)[0]) for role, _, _ in roles for m in modalities]
    mean, plane, shares = principal_plane(np.concatenate(everything))
    figure, axes = panel_grid(len(modalities), width=4.2, height=3.8)
    for axis, modality in zip(axes, modalities, strict=True):
        for role, marker, size in roles:
            codes, labels = role.having(modality)
            points = (unpack_signs(codes) - mean) @ plane.T
            colours = _colours(labels)
            axis.scatter(
                points[:, 0],
                points[:, 1],
                s=size,
                c=colours,
                marker=marker,
                alpha=0.6,
                linewidths=0.7,
            )
        _mark_anchors(axis, (anchors.matrix - mean) @ plane.T)
        axis.set_title(modality)
        axis.set_xlabel(f"first component ({shares[0]:.0%} of the variance)")
        axis.set_ylabel(f"second ({shares[1]:.0%})")
    figure.suptitle(title, fontsize=9)
    _name_colours(figure, anchors.findings)
    return figure


def _mark_anchors(axis: Axes, points: Float64[np.ndarray, "K 2"]) -> None:
    colours = [_colour(k) for k in range(len(points))]
    axis.scatter(
        points[:, 0],
        points[:, 1],
        s=90,
        marker="*",
        c=colours,
        edgecolors="black",
        linewidths=0.7,
    )


def _name_colours(figure: Figure, findings: Sequence[str]) -> None:
    named = [(_colour(k), shown(finding)) for k, finding in enumerate(findings)]
    if len(named) > _MOST_NAMED:
        named = []
    named += [(_SEVERAL, "several findings"), (_NONE, "none")]
    dots = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=each) for each, _ in named]
    dots += [
        mpl.lines.Line2D([], [], marker=marker, linestyle="", color="black", markerfacecolor=face)
        for marker, face in (("o", "black"), ("x", "black"), ("*", "white"))
    ]
    names = [*(name for _, name in named), "database", "query", "anchor"]
    figure.legend(dots, names, fontsize=6, loc="outside right center")


def _colours(labels_nK: Int8[np.ndarray, "n K"]) -> list[str]:
    """A study's colour: its only finding's, or that of several or of none."""
    positive = labels_nK == 1
    return [
        _NONE if count == 0 else _SEVERAL if count > 1 else _colour(int(first))
        for count, first in zip(positive.sum(axis=1), positive.argmax(axis=1), strict=True)
    ]


def _colour(k: int) -> str:
    colours = mpl.colormaps["tab20"]
    return mpl.colors.to_hex(colours(k % colours.N))


def _distances(sample: CodeSample, directions: Sequence[Direction], title: str) -> Figure:
    figure, axes = panel_grid(len(directions), width=3.1, height=2.5)
    for axis, direction in zip(axes, directions, strict=True):
        asks, asked_labels = sample.queries.having(direction.query)
        answers, labels = sample.database.having(direction.target)
        distances = hamming_distances(asks, answers)
        relevant = (asked_labels == 1).astype(np.float32) @ (labels == 1).T > 0
        code_bits = 8 * asks.shape[1]
        for pairs, colour in (
            (distances[relevant], _RELEVANT),
            (distances[~relevant], _IRRELEVANT),
        ):
            if pairs.size:
                shares = np.bincount(pairs, minlength=code_bits + 1) / pairs.size
                axis.stairs(
                    shares, np.arange(code_bits + 2) - 0.5, fill=True, alpha=0.45, color=colour
                )
        axis.set_title(f"{direction.query} → {direction.target}")
        axis.set_xlabel("Hamming distance, bits")
        axis.set_ylabel("share of the pairs")
    kinds = {"relevant": _RELEVANT, "not relevant": _IRRELEVANT}
    axes[0].legend(
        [mpl.patches.Patch(color=colour, alpha=0.45) for colour in kinds.values()],
        list(kinds),
        fontsize=7,
    )
    figure.suptitle(title, fontsize=9)
    return figure


def _bit_balance(database: CodedStudies, title: str) -> Figure:
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axis = figure.subplots()
    for modality in database.codes:
        codes, _ = database.having(modality)
        if len(codes):
            ones = np.sort((unpack_signs(codes) == 1).mean(axis=0))
            axis.plot(np.arange(1, len(ones) + 1), ones, marker=".", markersize=3, label=modality)
    axis.axhline(0.5, color=_SEVERAL, linestyle="--", linewidth=1)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("bits, sorted")
    axis.set_ylabel("share of studies with a 1")
    axis.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure
