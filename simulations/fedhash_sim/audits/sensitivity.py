"""`fedhash-sim audit sensitivity`: does clipping bound what one patient changes?

>>> fedhash-sim audit sensitivity --out sensitivity.png
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedhash_sim.terminal import AsJson, err_console, print_json, print_table, told

if TYPE_CHECKING:
    from fedhash.evaluation.sensitivity import Sensitivity

__all__ = ["sensitivity"]


def sensitivity(
    losses: Annotated[
        list[str] | None, typer.Option("--loss", help="Default: every loss. May be repeated.")
    ] = None,
    patients: Annotated[
        list[int] | None,
        typer.Option(
            min=2, max=4096, help="Patients in the batch; default: 16, 64, 256. May be repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed starts from other batches.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Draw a plot into this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove one adversarial patient and measure how far the clipped sum moves, in units of C.

    Exit code 1: an accepted loss moved by more than C.
    """
    with told():
        from fedhash.evaluation.sensitivity import AUDITED_LOSSES, audit_sensitivity
        from fedhash_sim.run_folder import explained

        names = losses or list(AUDITED_LOSSES)
        if unknown := sorted(set(names) - set(AUDITED_LOSSES)):
            raise typer.BadParameter(
                f"no loss {unknown[0]!r} is audited, only {', '.join(AUDITED_LOSSES)}"
            )
        found = [
            audit_sensitivity(name, patients=count, seed=seed)
            for name in names
            for count in patients or (16, 64, 256)
        ]
        if out is not None:
            with explained(out):
                _draw_sensitivity(found, out)
        if as_json:
            print_json([asdict(each) | {"holds": each.holds} for each in found])
        else:
            _print_sensitivity(found)
        if any(each.accepted and not each.holds for each in found):
            err_console.print("[bold red]An accepted loss moved by more than C.[/]")
            raise typer.Exit(1)


def _print_sensitivity(found: Sequence[Sensitivity]) -> None:
    table = Table(
        title="Largest change of the clipped sum when one patient leaves, in units of C",
        title_justify="left",
        title_style="bold",
    )
    for heading in ("loss", "under privacy", "patients", "change / C"):
        table.add_column(
            heading, justify="right" if heading in {"patients", "change / C"} else "left"
        )
    for each in found:
        change = f"{each.change_in_c:.3f}"
        table.add_row(
            each.loss,
            "accepted" if each.accepted else "refused",
            str(each.patients),
            change if each.holds else f"[red]{change}[/]",
        )
    print_table(table)


def _draw_sensitivity(found: Sequence[Sensitivity], path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from fedhash_sim.plots import PLOT_STYLE

    with mpl.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axis = figure.subplots()
        for loss in dict.fromkeys(each.loss for each in found):
            line = sorted(
                (each.patients, each.change_in_c, each.accepted)
                for each in found
                if each.loss == loss
            )
            axis.plot(
                [count for count, _, _ in line],
                [change for _, change, _ in line],
                marker="o",
                label=f"{loss} ({'accepted' if line[0][2] else 'refused'})",
            )
        axis.axhline(1, color="#6b7280", linestyle="--", label="C, what the noise is made for")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        counts = sorted({each.patients for each in found})
        axis.set_xticks(counts, map(str, counts), minor=False)
        axis.yaxis.set_major_formatter("{x:g}")  # the style has no formulas
        axis.yaxis.set_minor_formatter("")
        axis.set_xlabel("patients in the batch")
        axis.set_ylabel("change of the clipped sum / C")
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1))
        figure.savefig(path, format="png", bbox_inches="tight")
