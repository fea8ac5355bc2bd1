"""A site's archives on its disk, and the link that says which one answers.

    archive.sqlite            a link into archives/: the one that answers
    archives/
      RELEASE-DATA.sqlite     an archive each for a release and a state of the site's data

1. The link alone is the switch, by one rename: whenever the process dies, it names a whole archive.
2. An archive that is a plain file in the link's place is moved below the folder when it is met.
3. One process at a time has the folder, by a lock that ends with it.

    >>> folder = ArchiveFolder(settings.archive)
    >>> folder.acquire()
    >>> folder.point_to(folder.path / "5a0c-91d2.sqlite")
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fedhash.durability import sync_folder
from fedhash.errors import ArchiveError, StorageError
from fedhash.index import archive_release

__all__ = ["ArchiveFolder", "remove_archive"]

_LEFT_BY_SQLITE = ("", "-journal", "-wal", "-shm", ".creating")


class ArchiveFolder:
    """The folder `archives` beside the link; inert until it is acquired.

    Attributes:
        link: What the site's file calls its archive.
        path: The folder.
    """

    def __init__(self, link: Path) -> None:
        self.link = link
        self.path = link.parent / "archives"
        self._lock: int | None = None

    def acquire(self) -> None:
        """Lock the folder for this process; nothing else may be called before.

        Raises:
            ArchiveError: Another process has it.
            StorageError: The operating system refuses.
        """
        try:
            for each in (self.link.parent, self.path):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path = self.path.resolve()
            remove_archive(self.link.with_name(self.link.name + ".new"))  # of earlier versions
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise ArchiveError(
                    f"{self.path} is in use by another process, perhaps by 'fedhash-site run' "
                    "that is starting; ask again, or stop that one"
                ) from error
        except OSError as error:
            raise StorageError(error, self.path) from error
        self._lock = lock

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def archives(self) -> set[Path]:
        """All archives, also those that do not answer and that are being filled.

        Raises:
            ArchiveError: See `linked`.
            StorageError: The operating system refuses.
        """
        linked = self.linked()
        return {*self.path.glob("*.sqlite"), *([linked] if linked else [])}

    def linked(self) -> Path | None:
        """The archive that answers; a plain file is moved below the folder first.

        Raises:
            ArchiveError: The plain file is no archive.
            StorageError: The operating system refuses.
        """
        link = self.link
        if link.is_symlink():
            # what an archive that was a plain file left when the process died
            remove_archive(link, besides=True)
            return link.resolve() if link.exists() else None
        if not link.exists():
            return None
        archive_release(link)  # an orderly close folds its log into it
        path = self.path / f"{link.stem}-before.sqlite"
        try:
            remove_archive(path)
            os.link(link, path)
            self.point_to(path)
        except OSError as error:
            raise StorageError(error, path) from error
        return path.resolve()

    def point_to(self, path: Path) -> None:
        """Let another archive of the folder answer.

        Raises:
            StorageError: The operating system refuses.
        """
        unfinished = self.link.with_name(self.link.name + ".link")
        try:
            unfinished.unlink(missing_ok=True)
            unfinished.symlink_to(Path(self.path.name) / path.name)
            unfinished.replace(self.link)
            sync_folder(self.link.parent)
        except OSError as error:
            raise StorageError(error, self.link) from error


def remove_archive(path: Path, *, besides: bool = False) -> None:
    """An archive with all that SQLite puts beside it, or only that."""
    try:
        for suffix in _LEFT_BY_SQLITE[besides:]:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(error, path) from error
