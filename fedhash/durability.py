"""What makes a rename or a new file outlast a power cut.

>>> unfinished.replace(path)
>>> sync_folder(path.parent)
>>> write_whole(Path("current.json"), content)
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync_folder", "write_whole"]


def sync_folder(folder: Path) -> None:
    """Without it a power cut may forget a rename in `folder`.

    Raises:
        OSError: The operating system refuses.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or replace it: whenever the process dies, it is the whole old or new one.

    Raises:
        OSError: The operating system refuses; an earlier file stays as it is.
    """
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)  # half a file on a full disk helps nobody
        raise
    sync_folder(path.parent)
