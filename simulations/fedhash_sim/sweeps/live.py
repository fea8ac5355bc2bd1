"""What a sweep shows while it works: a table of its points, or a line a cell without a terminal.

>>> with live_points(studies, folders, None, console) as live:
...     live.done(cell)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pandas as pd
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from fedhash_sim.cell_workers import Cell
from fedhash_sim.progress import Progress
from fedhash_sim.results import read_results
from fedhash_sim.run_folder import RunFolder
from fedhash_sim.settings import ResolvedStudy
from fedhash_sim.sweeps.choice import figure
from fedhash_sim.sweeps.settings import Select

__all__ = ["LivePoints", "live_points"]


class LivePoints:
    """How far the points are, and their main figure so far."""

    def __init__(
        self,
        studies: Mapping[str, ResolvedStudy],
        folders: Mapping[str, RunFolder],
        select: Select | None,
        lines: Console | None,
    ) -> None:
        self._select = select
        self._metric = "macro_map" if select is None else select.metric
        self._lines = lines
        self._studies = studies
        self._folders = folders
        self._news = dict.fromkeys(studies, "")
        self._figures = dict.fromkeys(studies, "")
        self._done = dict.fromkeys(studies, 0)
        for name in studies:
            self._count(name)

    def told(self, cell: Cell, news: Progress) -> None:
        """A cell has finished a round."""
        self._news[cell.run.name] = f"{cell} {news.done}/{news.total}"

    def done(self, cell: Cell) -> None:
        """A cell has its results."""
        name = cell.run.name
        self._news[name] = ""
        self._count(name)
        if self._lines is not None:
            line = f"{name}: {cell}, {self._state(name)} cells, {self._figures[name]}"
            self._lines.print(line, markup=False, highlight=False, soft_wrap=True)

    def diverged(self, cell: Cell, reason: str) -> None:
        """The training of a cell has diverged."""
        name = cell.run.name
        self._news[name] = f"{cell} diverged"
        if self._lines is not None:
            line = f"{name}: {cell} diverged: {reason}"
            self._lines.print(line, markup=False, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """Points at work first, then those that are done, then those that wait."""
        table = Table(box=None, header_style="dim", pad_edge=False)
        table.add_column("point", overflow="fold")
        table.add_column("cells", justify="right")
        table.add_column(f"{self._metric} so far", justify="right")
        table.add_column("", style="dim")
        for name in sorted(self._studies, key=lambda n: (not self._news[n], not self._done[n])):
            row = (name, self._state(name), self._figures[name], self._news[name])
            table.add_row(*map(escape, row))
        return table

    def _state(self, name: str) -> str:
        settings = self._studies[name].settings
        return f"{self._done[name]}/{len(settings.methods) * len(settings.seeds)}"

    def _count(self, name: str) -> None:
        study, folder, select = self._studies[name], self._folders[name], self._select
        self._done[name] = folder.cells_done(study)
        methods = study.settings.methods
        method = "federated" if "federated" in methods else methods[0]
        direction = None
        if select is not None:
            method, direction = select.method, select.direction
        cells = [folder.cell(method, seed) for seed in study.settings.seeds]
        tables = [read_results(each.path) for each in cells if each.is_done]
        if tables:
            found = figure(pd.concat(tables), self._metric, method, direction)
            self._figures[name] = f"{method} {found}"


@contextmanager
def live_points(
    studies: Mapping[str, ResolvedStudy],
    folders: Mapping[str, RunFolder],
    select: Select | None,
    console: Console,
) -> Iterator[LivePoints]:
    """Show points while their cells are run."""
    live = LivePoints(studies, folders, select, None if console.is_terminal else console)
    if not console.is_terminal:
        yield live
        return
    with Live(get_renderable=live.table, console=console, refresh_per_second=2):
        yield live
