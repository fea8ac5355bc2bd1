"""Who has withdrawn: a list that outlives every manifest, and the lock around what it governs.

1. A patient stands in it before anything is removed, so that a withdrawal that was cut short is
   completed at the next start, and whoever reads the manifest meanwhile leaves the patient out.
2. Patients stand in it as keyed hashes under a key of the file's own. Only while a withdrawal is
   under way does it hold the id itself; that page is then overwritten.
3. `locked` is for whoever stores something made of patients, in whatever process: between reading
   this list and storing, nobody withdraws.
4. **Without this file the site forgets who withdrew.** Keep it wherever the manifest is kept. A
   damaged one is an error, never an empty list.

    >>> withdrawn = Withdrawn(Path("state"))
    >>> withdrawn.begin("patient-7")
    >>> withdrawn.holds("patient-7")
    True
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fedhash.durability import sync_folder
from fedhash.errors import DataError, StorageError
from fedhash_client.daemon.paths import WITHDRAWN_FILE

__all__ = ["Withdrawn"]

_LOCK = "withdrawn.lock"
_SCHEMA = """
CREATE TABLE site (key BLOB NOT NULL);
CREATE TABLE withdrawn (
    patient BLOB PRIMARY KEY,   -- keyed hash of the id
    since   TEXT NOT NULL,      -- UTC
    pending TEXT                -- the id, until everything of the patient is removed
);
"""


class Withdrawn:
    """The list in a state folder; its file is made by the first withdrawal."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._path = state / WITHDRAWN_FILE

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else withdraws, or stores what is made of patients, until the block ends.

        Raises:
            StorageError: The operating system refuses the lock's file.
        """
        try:
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._state / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StorageError(error, self._state / _LOCK) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def holds(self, patient_id: str) -> bool:
        """Whether the patient has withdrawn."""
        return self.among([patient_id]) == {patient_id}

    def among(self, patient_ids: list[str]) -> set[str]:
        """Those of the patients who have withdrawn.

        Raises:
            DataError: The file is damaged.
            StorageError: It cannot be read.
        """
        if not self._exists():
            return set()
        with self._open() as database:
            key = _key(database)
            gone = {row[0] for row in database.execute("SELECT patient FROM withdrawn")}
        return {each for each in set(patient_ids) if _hash(key, each) in gone}

    def since(self, patient_id: str) -> str | None:
        """When the patient withdrew, in UTC, or None."""
        if not self._exists():
            return None
        with self._open() as database:
            patient = (_hash(_key(database), patient_id),)
            row = database.execute("SELECT since FROM withdrawn WHERE patient = ?", patient)
            found = row.fetchone()
        return None if found is None else str(found[0])

    def pending(self) -> list[str]:
        """Patients whose withdrawal was cut short.

        Raises:
            DataError: The file is damaged.
            StorageError: It cannot be read.
        """
        if not self._exists():
            return []
        with self._open() as database:
            rows = database.execute("SELECT pending FROM withdrawn WHERE pending IS NOT NULL")
            return [str(row[0]) for row in rows]

    def begin(self, patient_id: str) -> None:
        """Write the patient down; it is on the disk when this returns.

        Raises:
            DataError: The file is damaged.
            StorageError: The operating system refuses.
        """
        if not self._exists():
            self._create()
        with self._open() as database:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            database.execute(
                "INSERT INTO withdrawn VALUES (?, ?, ?) "
                "ON CONFLICT (patient) DO UPDATE SET pending = excluded.pending",
                (_hash(_key(database), patient_id), now, patient_id),
            )

    def finish(self, patient_id: str) -> None:
        """Forget the id of a patient of whom everything is removed; the hash stays.

        Raises:
            DataError: The file is damaged.
            StorageError: The operating system refuses.
        """
        with self._open() as database:
            patient = (_hash(_key(database), patient_id),)
            database.execute("UPDATE withdrawn SET pending = NULL WHERE patient = ?", patient)

    def _exists(self) -> bool:
        try:
            self._path.lstat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(error, self._path) from error
        return True

    def _create(self) -> None:
        unfinished = self._path.with_name(WITHDRAWN_FILE + ".creating")
        with self._explained():
            self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished.unlink(missing_ok=True)
            unfinished.touch(mode=0o600)
            with closing(sqlite3.connect(unfinished)) as database:
                database.executescript(_SCHEMA)
                with database:
                    database.execute("INSERT INTO site VALUES (?)", (secrets.token_bytes(32),))
            unfinished.replace(self._path)
            sync_folder(self._state)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with self._explained():
            uri = f"{self._path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, timeout=30)) as database:
                database.executescript("PRAGMA synchronous = EXTRA; PRAGMA secure_delete = ON;")
                with database:
                    yield database

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(error, self._path) from error
        except sqlite3.Error as error:
            raise DataError(
                f"{self._path} cannot be used ({error}): it says who has withdrawn, so nothing is "
                "read of the patients without it; check rights and disk space, or restore it"
            ) from error


def _key(database: sqlite3.Connection) -> bytes:
    ((key,),) = database.execute("SELECT key FROM site")
    return bytes(key)


def _hash(key: bytes, patient_id: str) -> bytes:
    return hashlib.blake2b(
        patient_id.encode(), digest_size=16, key=key, person=b"fedhash-withdrew"
    ).digest()
