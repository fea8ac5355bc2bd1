"""What a folder is: a run's, a sweep's or somebody's own; and where an earlier run is moved.

Only folders that a run or a sweep has made are worked in. A `study.yaml` or a `sweep.yaml` alone
does not make one: those are the natural names of a user's own files.

    >>> is_run(Path("runs/demo")), is_run(Path("my_project"))
    (True, False)
    >>> place_for_earlier(Path("runs/demo"))
    PosixPath('/data/runs/demo.previous')
"""

from __future__ import annotations

import os
from itertools import chain, count
from pathlib import Path

from fedhash.errors import CheckpointError

__all__ = [
    "INPUTS",
    "LOCK",
    "PREVIOUS",
    "check_run",
    "check_sweep",
    "is_empty",
    "is_run",
    "is_sweep",
    "place_for_earlier",
]

INPUTS = "inputs.json"  # of every run folder, from its first moment
LOCK = ".lock"  # of every folder that a process has worked in
PREVIOUS = ".previous"  # ends the name of the folder that an earlier run is moved to


def is_run(path: Path) -> bool:
    """Whether a run has made the folder."""
    return (path / "study.yaml").is_file() and (path / INPUTS).is_file()


def is_sweep(path: Path) -> bool:
    """Whether a sweep has made the folder, or begun to."""
    return (path / LOCK).is_file() and not (path / "study.yaml").exists()


def is_empty(path: Path) -> bool:
    """Whether there is nothing at `path`, or nothing in it."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def check_run(path: Path) -> None:
    """Hold `path` for a run folder.

    Raises:
        CheckpointError: It is none.
    """
    if is_run(path):
        return
    if is_sweep(path):
        points = sorted(each.parent.name for each in path.glob(f"*/{INPUTS}"))
        raise CheckpointError(
            f"{path} is no run folder but that of a sweep; name one of its points"
            + (f", such as {path / points[0]}" if points else "")
        )
    if is_empty(path):
        raise CheckpointError(
            f"{path} is no run folder (there is nothing in it); make one with fedhash-sim run "
            f"STUDY.yaml --out {path}"
        )
    if not path.is_dir():
        raise CheckpointError(f"{path} is no run folder but a file; choose another --out")
    raise CheckpointError(
        f"{path} is no run folder (it is not empty, and lacks study.yaml or {INPUTS}); name that "
        "of a run, or another --out"
    )


def check_sweep(path: Path) -> None:
    """Hold `path` for a folder in which a sweep may work.

    Raises:
        CheckpointError: It holds a run, or something else that no sweep has made.
    """
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; choose another --out")
    if is_run(path):
        raise CheckpointError(f"{path} is the folder of a single run; choose another --out")
    if not is_empty(path) and not is_sweep(path):
        raise CheckpointError(
            f"{path} is not empty and no folder of a sweep (it lacks {LOCK}, which a copy needs "
            "too); choose another --out"
        )


def place_for_earlier(path: Path) -> Path:
    """Where a run in `path` would be moved: the first free one of X.previous, X.previous-2, ..."""
    whole = path.resolve()
    ends = chain([PREVIOUS], (f"{PREVIOUS}-{number}" for number in count(2)))
    places = (whole.with_name(whole.name + end) for end in ends)
    return next(place for place in places if not os.path.lexists(place))
