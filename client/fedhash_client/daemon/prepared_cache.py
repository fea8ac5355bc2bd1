"""Prepared studies on the disk, so that a restarted daemon need not read the archive again.

1. An entry is known by its key: of the manifest's bytes, the model's settings, the vocabulary and
   the version of the code. It counts only while every file that its studies came from is as it was
   (size and time of change), and while its own bytes have the hash that was noted.
2. An entry is written beside and renamed, its note last: what a killed daemon leaves is no entry.
3. The newest two entries stay. They are health data, readable by their owner alone; a patient who
   withdraws empties the folder (`forget`).

    >>> cache = PreparedCache(Path("state/prepared"))
    >>> cache.store(key, prepared, file_marks(studies))
    >>> cache.load(key)
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError

from fedhash.data.study import Study
from fedhash.errors import DataError, StorageError
from fedhash.models.prepared import PreparedStudies

__all__ = ["FileMarks", "PreparedCache", "file_marks", "unchanged"]

FileMarks: TypeAlias = dict[str, tuple[int, int]]  # path to size in bytes and time of change in ns

_KEPT_ENTRIES = 2

_log = logging.getLogger(__name__)


def file_marks(studies: Iterable[Study]) -> FileMarks:
    """Of every file that the studies' contents are read from.

    Raises:
        DataError: One of them is gone.
    """
    contents = (content for study in studies for content in study.contents.values())
    paths = {str(path) for each in contents if (path := getattr(each, "path", None)) is not None}
    try:
        return {path: _mark(path) for path in sorted(paths)}
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be looked at ({error.strerror}); restore it, or take its "
            "rows out of the manifest"
        ) from error


def unchanged(marks: FileMarks) -> bool:
    """Whether all files are still as they were."""
    try:
        return all(_mark(path) == mark for path, mark in marks.items())
    except OSError:
        return False


def _mark(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


class PreparedCache:
    """The entries under one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str) -> tuple[PreparedStudies, FileMarks] | None:
        """The entry, or None where there is none, or none that counts."""
        try:
            note = json.loads(self._note(key).read_bytes())
            marks = {path: (int(size), int(changed)) for path, size, changed in note["files"]}
            if not unchanged(marks):
                return None
            with self._studies(key).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != note["sha256"]:
                _log.warning("a file of prepared studies is damaged; they are prepared anew")
                return None
            return PreparedStudies.load(self._studies(key)), marks
        except FileNotFoundError:
            return None
        except (OSError, DataError, ValueError, KeyError, TypeError) as error:
            _log.warning(
                "prepared studies cannot be read (%s); they are prepared anew", type(error).__name__
            )
            return None

    def store(self, key: str, prepared: PreparedStudies, marks: FileMarks) -> None:
        """Write an entry, and drop the oldest of more than two.

        Raises:
            StorageError: The operating system refuses.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            for left in self._folder.glob("*.tmp"):  # by a daemon that was killed
                left.unlink()
            prepared.save(self._studies(key))
            self._studies(key).chmod(0o600)
            with self._studies(key).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files = [[path, *mark] for path, mark in marks.items()]
            unfinished = self._folder / f"{key}.json.tmp"
            unfinished.touch(mode=0o600)
            unfinished.write_text(json.dumps({"sha256": digest, "files": files}), encoding="utf-8")
            unfinished.replace(self._note(key))
            self._drop_oldest()
        except SafetensorError as error:
            raise StorageError(OSError(str(error)), self._folder) from error
        except OSError as error:
            raise StorageError(error, self._folder) from error

    def forget(self) -> None:
        """Remove every entry.

        Raises:
            StorageError: The operating system refuses.
        """
        try:
            for path in self._folder.glob("*"):
                path.unlink(missing_ok=True)  # a round under way renames and drops files of its own
        except OSError as error:
            raise StorageError(error, self._folder) from error

    def _drop_oldest(self) -> None:
        studies = self._folder.glob("*.safetensors")
        newest_first = sorted(studies, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in newest_first[_KEPT_ENTRIES:]:
            self._note(path.stem).unlink(missing_ok=True)
            path.unlink()

    def _studies(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _note(self, key: str) -> Path:
        return self._folder / f"{key}.json"
