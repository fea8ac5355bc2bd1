"""One process trains a run at a time: two would write each other's checkpoints.

The lock also tells whether the process lives: the system takes it back when the process dies.

    >>> with training(folder / "run-7"):
    ...     is_training(folder / "run-7")
    True
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path

from fedhash.errors import CheckpointError, StorageError

__all__ = ["is_training", "training"]

_NAME = "training.lock"
_LONGEST_WAIT_S = 20.0  # whoever looks holds it for a moment; a process that was ended, for seconds
_POLL_S = 0.1


@contextmanager
def training(run_folder: Path, longest_wait_s: float = _LONGEST_WAIT_S) -> Iterator[None]:
    """Hold the lock of a run.

    Raises:
        CheckpointError: Another process trains this run.
        StorageError: The operating system refuses the file.
    """
    deadline = time.monotonic() + longest_wait_s
    try:
        run_folder.mkdir(parents=True, exist_ok=True)
        lock = (run_folder / _NAME).open("w")
    except OSError as error:
        raise StorageError(error, run_folder) from error
    with lock:
        while True:
            try:
                flock(lock, LOCK_EX | LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"{run_folder} is being trained by another process; let it end, or stop it"
                    ) from error
            time.sleep(_POLL_S)
        yield


def is_training(run_folder: Path) -> bool:
    """Whether a living process holds the lock.

    Raises:
        StorageError: The operating system refuses the file.
    """
    try:
        with (run_folder / _NAME).open() as lock:
            try:
                flock(lock, LOCK_SH | LOCK_NB)
            except BlockingIOError:
                return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(error, run_folder) from error
    return False
