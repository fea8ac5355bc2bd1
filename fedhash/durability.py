"""What makes a rename or a new file outlast a power cut.

>>> unfinished.replace(path)
>>> sync_folder(path.parent)
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync_folder"]


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
