"""Stamps of the files that a run's studies were read from, so that a changed one is noticed.

The manifest names its images and arrays; their content can change while the manifest stays.

    >>> write_stamps(Path("runs/demo/data/input_files.json"), pool.files)
    >>> changed_files(Path("runs/demo/data/input_files.json"))
    ['/archive/s17.png']
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from fedhash.errors import CheckpointError

__all__ = ["INPUT_FILES", "changed_files", "write_stamps"]

INPUT_FILES = "input_files.json"


def write_stamps(path: Path, files: Iterable[Path]) -> None:
    """Write the stamps of `files`, whole or not at all."""
    stamps = {str(file): _stamp(file) for file in files}
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(stamps), encoding="utf-8")
    unfinished.replace(path)


def changed_files(path: Path) -> list[str]:
    """The stamped files that have changed or are gone; none where nothing was stamped yet.

    Raises:
        CheckpointError: The stamps are damaged.
    """
    if not path.is_file():
        return []
    try:
        stamps = json.loads(path.read_text(encoding="utf-8"))
        return [file for file, stamp in stamps.items() if _stamp(Path(file)) != stamp]
    except (ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}), so nobody can tell whether the run's data has changed; "
            "choose another --out, or --replace"
        ) from error


def _stamp(file: Path) -> list[int] | None:
    """Size and time of change, as make and git have it; None where there is no such file.

    A hash of the content would read every image again whenever a run goes on, hours for a large
    archive; the price is that a copied data set counts as changed.
    """
    try:
        about = file.stat()
    except OSError:
        return None
    return [about.st_size, about.st_mtime_ns]
