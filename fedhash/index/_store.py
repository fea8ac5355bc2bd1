"""The archive's file: one SQLite database that survives crashes and tells when it is damaged.

1. One batch is one transaction (write-ahead log, synced at commit): a killed process or a power cut
   leaves every committed batch and no part of another.
2. One process at a time: the file is locked while it is open, for a second process would not see
   what the first one adds.
3. Rows that are deleted are overwritten with zeros, and `scrub` empties the log. Copies that the
   file system keeps (snapshots, backups) are out of its reach.
4. The file holds a checksum over all of its rows. SQLite notices a broken page but not a flipped
   bit inside a code; the checksum notices both. Reading a damaged file changes nothing in it.
5. Patients stand in it as keyed hashes under a salt of the file's own.

The SQLite settings used are described at https://sqlite.org/pragma.html.

    >>> store = Store(Path("archive.sqlite"), release_id, code_bits=64)
    >>> entries, descriptions = store.read()
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from fedhash.codes import check_code_bits
from fedhash.durability import sync_folder
from fedhash.errors import ArchiveError
from fedhash.index._checksum import checksum_of_entries, checksum_of_values
from fedhash.index._shelf import Shelf

__all__ = ["Description", "Store", "archive_release", "replace_archive"]

_FORMAT = 1  # raised whenever the tables or the checksum change
_APPLICATION_ID = 0x66644861  # "fdHa", where SQLite keeps the type of a file
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
CREATE TABLE archive (
    release_id TEXT NOT NULL,
    code_bits  INTEGER NOT NULL,
    salt       BLOB NOT NULL,      -- key of the patients' hashes
    checksum   INTEGER NOT NULL
);
CREATE TABLE descriptions (        -- each combination of modality and attributes once
    description INTEGER PRIMARY KEY,
    modality    TEXT NOT NULL,
    attributes  TEXT NOT NULL      -- JSON
);
CREATE TABLE entries (             -- without a second index: memory finds the rows
    entry       INTEGER PRIMARY KEY,
    handle      BLOB NOT NULL,
    code        BLOB NOT NULL,
    patient     INTEGER NOT NULL,
    description INTEGER NOT NULL
);
"""
_LOCK_TIMEOUT_S = 1.0
_ROWS_AT_ONCE = 10_000  # as Python objects, many times as large as in columns
_CHECKSUM_RANGE = 1 << 63  # SQLite's integers are signed


class Description(NamedTuple):
    """What entries with the same modality and attributes share."""

    modality: str
    attributes: Mapping[str, str]


