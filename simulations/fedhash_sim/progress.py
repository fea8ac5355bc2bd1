"""What a long run shows while it works: one bar a cell, on a terminal; one line a step elsewhere.

>>> with live_progress(["federated, seed 0"]) as show:
...     show(Progress("federated, seed 0", done=3, total=40, note="loss 1.21"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

__all__ = ["Progress", "Show", "live_progress"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one cell is.

    Attributes:
        cell: The cell's name.
        done: Steps that are finished.
        total: Steps in all.
        note: The latest news.
    """

    cell: str
    done: int
    total: int
    note: str = ""


Show = Callable[[Progress], None]


@contextmanager
def live_progress(cells: Sequence[str], console: Console) -> Iterator[Show]:
    """Show the progress of named cells; without a terminal, a line at every tenth of a cell."""
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Bars(*columns, console=console) as bars:
        tasks = {cell: bars.add_task(cell, total=None, note="waiting") for cell in cells}

        def show(progress: Progress) -> None:
            bars.update(
                tasks[progress.cell],
                completed=progress.done,
                total=progress.total,
                note=escape(progress.note),  # names of sites stand in it as they are
            )

        yield show


def _plain(console: Console) -> Show:
    shown: dict[str, int] = {}

    def show(progress: Progress) -> None:
        tenth = 10 * progress.done // max(1, progress.total)
        if shown.get(progress.cell) != tenth:
            shown[progress.cell] = tenth
            console.print(
                f"{progress.cell}: {progress.done}/{progress.total} {progress.note}".rstrip(),
                markup=False,
            )

    return show
