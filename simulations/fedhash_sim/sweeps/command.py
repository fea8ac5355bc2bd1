"""`fedhash-sim sweep`: many variants of one study."""

from __future__ import annotations

import os
import shlex
import sys
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedhash.errors import ConfigurationError, Problem
from fedhash_sim.terminal import AsJson, err_console, out_console, print_json, print_table, told

if TYPE_CHECKING:
    from fedhash_sim.sweeps.points import Sweep
    from fedhash_sim.sweeps.tables import SweepRow

__all__ = ["sweep_command"]


def sweep_command(
    sweep: Annotated[Path, typer.Argument(help="The sweep file.", metavar="SWEEP.yaml")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one value of the study of every point: seeds=[0], round.rounds=4. "
            "May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The sweep's folder; default: runs/<name of the sweep>.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Cells that train at once; default: one a core."),
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(min=0, help="Start no further cell while the workers hold more."),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Move each point's earlier run to <point>.previous (or -2, ...)."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and list all points, train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study with every combination of a grid of settings, or go on with it."""
    console = err_console if as_json else out_console
    again = "again without --replace" if replace else "again"
    with told(f"interrupted; run the same command {again}, it goes on where it stopped"):
        from fedhash_sim.run_folder import explained
        from fedhash_sim.sweeps.data_check import check_data
        from fedhash_sim.sweeps.points import read_sweep
        from fedhash_sim.sweeps.running import check_is_sweep, run_sweep
        from fedhash_sim.sweeps.tables import sweep_rows

        if memory_gb is not None and not Path("/proc/self/statm").exists():
            reason = "there is no /proc here, so nobody can tell what a worker holds; leave it out"
            raise ConfigurationError([Problem(Path("--memory-gb"), None, reason)])
        read = read_sweep(sweep, changes or [])
        folder = out or Path("runs") / read.settings.name
        if dry_run:
            with explained(folder):
                check_is_sweep(read, folder, replace=replace)
            check_data(read, [*read.points, *read.tests], err_console)
            _show_plan(read, folder, as_json=as_json)
            return
        winners = run_sweep(
            read,
            folder,
            workers=workers or os.cpu_count() or 1,
            memory_bytes=inf if memory_gb is None else memory_gb * 1e9,
            replace=replace,
            command=shlex.join(["fedhash-sim", *sys.argv[1:]]),
            console=console,
        )
        rows = sweep_rows(folder, [each.test for each in winners] or read.points)
        if as_json:
            print_json(
                {
                    "sweep": str(folder),
                    "rows": [each.as_json() for each in rows],
                    "chosen": [
                        {"point": each.search.name, "figure": each.figure.as_json()}
                        for each in winners
                    ],
                }
            )
            return
        _show_rows(read, rows)
        out_console.print(
            f"sweep folder: {folder} (sweep.md, sweep.csv, a run folder for each point)",
            highlight=False,
            soft_wrap=True,
        )


def _show_plan(sweep: Sweep, folder: Path, *, as_json: bool) -> None:
    from fedhash_sim.sweeps.running import check_folders

    points = (*sweep.points, *sweep.tests)  # those that share a folder too
    done = check_folders(points, folder)
    if as_json:
        plan = [
            {
                "point": point.name,
                "choices": dict(point.choices),
                "methods": list(point.study.settings.methods),
                "seeds": list(point.study.settings.seeds),
                "cells done": done[point.name],
                "if chosen": point in sweep.tests,
            }
            for point in points
        ]
        print_json({"sweep": sweep.settings.name, "points": plan})
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("point", "methods", "seeds", "cells done", ""):
        table.add_column(heading, overflow="fold")
    for point in points:
        settings = point.study.settings
        cells = f"{done[point.name]}/{len(settings.methods) * len(settings.seeds)}"
        row = (point.name, ", ".join(settings.methods), ", ".join(map(str, settings.seeds)), cells)
        table.add_row(*map(Text, row), "if chosen" if point in sweep.tests else "")
    print_table(table)
    out_console.print("Nothing was trained: leave out --dry-run to start.")


def _show_rows(sweep: Sweep, rows: list[SweepRow]) -> None:
    table = Table(box=None, header_style="dim", pad_edge=False)
    axes = tuple(sweep.settings.grid)
    for heading in (*axes, "method", "direction", "mAP", "chance", "by finding", "chance"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = (
            *(row.point.choices[axis] for axis in axes),
            row.method,
            f"{row.query} → {row.target}",
            *(str(of[m]) for m in ("map", "macro_map") for of in (row.figures, row.chance)),
        )
        table.add_row(*map(Text, cells))
    queries = ", ".join(dict.fromkeys(row.point.queries for row in rows))
    out_console.print(f"[bold]{sweep.settings.name}[/], queries of {queries}")
    print_table(table)
