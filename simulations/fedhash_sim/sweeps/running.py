"""Running the points of a sweep, each into a run folder of its own.

    runs/losses/
      sweep.yaml                                     the sweep file
      loss=csq,learning_rate=0.001,queries=val/      a run folder, as of `fedhash-sim run`
      sweep.csv sweep.md sweep.png                   all points

1. Patients are dealt as all points ask, those that a search may choose among them, before a folder
   is opened; and every point's data is prepared before a cell trains.
2. Points that read and deal the same data share the files of one preparation (hard links).
3. All cells stand in one queue. A finished point is not run again. One whose training
   diverges, as under too large a learning rate, stops no other; a search does not choose it.
4. A point's page takes seconds to draw and few are looked at: `fedhash-sim report` draws it.

>>> run_sweep(sweep, Path("runs/losses"), workers=2, command="...", console=Console())
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from fedhash.configuration import problem_at, resolved
from fedhash.durability import replace_file
from fedhash.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    DivergedError,
    FedhashError,
)
from fedhash_sim.cell_workers import Cell, run_cells
from fedhash_sim.folder_kinds import check_sweep
from fedhash_sim.results import read_results
from fedhash_sim.run_folder import RunFolder, explained
from fedhash_sim.settings import ResolvedStudy
from fedhash_sim.study_run import open_cells, prepare_run
from fedhash_sim.sweeps.choice import Winner, choose, figure, others
from fedhash_sim.sweeps.data_check import check_data, dealt_by
from fedhash_sim.sweeps.live import live_points
from fedhash_sim.sweeps.picture import draw_sweep
from fedhash_sim.sweeps.points import Point, Sweep
from fedhash_sim.sweeps.tables import sweep_rows, write_tables

__all__ = ["check_folders", "check_is_sweep", "run_sweep"]


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    workers: int,
    command: str,
    console: Console,
    memory_bytes: float = inf,
    replace: bool = False,
) -> tuple[Winner, ...]:
    """Run what is left of a sweep, and write its tables.

    Args:
        sweep: What `read_sweep` read.
        out: The sweep's folder; an unfinished sweep goes on.
        workers: Cells that train at the same time, one thread each.
        command: The command line, for the reports.
        console: Where progress is shown.
        memory_bytes: A further cell waits while the workers hold more.
        replace: Move earlier runs of the points aside first.

    Returns:
        Under `select` what was chosen.

    Raises:
        DivergedError: Points did, and none of their like could be chosen; the others are done.
        FedhashError: A point cannot be run; what is finished stays and is not run again.
    """
    with explained(out):
        check_is_sweep(sweep, out, replace=replace)
        out.mkdir(parents=True, exist_ok=True)
        with RunFolder(out).locked():
            # those of the test too, before the search
            done = {} if replace else check_folders([*sweep.points, *sweep.tests], out)
            if any(not done.get(each.name) for each in sweep.points):
                check_data(sweep, [*sweep.points, *sweep.tests], console)
            replace_file(out / "sweep.yaml", _text(sweep, out).encode())
            batch = _Batch(sweep, out, workers, command, console, memory_bytes, replace)
            diverged = batch.run(sweep.points)
            winners = _winners(sweep, out, diverged)
            tests = [each.test for each in winners]
            diverged |= batch.run(tests)
            trained = [e for e in (*sweep.points, *tests) if e.name not in diverged]
            write_tables(out, sweep.settings, trained, winners, diverged)
            if rows := sweep_rows(out, [each for each in tests or trained if each in trained]):
                draw_sweep(out, sweep.settings, rows)
            if lost := _lost(sweep, winners, diverged):
                raise DivergedError(
                    f"{len(lost)} points diverged, the others are done (see {out / 'sweep.md'}); "
                    f"{lost[0]}: {diverged[lost[0]]}"
                )
    return winners


def check_folders(points: Sequence[Point], out: Path) -> dict[str, int]:
    """How many cells of each point are done, by its name.

    Raises:
        CheckpointError: A point's folder holds another study's run.
    """
    return {each.name: RunFolder(out / each.name).cells_done(each.study) for each in points}


def check_is_sweep(sweep: Sweep, out: Path, *, replace: bool) -> None:
    """Its grid may have grown since; figures of another sweep would be lost.

    Raises:
        CheckpointError: The folder holds what no sweep has made, or another sweep and `replace` is
            not asked for.
    """
    check_sweep(out)
    if replace or not (out / "sweep.yaml").exists():
        return
    try:
        earlier = yaml.safe_load((out / "sweep.yaml").read_text(encoding="utf-8"))
        now = yaml.safe_load(_text(sweep, out))
        differ = [key for key in ("study", "set", "select") if earlier[key] != now[key]]
        if list(earlier["grid"]) != list(now["grid"]):
            differ.append("grid")
        else:
            differ += [
                f"grid.{axis}"
                for axis, choices in earlier["grid"].items()
                if not all(each in _pairs(now["grid"][axis]) for each in _pairs(choices))
            ]
    except (KeyError, TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{out / 'sweep.yaml'} is damaged ({error!r}); remove it and run the sweep again: what "
            "is done stays"
        ) from error
    if differ:
        raise CheckpointError(
            f"{out} holds another sweep: its {' and '.join(differ)} differ from what is asked now; "
            "choose another --out, or --replace"
        )


def _pairs(choices: Any) -> list[Any]:
    return list(choices.items()) if isinstance(choices, dict) else choices


def _text(sweep: Sweep, out: Path) -> str:
    return resolved(sweep.settings, relative_to=out.resolve())


def _winners(sweep: Sweep, out: Path, diverged: Container[str]) -> tuple[Winner, ...]:
    select = sweep.settings.select
    if select is None:
        return ()
    asked = (select.metric, select.method, select.direction)
    figures = [
        None if name in diverged else figure(read_results(out / name), *asked)
        for name in (each.name for each in sweep.points)
    ]
    return choose(sweep, figures)


def _lost(sweep: Sweep, winners: Sequence[Winner], diverged: Container[str]) -> list[str]:
    """The diverged points in whose place no search has chosen another."""
    select = sweep.settings.select
    if select is None:
        return [each.name for each in sweep.points if each.name in diverged]
    found = {others(each.search, select) for each in winners}
    unfound = [each for each in sweep.points if others(each, select) not in found]
    return [e.name for e in (*unfound, *(each.test for each in winners)) if e.name in diverged]


@dataclass(frozen=True)
class _Batch:
    """Runs points that do not wait for each other."""

    sweep: Sweep
    out: Path
    workers: int
    command: str
    console: Console
    memory_bytes: float
    replace: bool

    def run(self, points: Sequence[Point]) -> dict[str, str]:
        """Run what is left of them; the names of those that diverged, with the reason."""
        reasons: dict[Cell, str] = {}
        studies = {each.name: each.study for each in points}  # equal settings once
        with ExitStack() as locks:
            folders = {}
            for name, study in studies.items():
                folder = RunFolder.open(self.out / name, study, replace=self.replace)
                locks.enter_context(folder.locked())
                folders[name] = folder
            unfinished = [
                name
                for name, study in studies.items()
                if open_cells(folders[name], study)
                or not (self.out / name / "results.csv").exists()
            ]
            self._prepare({name: studies[name] for name in unfinished}, folders)
            cells = [c for name in unfinished for c in open_cells(folders[name], studies[name])]
            with live_points(studies, folders, self.sweep.settings.select, self.console) as live:

                def diverged(cell: Cell, reason: str) -> None:
                    reasons[cell] = reason
                    # tried again, it would go on from here and might end with hardly a round
                    shutil.rmtree(folders[cell.run.name].cell(cell.method, cell.seed).path)
                    live.diverged(cell, reason)

                run_cells(
                    cells,
                    self.workers,
                    live.told,
                    memory_bytes=self.memory_bytes,
                    done=live.done,
                    diverged=diverged,
                )
            told: dict[str, str] = {}
            for cell in cells:  # of a point its first cell, whichever worker was the first
                if cell in reasons:
                    told.setdefault(cell.run.name, f"{cell}: {reasons[cell]}")
            for name, study in studies.items():  # of the finished ones too: the cells are the truth
                if name not in told:
                    folders[name].collect(study.settings.methods, study.settings.seeds)
        return told

    def _prepare(self, studies: dict[str, ResolvedStudy], folders: dict[str, RunFolder]) -> None:
        first_with: dict[str, Path] = {}
        for name, study in studies.items():
            data = folders[name].path / "data"
            donor = first_with.setdefault(dealt_by(study), data)
            if donor != data:
                _share(donor, data)
            console = self.console if donor == data else Console(quiet=True)  # told once
            with self._blamed(name):
                prepare_run(folders[name], study, self.command, console)

    @contextmanager
    def _blamed(self, name: str) -> Iterator[None]:
        """Name the point whose data cannot be had, at the sweep's grid where that asks for it."""
        try:
            yield
        except ConfigurationError as error:
            at_grid = [
                problem_at(self.sweep.file, ("grid",), f"{name}: {each.message}")
                for each in error.problems
            ]
            raise ConfigurationError(at_grid) from error
        except FedhashError as error:
            raise DataError(f"{name}: {error}") from error


def _share(donor: Path, data: Path) -> None:
    """Give a run the prepared studies of another one; files are replaced, never changed."""
    if data.exists():
        return
    unfinished = data.with_name("data.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(donor, unfinished, copy_function=_link)
    unfinished.rename(data)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
