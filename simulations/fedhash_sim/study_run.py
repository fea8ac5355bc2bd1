"""A whole comparison: data, cells in parallel, tables, archives and the report.

>>> run_study(study, Path("runs/demo"), workers=2, replace=False, command="...", console=console)
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from fedhash import __version__
from fedhash.errors import FedhashError, ProtocolError
from fedhash.models.layout import Layout
from fedhash_sim.cells import cell_name, run_cell
from fedhash_sim.consortium import (
    Consortium,
    assign_roles,
    build_consortium,
    write_partition,
)
from fedhash_sim.progress import Progress, Show, live_progress
from fedhash_sim.report import write_report
from fedhash_sim.run_folder import RunFolder, explained
from fedhash_sim.settings import PhantomSource, ResolvedStudy
from fedhash_sim.sources import load_pool

__all__ = ["describe", "plan_study", "run_study"]

_SHOWN_PROBLEMS = 5
_POLL_S = 0.1  # how often the bars move


def run_study(
    study: ResolvedStudy,
    path: Path,
    *,
    workers: int,
    replace: bool,
    command: str,
    console: Console,
) -> RunFolder:
    """Run what is left of a study and write its tables and report.

    Args:
        study: The comparison.
        path: The run folder; an unfinished run of the same study goes on.
        workers: Cells that train at the same time, one thread each.
        replace: Move an earlier run aside first.
        command: The command line, for the report.
        console: Where progress is shown.

    Raises:
        FedhashError: The study cannot be run; what is finished stays and is not run again.
    """
    folder = RunFolder.open(path, study, replace=replace)
    with explained(path), folder.locked():
        _run_in(folder, study, workers, command, console)
    return folder


def _run_in(
    folder: RunFolder, study: ResolvedStudy, workers: int, command: str, console: Console
) -> None:
    settings = study.settings
    consortia = {}
    for seed in settings.seeds:
        with console.status(f"preparing the studies of seed {seed}"):
            consortia[seed] = build_consortium(study, seed, folder.data(seed))
    for line in _data_problems(consortia):
        console.print(line, markup=False, highlight=False)
    write_partition(folder.path / "partition.csv", consortia, study.agreement.findings)
    about = describe(study, consortia) | {"command": command}
    (folder.path / "run.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    del consortia  # the workers read their own
    open_cells = [
        (method, seed)
        for seed in settings.seeds
        for method in settings.methods
        if not folder.cell(method, seed).is_done
    ]
    _run_cells(folder.path, open_cells, workers, console)
    folder.collect(settings.methods, settings.seeds)
    with console.status("drawing the report"):
        write_report(folder.path)


def _data_problems(consortia: Mapping[int, Consortium]) -> list[str]:
    """The first of what was left out; all of it stands in run.json and in the report."""
    first = next(iter(consortia.values()))
    lines: list[str] = []
    for each in (first.problems, _notes(consortia)):
        lines += each[:_SHOWN_PROBLEMS]
        if len(each) > _SHOWN_PROBLEMS:
            lines.append(f"... and {len(each) - _SHOWN_PROBLEMS} more, see run.json")
    if first.without_consent:
        lines.append(f"{first.without_consent} studies are left out for want of consent")
    return lines


def _notes(consortia: Mapping[int, Consortium]) -> list[str]:
    return [f"seed {seed}: {note}" for seed, each in consortia.items() for note in each.roles.notes]


def plan_study(study: ResolvedStudy) -> dict[str, Any]:
    """What a run would do: the data is loaded, split and dealt, nothing is prepared or trained.

    Returns:
        JSON-able facts, and under `seeds` one entry for each seed with its sites.

    Raises:
        FedhashError: The study cannot be run with one of its seeds.
    """
    settings = study.settings
    seeds: list[dict[str, Any]] = []
    with TemporaryDirectory() as scratch:
        for seed in settings.seeds:
            if not seeds or isinstance(settings.data, PhantomSource):
                pool = load_pool(study, seed, Path(scratch))
            roles = assign_roles(study, pool, seed)
            seeds.append(
                {
                    "seed": seed,
                    "training studies": {site: len(ids) for site, ids in roles.training.items()},
                    "database studies": {site: len(ids) for site, ids in roles.database.items()},
                    "public studies": len(roles.public),
                    "queries": len(roles.queries),
                    "notes": list(roles.notes),
                }
            )
    model = study.build_model(settings.seeds[0])
    return {
        "study": settings.name,
        "methods": list(settings.methods),
        "cells": len(settings.seeds) * len(settings.methods),
        "rounds": {method: each.rounds for method, each in study.round_of.items()},
        "model parameters": Layout.of(model).size,
        "held-out database": settings.evaluation.held_out_database,
        "seeds": seeds,
        "rows with problems": list(pool.problems),
        "studies without consent": pool.without_consent,
    }


def describe(study: ResolvedStudy, consortia: dict[int, Consortium]) -> dict[str, Any]:
    """What the report and `run.json` say of a study."""
    settings = study.settings
    first = consortia[settings.seeds[0]]
    model = study.build_model(settings.seeds[0])
    patients = {p for site in first.sites for p in first.training(site).patient_ids}
    held_out = settings.evaluation.held_out_database
    federated = study.round_of.get("federated")  # the one method with anything to hide
    facts = {
        "sites": len(first.sites),
        "training patients": len(patients),
        "training studies": len(first.training(*first.sites)),
        "database studies": len(first.database(*first.sites)),
        "queries": len(first.queries()),
        "public studies": len(first.roles.public),
        "findings": len(study.agreement.findings),
        "code bits": study.agreement.code_bits,
        "model parameters": Layout.of(model).size,
        "rounds": study.round.rounds,
        "seeds": len(settings.seeds),
    }
    return {
        "study": settings.name,
        "version": __version__,
        "facts": {name: f"{value:,}" for name, value in facts.items()},
        "seeds": list(settings.seeds),
        "methods": list(settings.methods),
        "engine": settings.engine,
        "aggregation": federated.aggregation if federated else None,
        "privacy": {
            method: each.privacy.model_dump()
            | {
                "steps": each.learning.local_steps,
                "statistics": each.margin_schedule and each.margin_schedule.noise_multiplier,
            }
            for method, each in study.round_of.items()
        },
        "queries": f"{settings.evaluation.queries} split, patients that no site trained on",
        "database": f"held out, {held_out:.0%} of the training patients"
        if held_out
        else "the studies that were trained on",
        "ranking": "the whole ranking counts"
        if settings.evaluation.depth is None
        else f"the first {settings.evaluation.depth} ranks count",
        "problems": list(first.problems),
        "notes": _notes(consortia),
        "without_consent": first.without_consent,
    }


def _run_cells(run: Path, cells: Sequence[tuple[str, int]], workers: int, console: Console) -> None:
    with live_progress([cell_name(*cell) for cell in cells], console) as show:
        if workers == 1 or len(cells) < 2:
            for method, seed in cells:
                run_cell(run, method, seed, show)
            return
        # Not forked: torch's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        news: SimpleQueue[Progress] = context.SimpleQueue()
        with ProcessPoolExecutor(
            min(workers, len(cells)), context, initializer=_start_worker, initargs=(news,)
        ) as pool:
            try:
                with _ctrl_c_held_back():
                    futures = [pool.submit(_work, run, *cell) for cell in cells]
                _follow(futures, news, show)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Processes started here never see Ctrl-C, which a terminal sends to all: we end them.

    A signal mask outlives the start of a program, so it holds from a worker's first moment.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(futures: Sequence[Future[str | None]], news: SimpleQueue[Progress], show: Show) -> None:
    """Show the news until all cells are done; the first failure ends the run."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        while not news.empty():
            show(news.get())
        for future in done:
            try:
                failure = future.result()
            except BrokenProcessPool as error:
                raise ProtocolError(
                    "a worker was killed, perhaps for want of memory; run the same command again "
                    "with fewer --workers, it goes on where it stopped"
                ) from error
            if failure:
                raise ProtocolError(failure)


_news: SimpleQueue[Progress] | None = None


def _start_worker(news: SimpleQueue[Progress]) -> None:
    global _news  # noqa: PLW0603 - a pool hands its workers a queue in no other way
    _news = news
    os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] = "1"  # it prints pages when we end a worker
    parent = multiprocessing.parent_process()
    if parent is None:
        raise ProtocolError("a worker needs a parent process to work for")
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A killed parent ends no workers: they watch it, so that no cell is trained twice at once."""
    connection.wait([parent])
    os._exit(1)


def _work(run: Path, method: str, seed: int) -> str | None:
    """Run a cell in a worker; errors return as text, since not every error can be pickled."""
    if _news is None:
        raise ProtocolError("a worker was started without a queue for its news")
    try:
        run_cell(run, method, seed, _news.put)
    except FedhashError as error:
        return f"{cell_name(method, seed)}: {error}"
    return None
