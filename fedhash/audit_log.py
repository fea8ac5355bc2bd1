"""An append-only log whose entries are chained by hashes: any edit of it is found.

A line is canonical JSON (sorted keys, no white space) of one object, and ends with a line feed:

    content    what happened: a JSON object
    hash       SHA-256 of the canonical JSON of [previous, number, content], 64 hex digits
    number     1, 2, 3, ...
    previous   the hash of the line before; of the first, SHA-256 of "fedhash audit log 1"

1. This format stays. A log of all ages is read by the newest code.
2. `append` returns when the line is on the disk. A process that dies in it leaves no end of line,
   so a line without one was never acknowledged: whoever opens the log for writing removes it and
   says so, whoever reads it refuses the file. A line that the system refuses, as a full disk does,
   is taken back, and the log is closed: whoever goes on opens it again, and so reads it again.
3. One process writes at a time; the system takes its lock back when it dies. In that process any
   thread may write.
4. A changed, inserted, deleted or moved line is found by reading alone. **A log that was cut short
   at the end of a line, or written anew as a whole, is found only with a hash that was noted
   elsewhere** (`noted`): the chain has no key.

    >>> with AuditLog(Path("queries.jsonl")) as log:
    ...     log.append({"kind": "query", "hits": 3})
    >>> read_audit_log(Path("queries.jsonl"), noted="6b1f...")[-1].content
    {'kind': 'query', 'hits': 3}
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from fedhash.durability import sync_folder
from fedhash.errors import AuditError, MessageError, StorageError
from fedhash.rounds.messages import Json, canonical_json

__all__ = ["START", "AuditEntry", "AuditLog", "read_audit_log"]

START = hashlib.sha256(b"fedhash audit log 1").hexdigest()  # the head of a log without entries

_LINE_FEED = b"\n"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditEntry:
    """One line.

    Attributes:
        number: From 1; also the line in the file.
        content: What happened.
        hash: Over it and over all lines before.
    """

    number: int
    content: dict[str, Json]
    hash: str


class AuditLog:
    """A log that is open for writing, made where there is none.

    Attributes:
        head: Hash of the newest entry; worth noting elsewhere.

    Args:
        path: The file; its folder is made if need be.
        noted: A hash that an earlier reading or writing noted.

    Raises:
        AuditError: The log was altered or does not hold `noted`, or another process writes it.
        StorageError: The operating system refuses the file.
    """

    def __init__(self, path: Path, noted: str = START) -> None:
        self._path = path
        self._writing = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered: what could not be written must not wait for a later write
            self._file = path.open("a+b", buffering=0)
            try:
                self._open(noted)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise StorageError(error, path) from error

    def _open(self, noted: str) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AuditError(
                f"{self._path} is being written by another process; stop it"
            ) from error
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(_LINE_FEED) + 1
        entries = _entries(data[:whole], self._path)
        self.head = entries[-1].hash if entries else START
        self._number = len(entries)
        _check_noted(entries, noted, self._path)
        if whole < len(data):
            _log.warning(
                "%s: the last %d bytes are of a line that a crash left unfinished; removed",
                self._path,
                len(data) - whole,
            )
            self._file.truncate(whole)
        os.fsync(self._file.fileno())
        sync_folder(self._path.parent)

    def append(self, content: dict[str, Json]) -> AuditEntry:
        """Write an entry; it is on the disk when this returns.

        Raises:
            AuditError: `content` is no plain finite JSON, or the log was closed.
            StorageError: The operating system refuses; the log is closed. Where it could not even
                be cut back, it may have got the entry or a part of it.
        """
        with self._writing:
            return self._append(content)

    def _append(self, content: dict[str, Json]) -> AuditEntry:
        if self._file.closed:
            raise AuditError(
                f"{self._path} was closed, perhaps after an entry that could not be written; open "
                "it again, which reads it again"
            )
        number = self._number + 1
        try:
            digest = _digest(self.head, number, content)
            line = _line(self.head, number, content, digest)
        except MessageError as error:
            raise AuditError(f"{self._path}: an entry cannot be written: {error}") from error
        try:
            self._write(line)
        except OSError as error:
            self.close()
            raise StorageError(error, self._path) from error
        self._number, self.head = number, digest
        return AuditEntry(number, content, digest)

    def _write(self, line: bytes) -> None:
        """The whole of it and on the disk, or nothing of it."""
        before = os.fstat(self._file.fileno()).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            os.fsync(self._file.fileno())
            raise

    def close(self) -> None:
        """Let go of the file and its lock."""
        self._file.close()

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_audit_log(path: Path, noted: str = START) -> tuple[AuditEntry, ...]:
    """All entries of a log, after verifying the whole of it; writes nothing.

    Args:
        path: The log.
        noted: A hash that someone noted earlier, of any entry.

    Raises:
        AuditError: The log was altered, or cut short, or does not hold `noted`, or is gone though
            `noted` is given.
        StorageError: The operating system refuses the file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        if noted == START:
            raise StorageError(error, path) from error
        raise AuditError(
            f"{path} is gone, and the hash {noted} was noted of it; restore it from a copy"
        ) from error
    except OSError as error:
        raise StorageError(error, path) from error
    if data and not data.endswith(_LINE_FEED):
        raise AuditError(
            f"{path}:{data.count(_LINE_FEED) + 1}: the last line has no end: a crash left it "
            "unfinished, and the next run removes it, or somebody cut it short"
        )
    entries = _entries(data, path)
    _check_noted(entries, noted, path)
    return entries


def _entries(data: bytes, path: Path) -> tuple[AuditEntry, ...]:
    """The entries of whole lines."""
    entries: list[AuditEntry] = []
    previous = START
    for number, line in enumerate(data.split(_LINE_FEED)[:-1], 1):
        try:
            read = json.loads(line)
            content = read["content"]
            expected = _digest(previous, number, content)
            intact = isinstance(content, dict) and (
                line + _LINE_FEED == _line(previous, number, content, expected)
            )
        except (ValueError, TypeError, KeyError, RecursionError, MessageError):
            intact = False
        if not intact:
            raise AuditError(
                f"{path}:{number}: the line was altered, or one before it was removed, inserted or "
                "moved; restore the file from a copy and find out who wrote to it"
            )
        entries.append(AuditEntry(number, content, expected))
        previous = expected
    return tuple(entries)


def _check_noted(entries: tuple[AuditEntry, ...], noted: str, path: Path) -> None:
    if noted != START and noted not in {entry.hash for entry in entries}:
        raise AuditError(
            f"{path} has {len(entries)} entries, none of them with the hash {noted} that was noted "
            "of it: it was cut short, written anew or exchanged; restore it from a copy"
        )


def _digest(previous: str, number: int, content: Json) -> str:
    return hashlib.sha256(canonical_json([previous, number, content]).encode()).hexdigest()


def _line(previous: str, number: int, content: Json, digest: str) -> bytes:
    line = {"content": content, "hash": digest, "number": number, "previous": previous}
    return canonical_json(line).encode() + _LINE_FEED