class Store:
    """The open file, created where there is none.

    Raises:
        ArchiveError: The file is damaged, no archive, of another release or in use.
        ModelError: `code_bits` is no length of a code.
    """

    def __init__(self, path: Path, release_id: str, code_bits: int) -> None:
        check_code_bits(code_bits)
        self._path = path
        self._code_bytes = code_bits // 8
        self._next_row = 1
        if not path.exists():
            _create(path, release_id, code_bits)
        self._database = _connect(path)
        try:
            self._check_release(release_id, code_bits)
        except BaseException:
            self.close()
            raise

    def _check_release(self, release_id: str, code_bits: int) -> None:
        with _explained(self._path):
            rows = self._database.execute(
                "SELECT release_id, code_bits, salt, checksum FROM archive"
            )
            ((stored_release, stored_bits, self._salt, self._checksum),) = rows
        if (stored_release, stored_bits) != (release_id, code_bits):
            raise ArchiveError(
                f"{self._path} holds {stored_bits}-bit codes of release {stored_release}, expected "
                f"{code_bits}-bit codes of release {release_id}; codes of different releases are "
                "never compared: encode the studies into a new archive and call replace_archive"
            )

    def read(self) -> tuple[Shelf, dict[int, Description]]:
        """All entries, in no order, and all descriptions.

        Raises:
            ArchiveError: The file is damaged.
        """
        descriptions = {}
        with _explained(self._path):
            header = self._database.execute("SELECT release_id, code_bits, salt FROM archive")
            checksum = checksum_of_values(*header)
            for row in self._database.execute("SELECT * FROM descriptions"):
                checksum += checksum_of_values(row)
                number, modality, attributes = row
                descriptions[number] = Description(modality, json.loads(attributes))
            ((size,),) = self._database.execute("SELECT count(*) FROM entries")
            entries = Shelf.collected(self._pieces(), size, self._code_bytes)
            for start in range(0, size, _ROWS_AT_ONCE):
                piece = entries.chosen(slice(start, start + _ROWS_AT_ONCE))
                checksum += checksum_of_entries(piece)
        if checksum % _CHECKSUM_RANGE != self._checksum:
            raise _damaged(self._path, "the checksum over its rows does not fit")
        self._next_row = int(entries.rows.max(initial=0)) + 1
        return entries, descriptions

    def _pieces(self) -> Iterator[Shelf]:
        """All entries, some thousands at a time."""
        cursor = self._database.execute(
            "SELECT handle, code, entry, patient, description FROM entries"
        )
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            yield Shelf.of(*zip(*rows, strict=True), code_bytes=self._code_bytes)

    def next_rows(self, count: int) -> range:
        """Keys for `count` new entries."""
        return range(self._next_row, self._next_row + count)

    def patient_key(self, patient_id: str) -> int:
        """What stands for a patient in this file: 64 bits of a keyed hash.

        Among 10 million patients any two share a key with a probability of 3e-6. Removing the one
        would then remove the other's entries too, which the next ingest adds again.
        """
        key = hashlib.blake2b(patient_id.encode(), digest_size=8, key=self._salt)
        return int.from_bytes(key.digest(), "big", signed=True)

    def change(
        self,
        *,
        add: Shelf,
        remove: Shelf,
        learn: Mapping[int, Description],
        forget: Mapping[int, Description],
    ) -> None:
        """Write one batch: all of it, or nothing if this raises or the process dies.

        Raises:
            ArchiveError: The file cannot be written, or does not hold the rows to remove.
        """
        learned, forgotten = _rows(learn), _rows(forget)
        checksum = (
            self._checksum
            + checksum_of_entries(add)
            + checksum_of_values(*learned)
            - checksum_of_entries(remove)
            - checksum_of_values(*forgotten)
        ) % _CHECKSUM_RANGE
        with _explained(self._path), self._database as database:
            removed = database.executemany(
                "DELETE FROM entries WHERE entry = ?", ((row,) for row in remove.rows.tolist())
            )
            if len(remove) and removed.rowcount != len(remove):
                raise _damaged(self._path, f"{len(remove)} rows to remove are not all there")
            database.executemany(
                "DELETE FROM descriptions WHERE description = ?", ((row[0],) for row in forgotten)
            )
            database.executemany("INSERT INTO descriptions VALUES (?, ?, ?)", learned)
            database.executemany(
                "INSERT INTO entries (handle, code, entry, patient, description) "
                "VALUES (?, ?, ?, ?, ?)",
                zip(*add.as_lists(), strict=True),
            )
            database.execute("UPDATE archive SET checksum = ?", (checksum,))
        self._checksum = checksum
        self._next_row += len(add)

    def scrub(self) -> None:
        """Empty the write-ahead log, so that no earlier state of a deleted row is left in it.

        Raises:
            ArchiveError: The log cannot be written back.
        """
        with _explained(self._path):
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Release the file."""
        self._database.close()


def replace_archive(successor: Path, path: Path) -> None:
    """Put the archive `successor` in the place of the one at `path`, in one step.

    For a new release: build `successor` beside `path`, close both, then call this. Whenever the
    process dies, `path` is the whole old archive or the whole new one.

    Args:
        successor: The new archive, on the same file system.
        path: The archive to replace; it need not exist.

    Raises:
        ArchiveError: One of them is open or no archive.
    """
    # An orderly close folds the write-ahead log into the file. A log that stayed behind would be
    # replayed into the successor.
    _connect(successor).close()
    if path.exists():
        _connect(path).close()
    with _explained(path):
        successor.replace(path)
        sync_folder(path.parent)


def archive_release(path: Path) -> tuple[str, int]:
    """The release that the archive at `path` is of, and its code length in bits.

    Raises:
        ArchiveError: It is no archive, damaged or in use.
    """
    with closing(_connect(path)) as database, _explained(path):
        ((release_id, code_bits),) = database.execute("SELECT release_id, code_bits FROM archive")
        if not (isinstance(release_id, str) and isinstance(code_bits, int)):
            raise _damaged(path, "its header is no release and no code length")
    return release_id, code_bits


def _create(path: Path, release_id: str, code_bits: int) -> None:
    """An empty archive at `path`, whole or not at all."""
    unfinished = path.with_name(path.name + ".creating")
    header = (release_id, code_bits, secrets.token_bytes(16))
    checksum = checksum_of_values(header) % _CHECKSUM_RANGE
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        database = sqlite3.connect(unfinished)
        try:
            database.executescript(_SCHEMA)
            with database:
                database.execute("INSERT INTO archive VALUES (?, ?, ?, ?)", (*header, checksum))
        finally:
            database.close()
        unfinished.replace(path)
        sync_folder(path.parent)


def _connect(path: Path) -> sqlite3.Connection:
    """Open and lock an existing archive."""
    with _explained(path):
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=_LOCK_TIMEOUT_S,
            isolation_level="IMMEDIATE",
            check_same_thread=False,  # the archive lets one thread at a time write
        )
        try:
            database.executescript(
                "PRAGMA locking_mode = EXCLUSIVE;"
                "PRAGMA synchronous = FULL;"
                "PRAGMA secure_delete = ON;"
            )
            _check_kind(database, path)
        except BaseException:
            database.close()
            raise
    return database


def _check_kind(database: sqlite3.Connection, path: Path) -> None:
    ((kind,),) = database.execute("PRAGMA application_id")
    ((version,),) = database.execute("PRAGMA user_version")
    if (kind, version) != (_APPLICATION_ID, _FORMAT):
        raise ArchiveError(
            f"{path} is of kind {kind:#x} and format {version}, expected an archive "
            f"({_APPLICATION_ID:#x}) of format {_FORMAT}; name another file"
        )


def _rows(descriptions: Mapping[int, Description]) -> list[tuple[int, str, str]]:
    return [
        (number, modality, json.dumps(attributes, sort_keys=True))
        for number, (modality, attributes) in descriptions.items()
    ]


def _damaged(path: Path, found: str) -> ArchiveError:
    return ArchiveError(
        f"{path} is damaged ({found}); it was left as it is: restore it from a backup, or move it "
        "away and ingest the studies again"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the operating system raise into an ArchiveError that says what to do."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(f"{path} cannot be used ({error}); check folder and rights") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            raise ArchiveError(f"{path} is in use by another process; stop that one") from error
        if code in _OUTSIDE_CAUSES:
            raise ArchiveError(
                f"{path} cannot be used ({error}); nothing of this batch was kept, "
                "check rights and disk space"
            ) from error
        raise _damaged(path, str(error)) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise _damaged(path, str(error)) from error


_OUTSIDE_CAUSES = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}
