"""The privacy ledger of one site: what its patients' data was used for, written down beforehand.

Rules:
    1. It holds events, never epsilons; epsilon is derived on read, so a better accountant sharpens
       old entries too.
    2. `reserve` checks the caps, appends and commits **before** the private step runs. A crash
       after it leaves an entry for a step that never ran: the ledger over-counts, and never
       under-counts. A step that is run again is reserved again.
    3. One ledger a site, over all runs, releases, restarts and data sets. Budgets of two data sets
       add up, for a patient may be in both. A patient who withdraws takes nothing back: what was
       released stays released.
    4. Two processes cannot both reserve the last of the budget: reading, deciding and appending
       are one transaction that holds the write lock from its start.
    5. The order is the chain's. Times inform people; a clock that is set back changes nothing.
    6. An entry is as durable as the disk: write-ahead log with synchronous=FULL, which syncs the
       log in every commit. (In SQLite's rollback mode, FULL does not sync the folder after the
       journal is deleted; a power cut may bring the journal back, and it would undo the entry.
       https://sqlite.org/pragma.html#pragma_synchronous)

What `read_ledger` and every `reserve` find, and then refuse to go on: an entry that was edited,
deleted, inserted, moved or exchanged; entries missing at the end; a ledger file that was deleted,
restored from an older copy or exchanged, while its anchor stayed. Each entry holds the hash of the
one before; the row `head` holds the count and the newest hash and changes in the same commit; the
anchor, a small file beside the ledger, holds them too, outside of the database. It is written
right after the commit, so after a crash, or a race, it may be an entry behind, and never ahead.

What they cannot find: someone with write access who recomputes the chain, `head` and the anchor,
or puts back older copies of both files (a snapshot of the whole folder does the same by accident);
or who deletes both, after which a new ledger starts at nothing. The hashes have no key. An anchor
that was noted elsewhere finds all of these: `read_ledger(path, anchor)`. In the moment in which the
anchor is behind, the newest entry can be taken out together with `head`.

Whether refusing is enough: a cap on the composition of what was reserved so far is a *privacy
filter*. It bounds what leaks if each event's noise, rate and steps are fixed beforehand or chosen
without looking at private data: that is ordinary composition, and the figure is exact up to the
grid. Where they are chosen from earlier private outputs, composition is fully adaptive (Rogers et
al. 2016, arXiv 1605.08294, who found that the usual formulas need not hold then). For Rényi and
concentrated bounds the plain sum is a valid filter (Feldman and Zrnic 2021, arXiv 2008.11193), and
so it is for Gaussian differential privacy, hence for Gaussian events without sampling (Smith and
Thakurta 2022, arXiv 2210.17520; Koskela et al. 2023, arXiv 2209.15596). For the distributions of
privacy losses of *sampled* steps no such theorem is claimed here: keep their parameters fixed for
a run, or derive them from public figures alone.

    >>> with Ledger(Path("ledger.sqlite"), [PrivacyTerms(epsilon_cap=8.0, delta=1e-5)]) as ledger:
    ...     ledger.reserve(event)    # raises BudgetError and writes nothing if it does not fit
    ...     train(...)               # only now
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from fedhash.durability import sync_folder
from fedhash.errors import BudgetError, LedgerError, PrivacyError, StorageError
from fedhash.privacy._anchor import (
    Anchor,
    altered,
    anchor_path,
    new_file,
    read_anchor,
    write_anchor,
)
from fedhash.privacy.accountant import epsilon
from fedhash.privacy.events import PrivacyEvent, canonical_json, parse_event
from fedhash.privacy.terms import PrivacyTerms

__all__ = ["Anchor", "Ledger", "LedgerEntry", "anchor_of", "anchor_path", "read_ledger"]

_FORMAT = 1  # raised whenever the tables or the hash change
_APPLICATION_ID = 0x66644C67  # "fdLg", where SQLite keeps the type of a file
_START = hashlib.sha256(b"fedhash privacy ledger 1").hexdigest()  # what the first entry follows
_LOCK_TIMEOUT_S = 60.0  # another process may be composing
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
CREATE TABLE entries (
    position   INTEGER PRIMARY KEY,   -- 1, 2, 3, ...
    written_at TEXT NOT NULL,         -- ISO 8601; informs, and orders nothing
    event      TEXT NOT NULL,         -- canonical JSON
    hash       TEXT NOT NULL          -- over all of this and the hash before
);
CREATE TABLE head (entries INTEGER NOT NULL, newest TEXT NOT NULL);
CREATE TRIGGER no_change BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER no_removal BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


@dataclass(frozen=True)
class LedgerEntry:
    """One event as it stands in the ledger.

    Attributes:
        position: From 1.
        written_at: By the site's clock, ISO 8601; informative.
        event: What was about to happen.
        hash: SHA-256 over the entry and the hash before it, 64 hex digits.
    """

    position: int
    written_at: str
    event: PrivacyEvent
    hash: str


class Ledger:
    """The open ledger, created where there is none.

    Args:
        path: The SQLite file; its folder is made if need be, for its owner alone.
        limits: The site's own cap and, if it has one, the agreement's; each of them binds.
        clock: Tells the time that is written beside an event.

    Raises:
        LedgerError: The file is no ledger, is damaged, or is gone while its anchor is there.
        PrivacyError: There is no limit.
        StorageError: The operating system refuses the file.
    """

    def __init__(
        self,
        path: Path,
        limits: Sequence[PrivacyTerms],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not limits:
            raise PrivacyError("a ledger without a limit refuses nothing; give epsilon_cap, delta")
        self._path = path
        self._limits = tuple(limits)
        self._clock = clock
        self._lock = threading.Lock()
        if not path.exists():
            _create(path)
        self._database = _connect(path)
        try:
            with self._writing():
                if not anchor_path(path).exists():
                    self._found_anchor()
        except BaseException:
            self.close()
            raise

    def _found_anchor(self) -> None:
        """Write the first anchor, before the first entry."""
        entries = _chain(self._database, self._path)
        if entries:
            raise altered(self._path, f"{anchor_path(self._path)} is gone")
        write_anchor(self._path, anchor_of(entries))

    def reserve(self, event: PrivacyEvent) -> LedgerEntry:
        """Write `event` down if it fits under every cap; call it before the private step.

        Returns:
            The entry; it is committed and synced.

        Raises:
            BudgetError: The event would exceed a cap. Nothing was written.
            LedgerError: The ledger does not verify. Nothing was written.
            StorageError: The operating system refuses a file. The event may have been counted.
        """
        (entry,) = self.reserve_together([event])
        return entry

    def reserve_together(self, events: Sequence[PrivacyEvent]) -> tuple[LedgerEntry, ...]:
        """As `reserve`, for events of which all are written or none; at least one.

        Raises:
            BudgetError, LedgerError, StorageError: As `reserve`.
        """
        with self._writing():
            entries = list(_verified(self._database, self._path))
            spent = [entry.event for entry in entries]
            for limit in self._limits:
                _check_limit(spent, events, limit)
            written_at = self._clock().isoformat()
            for event in events:
                before = entries[-1].hash if entries else _START
                text = canonical_json(event)
                position = len(entries) + 1
                entry = LedgerEntry(
                    position, written_at, event, _hash(before, position, written_at, text)
                )
                entries.append(entry)
                self._database.execute(
                    "INSERT INTO entries VALUES (?, ?, ?, ?)",
                    (position, written_at, text, entry.hash),
                )
            self._database.execute(
                "UPDATE head SET entries = ?, newest = ?", (len(entries), entries[-1].hash)
            )
        write_anchor(self._path, anchor_of(entries))
        return tuple(entries[len(entries) - len(events) :])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction with the write lock from its start; it commits unless something raises."""
        with self._lock, _explained(self._path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Release the file."""
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_ledger(path: Path, anchor: Anchor | None = None) -> tuple[LedgerEntry, ...]:
    """All entries of a ledger, after verifying the whole of it; writes nothing.

    Args:
        path: The ledger.
        anchor: Length and newest hash as someone noted them earlier.

    Returns:
        The entries in their order; none if there is no ledger yet.

    Raises:
        LedgerError: The ledger was altered, shortened or damaged, or its file is gone.
        StorageError: The operating system refuses the file.
    """
    with _explained(path):
        if not path.exists():
            _refuse_a_lost_ledger(path)
            entries: tuple[LedgerEntry, ...] = ()
        else:
            with closing(_connect(path)) as database:
                database.execute("BEGIN")  # one state of the file, whoever writes meanwhile
                entries = _verified(database, path)
    if anchor is not None:
        _check_anchor(path, entries, anchor, "the anchor that was noted")
    return entries


def _check_limit(
    spent: Sequence[PrivacyEvent], events: Sequence[PrivacyEvent], limit: PrivacyTerms
) -> None:
    after = epsilon([*spent, *events], limit.delta)
    if not after <= limit.epsilon_cap:  # what is no number is refused too
        before = epsilon(spent, limit.delta)
        purposes, event = " and ".join(repr(each.purpose) for each in events), events[0]
        raise BudgetError(
            f"{purposes} of run {event.run_id}, round {event.round_number}, would bring "
            f"epsilon from {before:.4g} to {after:.4g} at delta {limit.delta:g}, the cap is "
            f"{limit.epsilon_cap:g}; ask for more noise or fewer steps, or stop here"
        )


def _verified(database: sqlite3.Connection, path: Path) -> tuple[LedgerEntry, ...]:
    """All entries, held against the chain, the head and the anchor file."""
    anchor = read_anchor(path)  # first: it never runs ahead of a chain that is read after it
    entries = _chain(database, path)
    if entries and not anchor_path(path).exists():
        raise altered(path, f"{anchor_path(path)} is gone")
    if anchor is not None:
        _check_anchor(path, entries, anchor, str(anchor_path(path)))
    return entries


def _chain(database: sqlite3.Connection, path: Path) -> tuple[LedgerEntry, ...]:
    """All entries, held against their hashes and the head."""
    entries: list[LedgerEntry] = []
    before = _START
    rows = database.execute(
        "SELECT position, written_at, event, hash FROM entries ORDER BY position"
    )
    for expected, (position, written_at, text, stored) in enumerate(rows, 1):
        if position != expected:
            raise altered(path, f"entry {expected} is missing")
        if stored != _hash(before, position, written_at, text):
            raise altered(path, f"entry {position} does not match its hash")
        try:
            event = parse_event(text)
        except ValidationError as error:
            raise LedgerError(
                f"entry {position} of {path} is of a kind that this version does not know; "
                "update fedhash before the next private step"
            ) from error
        entries.append(LedgerEntry(position, written_at, event, stored))
        before = stored
    if database.execute("SELECT entries, newest FROM head").fetchall() != [(len(entries), before)]:
        raise altered(path, f"it ends after {len(entries)} entries, its head says otherwise")
    return tuple(entries)


def _hash(before: str, position: int, *content: object) -> str:
    # what is no text was not written here: as text it fails to match, whatever it is
    text = json.dumps([before, position, *content], separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def anchor_of(entries: Sequence[LedgerEntry]) -> Anchor:
    """What to note of a ledger that was read, to hold a later reading against."""
    return Anchor(len(entries), entries[-1].hash if entries else _START)


def _check_anchor(path: Path, entries: Sequence[LedgerEntry], anchor: Anchor, source: str) -> None:
    if anchor_of(entries[: anchor.entries]) != anchor:
        raise altered(
            path,
            f"its {len(entries)} entries do not go on from the {anchor.entries} of {source}",
        )


def _create(path: Path) -> None:
    """An empty ledger at `path`, whole or not at all; one that is there already stays."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with _explained(path):
        _refuse_a_lost_ledger(path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(new_file(unfinished))
        with closing(sqlite3.connect(unfinished)) as database:
            database.executescript(_SCHEMA)
            database.execute("INSERT INTO head VALUES (0, ?)", (_START,))
            database.commit()
        try:
            # unlike a rename, it never takes the place of a ledger that another process made
            path.hardlink_to(unfinished)
        except FileExistsError:
            pass
        finally:
            unfinished.unlink()
        sync_folder(path.parent)


def _refuse_a_lost_ledger(path: Path) -> None:
    anchor = read_anchor(path)
    # two processes make a ledger: the other's may have come since this one looked
    if anchor is not None and not path.exists():
        raise LedgerError(
            f"{path} is gone, and {anchor_path(path)} says that it had {anchor.entries} entries; "
            "restore it: without it nobody knows what the patients' data has spent"
        )


def _connect(path: Path) -> sqlite3.Connection:
    """Open an existing ledger."""
    with _explained(path):
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=_LOCK_TIMEOUT_S,
            isolation_level=None,  # transactions begin where this file says so
            check_same_thread=False,  # the ledger lets one thread at a time write
        )
        try:
            database.execute("PRAGMA synchronous = FULL")
            _check_kind(database, path)
        except BaseException:
            database.close()
            raise
    return database


def _check_kind(database: sqlite3.Connection, path: Path) -> None:
    ((kind,),) = database.execute("PRAGMA application_id")
    ((version,),) = database.execute("PRAGMA user_version")
    if (kind, version) != (_APPLICATION_ID, _FORMAT):
        raise LedgerError(
            f"{path} is of kind {kind:#x} and format {version}, expected a privacy ledger "
            f"({_APPLICATION_ID:#x}) of format {_FORMAT}; name another file"
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the operating system raise into errors that say what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(error, path) from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            raise LedgerError(
                f"{path} was locked by another process for {_LOCK_TIMEOUT_S:g} s; stop that one"
            ) from error
        if code in _OUTSIDE_CAUSES:
            raise LedgerError(
                f"{path} cannot be used ({error}); check rights and disk space, "
                "no private step runs before"
            ) from error
        raise altered(path, str(error)) from error


_OUTSIDE_CAUSES = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}
