"""`fedhash-sim compare`: several runs or sweeps in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from fedhash_sim.terminal import AsJson, out_console, print_json, print_table, told

__all__ = ["compare_command"]


def compare_command(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs or sweeps.", metavar="RUN...")
    ],
    metric: Annotated[
        Literal["map", "macro_map"], typer.Option(help="Which figure.")
    ] = "macro_map",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Compare all methods with this one of the first run; default: each with its like.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs with the first one, seed by seed."""
    with told():
        from fedhash_sim.comparison import compare
        from fedhash_sim.run_folder import explained

        with explained(runs[0]):
            rows = compare(runs, metric, against)
        if as_json:
            print_json(
                {"metric": metric, "against": against, "rows": [row.as_json() for row in rows]}
            )
            return
        numbers = {run: str(n) for n, run in enumerate(dict.fromkeys(row.run for row in rows), 1)}
        for run, number in numbers.items():
            out_console.print(f"{number}  {run}", markup=False, highlight=False, soft_wrap=True)
        table = Table(box=None, header_style="dim", pad_edge=False)
        for heading in ("", "method", "direction", metric, "chance", "difference", "p"):
            table.add_column(heading, overflow="fold")
        for row in rows:
            difference = row.difference
            cells = (
                numbers[row.run],
                row.method,
                f"{row.query} → {row.target}",
                str(row.figure),
                str(row.chance),
                "" if difference is None else str(difference),
                "" if difference is None or difference.p is None else f"{difference.p:.2g}",
            )
            table.add_row(*map(Text, cells))
        print_table(table)
        first = "1" if against is None else f"{against} of 1"
        seeds = max(row.figure.seeds for row in rows)
        out_console.print(
            f"difference: from {first}, paired by seed ({seeds} seeds), "
            "95 % interval; p: paired t-test, two-sided, not corrected for the number of rows",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
