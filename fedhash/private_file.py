"""Files that hold a secret: whole or absent, for their owner alone, and never overwritten.

>>> write_private_file(Path("tls.key"), pem)
>>> read_private_file(Path("tls.key")) == pem
True
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from fedhash.durability import sync_folder
from fedhash.errors import ConfigurationError, Problem, StorageError

__all__ = ["read_private_file", "write_private_file"]

_LARGEST_BYTES = 1 << 16  # keys have a few hundred bytes


def read_private_file(path: Path) -> bytes:
    """The content of `path`, if it is its owner's alone.

    Raises:
        ConfigurationError: Others may use the file, or it is no file of a key's size.
        StorageError: The operating system refuses to read it.
    """
    try:
        # a pipe in the file's place would be waited for
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_LARGEST_BYTES + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise StorageError(error, path) from error
    if not stat.S_ISREG(status.st_mode) or len(content) > _LARGEST_BYTES:
        raise _wrong(path, "this is no regular file of a key's size; name the key's file")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise _wrong(
            path,
            f"others may use this private key (mode {stat.S_IMODE(status.st_mode):04o}, expected "
            f"0600); run chmod 600 on it, and enrol a new key if anyone else had access",
        )
    return content


def write_private_file(path: Path, content: bytes) -> None:
    """Write a new file for its owner alone.

    Raises:
        ConfigurationError: There is a file already; it stays as it is.
        StorageError: The operating system refuses to write.
    """
    try:
        descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:  # mkstemp makes mode 0600
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(unfinished, path)  # unlike a rename, fails where there is a file
        finally:
            Path(unfinished).unlink()
        sync_folder(path.parent)
    except FileExistsError as error:
        raise _wrong(
            path, "there is a file already, and a key is never overwritten; name another file"
        ) from error
    except OSError as error:
        raise StorageError(error, path) from error


def _wrong(path: Path, message: str) -> ConfigurationError:
    return ConfigurationError([Problem(path, None, message)])
