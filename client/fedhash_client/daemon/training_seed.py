"""The site's fixed seed of batches and rounding, kept in its state folder.

>>> training_seed(Path("state/training.seed"))
4611686018427387904
"""

from __future__ import annotations

import secrets
from pathlib import Path

from fedhash.errors import ConfigurationError, Problem, StorageError
from fedhash.private_file import write_private_file

__all__ = ["training_seed"]


def training_seed(path: Path) -> int:
    """The site's fixed seed of batches and rounding, made at the first call.

    It hides nothing: privacy's noise, masks and keys come from the operating system each time. It
    stays the same so that a round that is asked for again has the same answer.

    Raises:
        ConfigurationError: The file holds no number.
        StorageError: The operating system refuses it.
    """
    if not path.exists():
        write_private_file(path, f"{secrets.randbits(63)}\n".encode())
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise StorageError(error, path) from error
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        message = "expected one whole number; remove the file, and runs under way begin anew"
        raise ConfigurationError([Problem(path, None, message)])
    return int(text)
