"""The picture of a partition: what each site trains on, a row a site.

From left to right: training patients by positive finding; patients and studies; the share of the
studies that has each modality.

>>> draw_partition(read_partition(run), read_holdings(run))
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedhash_sim.plot_labels import shown
from fedhash_sim.results import ANY_MODALITY

__all__ = ["draw_partition"]

_INK = "#1f2937"
_BARS = {"studies": ("#cbd5e1", 0.85), "patients": ("#0072B2", 0.45)}  # colour and height
_MOST_WIDE_ROWS = 40


def draw_partition(partition: pd.DataFrame, holdings: pd.DataFrame) -> Figure:
    """The first seed's.

    Args:
        partition: From :func:`fedhash_sim.results.read_partition`.
        holdings: From :func:`fedhash_sim.results.read_holdings`.
    """
    of_findings = _by_site(partition, "finding", "patients")
    studies = _by_site(holdings, "modality", "studies").loc[of_findings.index]
    patients = _by_site(holdings, "modality", "patients").loc[of_findings.index]
    sites, narrow = len(of_findings), len(of_findings) > _MOST_WIDE_ROWS
    row_in, font_pt = (0.13, 6) if narrow else (0.26, 7)
    widths_in = [0.42 * of_findings.shape[1], 2.2, 0.42 * (studies.shape[1] - 1)]
    figure = Figure(figsize=(2.6 + sum(widths_in), 1.5 + row_in * sites), layout="constrained")
    findings, amounts, modalities = figure.subplots(1, 3, sharey=True, width_ratios=widths_in)

    shades = np.sqrt(of_findings / max(1, of_findings.to_numpy().max()))
    _heat_map(findings, shades, "Blues", darkest=1.0)
    for (line, column), value in np.ndenumerate(of_findings.to_numpy()):
        if value:
            colour = "white" if shades.iat[line, column] > 0.5 else _INK
            at = {"ha": "center", "va": "center", "fontsize": font_pt}
            findings.text(column, line, f"{value:.0f}", color=colour, **at)
    findings.set_title("training patients")
    for name, table in (("studies", studies), ("patients", patients)):
        colour, height = _BARS[name]
        amounts.barh(range(sites), table[ANY_MODALITY], height, color=colour, label=name)
    amounts.grid(axis="y", visible=False)
    amounts.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    shares = studies.drop(columns=ANY_MODALITY).div(studies[ANY_MODALITY], axis=0)
    _heat_map(modalities, shares, "Greens", darkest=1.6)
    modalities.set_title("modalities")
    findings.set_yticks(range(sites), map(shown, of_findings.index), fontsize=font_pt + 1)
    return figure


def _by_site(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """A row a site, the columns in the order of the table."""
    first = table[table["seed"] == table["seed"].min()]
    wide = first.pivot_table(index="site", columns=column, values=value, fill_value=0)
    return wide[list(dict.fromkeys(first[column]))]


def _heat_map(axis: Axes, shades: pd.DataFrame, colours: str, darkest: float) -> None:
    """A cell a site and column, of shades from 0 to 1."""
    axis.imshow(shades, cmap=colours, vmin=0, vmax=darkest, aspect="auto")
    axis.hlines(np.arange(0.5, len(shades) - 1), -0.5, shades.shape[1] - 0.5, "white", lw=0.6)
    axis.set_xticks(range(shades.shape[1]), map(shown, shades.columns), rotation=40, ha="right")
    axis.grid(visible=False)
