"""Cells in worker processes: one queue of cells, whatever runs they belong to.

1. A worker is a spawned process: torch's threads do not survive a fork.
2. The first failure ends all work; what is done stays, and cells go on where they stopped. Who asks
   to hear of cells whose training diverges gets the others done.
3. No further cell is started while the workers hold more memory than is allowed; one always runs.

    >>> run_cells([Cell(Path("runs/demo"), "federated", 0)], 2, lambda cell, news: print(news))
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from multiprocessing import connection
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from fedhash.errors import DivergedError, FedhashError, ProtocolError
from fedhash_sim.cells import cell_name, run_cell
from fedhash_sim.progress import Progress

__all__ = ["Cell", "Told", "run_cells"]

_POLL_S = 0.1  # how often the bars move


@dataclass(frozen=True, slots=True)
class Cell:
    """One method under one seed of one run folder."""

    run: Path
    method: str
    seed: int

    def __str__(self) -> str:
        return cell_name(self.method, self.seed)


Told = Callable[[Cell, Progress], None]


def run_cells(
    cells: Sequence[Cell],
    workers: int,
    told: Told,
    *,
    memory_bytes: float = inf,
    done: Callable[[Cell], None] = lambda _: None,
    diverged: Callable[[Cell, str], None] | None = None,
) -> None:
    """Run cells, the first ones first, several at a time.

    Args:
        cells: Their run folders have a configuration and prepared studies.
        workers: Cells that train at the same time, one thread each; 1 trains in this process.
        told: Hears of every round.
        memory_bytes: A further cell waits while the workers hold more; Linux tells how much.
        done: Hears of every cell that has its results.
        diverged: Hears of every cell whose training diverges, with the reason; without it that ends
            all work.

    Raises:
        FedhashError: A cell cannot be finished, or a worker was killed.
    """

    def finish(cell: Cell, failure: _Failure | None) -> None:
        if failure is None:
            done(cell)
        elif failure.diverged and diverged is not None:
            diverged(cell, failure.reason)
        else:
            raise ProtocolError(f"{cell.run}: {cell}: {failure.reason}")

    if workers == 1 or len(cells) < 2:
        _run_here(cells, told, finish)
        return
    context = multiprocessing.get_context("spawn")
    news: SimpleQueue[tuple[Cell, Progress]] = context.SimpleQueue()
    with ProcessPoolExecutor(
        min(workers, len(cells)), context, initializer=_start_worker, initargs=(news,)
    ) as pool:
        waiting, running = deque(cells), dict[Future[_Failure | None], Cell]()
        try:
            while waiting or running:
                while waiting and _may_start(len(running), workers, memory_bytes):
                    cell = waiting.popleft()
                    with _ctrl_c_held_back():  # a submission may start a process
                        running[pool.submit(_work, cell)] = cell
                ended, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                while not news.empty():
                    told(*news.get())
                for future in ended:
                    finish(running.pop(future), future.result())
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ProtocolError(
                    "a worker was killed, perhaps for want of memory; run the same command again "
                    "with fewer --workers, it goes on where it stopped"
                ) from error
            raise


def _run_here(
    cells: Sequence[Cell], told: Told, finish: Callable[[Cell, _Failure | None], None]
) -> None:
    for cell in cells:
        failure = None
        try:
            run_cell(cell.run, cell.method, cell.seed, partial(told, cell))
        except DivergedError as error:
            failure = _Failure(str(error), diverged=True)
        finish(cell, failure)


def _may_start(running: int, workers: int, memory_bytes: float) -> bool:
    if running == 0:
        return True
    return running < workers and (memory_bytes == inf or _resident_bytes() <= memory_bytes)


def _resident_bytes() -> int:
    """What the workers hold in memory, of proc(5); one that has just ended holds nothing."""
    pages = 0
    for process in multiprocessing.active_children():
        try:
            pages += int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
        except FileNotFoundError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


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


_news: SimpleQueue[tuple[Cell, Progress]] | None = None


def _start_worker(news: SimpleQueue[tuple[Cell, Progress]]) -> None:
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


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a cell was not finished; errors cross processes as text, since not all can be pickled."""

    reason: str
    diverged: bool


def _work(cell: Cell) -> _Failure | None:
    """Run a cell in a worker."""
    news = _news
    if news is None:
        raise ProtocolError("a worker was started without a queue for its news")
    try:
        run_cell(cell.run, cell.method, cell.seed, lambda progress: news.put((cell, progress)))
    except FedhashError as error:
        return _Failure(str(error), isinstance(error, DivergedError))
    return None
