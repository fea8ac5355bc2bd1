"""Reading a file that somebody else may have put there: no pipe is waited for, no memory filled.

>>> read_regular_file(Path("release/manifest.json"), largest_bytes=1 << 24)
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path

__all__ = ["read_regular_file"]


def read_regular_file(path: Path, largest_bytes: int) -> bytes:
    """The content of `path`, or of the file that a link there leads to.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger than `largest_bytes`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if status.st_size > largest_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {largest_bytes:,} bytes", str(path))
    return path.read_bytes()
