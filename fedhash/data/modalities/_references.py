"""References from a manifest cell to a file, or to one row of an array in an npz file.

Rules: a relative path stays inside the manifest's folder, so that a folder can be moved or handed
on as a whole; an absolute path may lead anywhere, since a site writes its own manifest; arrays are
read without pickle.

    >>> ArrayRow.parse("ecg.npz#ecg/17", Path("/data/site")).load().shape
    (1000, 12)
"""

from __future__ import annotations

import lzma
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedhash.errors import DataError

__all__ = ["ArrayRow", "resolve"]

_ARRAY_ROW = re.compile(r"(?P<path>.+\.npz)#(?P<key>.+)/(?P<row>[0-9]{1,12})")
_OPEN_ARRAYS = 4  # a site has one or two arrays a modality; each stays in memory as a whole
_LARGEST_ARRAY_BYTES = 1 << 32  # a million 64 x 64 8-bit images; more would crowd the memory out
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    RuntimeError,  # encryption and unknown compression of zip
    SyntaxError,  # array headers
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


_LONGEST_SHOWN = 300


def resolve(cell: str, folder: Path) -> Path:
    """The absolute path that a cell names.

    Raises:
        DataError: A relative path climbs out of the manifest's folder, or no such file exists.
    """
    if ".." in Path(cell).parts:
        raise DataError(
            f"the path {cell!r} contains '..'; a relative path stays inside the manifest's "
            "folder, so write an absolute path instead"
        )
    path = folder.absolute() / cell
    try:
        found = path.is_file()
    except (OSError, ValueError):  # too long, or with a NUL byte
        found = False
    if not found:
        shown = (
            str(path) if len(str(path)) <= _LONGEST_SHOWN else f"{str(path)[:_LONGEST_SHOWN]}..."
        )
        raise DataError(f"there is no file {shown!r}; correct the path")
    return path


@dataclass(frozen=True, slots=True)
class ArrayRow:
    """Row `row` of the array `key` in the npz file `path`."""

    path: Path
    key: str
    row: int

    def __str__(self) -> str:
        return f"{self.path}#{self.key}/{self.row}"

    @classmethod
    def parse(cls, cell: str, folder: Path) -> ArrayRow:
        """Read a reference of the form ``file.npz#key/row``, rows counted from 0.

        Raises:
            DataError: The cell has another form, or no such file exists.
        """
        match = _ARRAY_ROW.fullmatch(cell)
        if match is None:
            raise DataError(
                f"{cell!r} does not name one row of an array; write it as file.npz#key/row, "
                "for example ecg.npz#ecg/0"
            )
        return cls(resolve(match["path"], folder), match["key"], int(match["row"]))

    def load(self) -> np.ndarray:
        """The row, as a view of the array as a whole, which stays in memory for the next rows.

        Raises:
            DataError: The file or the array cannot be read, or has no such row.
        """
        try:
            modified_ns = self.path.stat().st_mtime_ns
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error}); restore the file") from error
        array = _read_array(self.path, self.key, modified_ns)
        if isinstance(array, str):
            raise DataError(array)
        if array.ndim == 0 or self.row >= len(array):
            raise DataError(
                f"array {self.key!r} of {self.path} has shape {array.shape} and no row "
                f"{self.row}; rows count from 0, correct the number after the slash"
            )
        return np.asarray(array[self.row])  # a row of a one-dimensional array is no array yet


@lru_cache(maxsize=_OPEN_ARRAYS)
def _read_array(path: Path, key: str, modified_ns: int) -> np.ndarray | str:  # noqa: ARG001
    """The array, or why it cannot be read.

    A failure is returned and not raised, so that it is remembered as well: thousands of rows may
    name the same broken file. `modified_ns` makes a changed file a new entry.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = archive.getinfo(f"{key}.npy").file_size
            if size_bytes > _LARGEST_ARRAY_BYTES:
                return (
                    f"array {key!r} of {path} holds {size_bytes} bytes, at most "
                    f"{_LARGEST_ARRAY_BYTES} are read; split it into several files"
                )
            with archive.open(f"{key}.npy") as member:
                array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
    except KeyError:
        return f"{path} holds no array {key!r}; correct the key between '#' and '/'"
    except _UNREADABLE as error:
        return (
            f"array {key!r} of {path} cannot be read ({error}); "
            "write the file again with numpy.savez_compressed and plain numbers"
        )
    array.flags.writeable = False  # every study of the file looks at this one copy
    return array
