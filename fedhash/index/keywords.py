"""Keyword search over a site's own reports: what is left when no release can be used.

1. One SQLite file with a full-text index (https://sqlite.org/fts5.html), built whole and put in
   place by a rename. It holds the reports' text, so it is as confidential as they are: mode 0600.
2. A query is any text; its words are looked for one by one, and reports that hold more and rarer
   ones come first (BM25). Nothing of it is taken for an operator.
3. `remove_patient` deletes the reports and makes the index of the others anew, so that no word of
   theirs is left in it; deleted pages are overwritten. (FTS5's secure-delete needs SQLite 3.42.)
4. These are words, not findings: "no pneumothorax" finds pneumothorax. Answers say where they come
   from, and are given to the site's own users only.

    >>> KeywordStore.build(path, fingerprint, [(handle, "p1", "Large effusion.")])
    >>> with KeywordStore(path) as store:
    ...     store.search("effusion left", k=10)
    [KeywordMatch(handle='5c1f...', relevance=1.8)]
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedhash.durability import sync_folder
from fedhash.errors import ArchiveError

__all__ = ["KeywordMatch", "KeywordStore"]

_FORMAT = 1
_APPLICATION_ID = 0x6664486B  # "fdHk"
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
CREATE TABLE about (fingerprint TEXT NOT NULL, salt BLOB NOT NULL);
CREATE TABLE reports (
    report  INTEGER PRIMARY KEY,
    handle  TEXT NOT NULL,
    patient BLOB NOT NULL,     -- keyed hash
    text    TEXT NOT NULL
);
CREATE VIRTUAL TABLE words USING fts5 (text, content='reports', content_rowid='report');
"""
_MOST_WORDS = 64  # of a query; an example may be a long report


@dataclass(frozen=True, slots=True)
class KeywordMatch:
    """One report that was found.

    Attributes:
        handle: The study's opaque name.
        relevance: BM25, more is better; it compares hits of one answer only.
    """

    handle: str
    relevance: float


class KeywordStore:
    """An existing store, open.

    Attributes:
        fingerprint: Of the data that it was built from.

    Raises:
        ArchiveError: The file is damaged, no store, or cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _explained(path):
            self._database = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=30
            )
            try:
                _check_kind(self._database)
                self._database.executescript(
                    "PRAGMA secure_delete = ON; PRAGMA synchronous = FULL;"
                )
                rows = self._database.execute("SELECT fingerprint, salt FROM about")
                ((self.fingerprint, self._salt),) = rows
            except BaseException:
                self._database.close()
                raise

    @staticmethod
    def build(path: Path, fingerprint: str, reports: Iterable[tuple[str, str, str]]) -> None:
        """Write a store, in the place of the one at `path`.

        Args:
            path: The file; its folder is made if need be.
            fingerprint: Stands for the data, to know later whether it has changed.
            reports: Handle, patient id and text of each.

        Raises:
            ArchiveError: The file cannot be written; an earlier one stays.
        """
        unfinished = path.with_name(path.name + ".creating")
        salt = secrets.token_bytes(32)
        with _explained(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            KeywordStore.discard(unfinished)
            unfinished.touch(mode=0o600)
            with closing(sqlite3.connect(unfinished)) as database:
                database.executescript(_SCHEMA)
                with database:
                    database.execute("INSERT INTO about VALUES (?, ?)", (fingerprint, salt))
                    database.executemany(
                        "INSERT INTO reports (handle, patient, text) VALUES (?, ?, ?)",
                        ((handle, _hash(salt, who), text) for handle, who, text in reports),
                    )
                    database.execute("INSERT INTO words (words) VALUES ('rebuild')")
            unfinished.replace(path)
            sync_folder(path.parent)

    @staticmethod
    def discard(path: Path) -> None:
        """Remove a store, with what SQLite puts beside it and what a killed building left.

        Raises:
            OSError: The operating system refuses.
        """
        for suffix in ("", "-journal", ".creating", ".creating-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def __enter__(self) -> KeywordStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def search(self, text: str, k: int) -> list[KeywordMatch]:
        """The best reports, best first; equal ones in the order of their handles.

        Raises:
            ArchiveError: The file is damaged.
        """
        words = list(dict.fromkeys(re.findall(r"\w+", text.lower())))[:_MOST_WORDS]
        if not words:
            return []
        query = " OR ".join(f'"{word}"' for word in words)
        with _explained(self._path):
            rows = self._database.execute(
                "SELECT handle, -bm25(words) AS relevance FROM words JOIN reports "
                "ON reports.report = words.rowid WHERE words MATCH ? "
                "ORDER BY relevance DESC, handle LIMIT ?",
                (query, k),
            )
            return [KeywordMatch(handle, relevance) for handle, relevance in rows]

    def count(self) -> int:
        """Reports in the store."""
        with _explained(self._path):
            ((count,),) = self._database.execute("SELECT count(*) FROM reports")
        return int(count)

    def remove_patient(self, patient_id: str) -> int:
        """Remove a patient's reports and every word of theirs; returns how many there were.

        Raises:
            ArchiveError: The file cannot be written.
        """
        with _explained(self._path), self._database as database:
            patient = (_hash(self._salt, patient_id),)
            gone = database.execute("DELETE FROM reports WHERE patient = ?", patient).rowcount
            # also where there is none: a removal that was cut short may have left words
            database.execute("INSERT INTO words (words) VALUES ('rebuild')")
        return gone


def _check_kind(database: sqlite3.Connection) -> None:
    ((kind,),) = database.execute("PRAGMA application_id")
    ((version,),) = database.execute("PRAGMA user_version")
    if (kind, version) != (_APPLICATION_ID, _FORMAT):
        raise sqlite3.DatabaseError("it is no keyword store of this version")


def _hash(salt: bytes, patient_id: str) -> bytes:
    return hashlib.blake2b(patient_id.encode(), digest_size=16, key=salt).digest()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error, ValueError) as error:
        raise ArchiveError(
            f"the keyword store {path} cannot be used ({error}); check rights and disk space, or "
            "remove it: it is made anew from the reports"
        ) from error
