"""What makes a rename or a new file outlast a power cut.

>>> unfinished.replace(path)
>>> sync_folder(path.parent)
>>> replace_file(path, b"whole, or as it was before")
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["replace_file", "sync_folder"]


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


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that is whole or as it was before, even if the power fails.

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
