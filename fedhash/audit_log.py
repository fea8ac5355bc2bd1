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
5. A chain may go over several files: `fedhash.audit_segments`.

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
from io import FileIO
from pathlib import Path
from threading import Lock

from fedhash.durability import sync_folder
from fedhash.errors import AuditError, MessageError, StorageError
from fedhash.rounds.messages import Json, canonical_json

__all__ = [
    "NOTHING",
    "START",
    "AuditEntry",
    "AuditLog",
    "entry_hash",
    "entry_line",
    "read_audit_log",
    "read_whole_lines",
    "verified_entries",
    "write_whole",
]

START = hashlib.sha256(b"fedhash audit log 1").hexdigest()  # the head of a log without entries

_LINE_FEED = b"\n"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditEntry:
    """One line.

    Attributes:
        number: From 1; in a log of one file also the line.
        content: What happened.
        hash: Over it and over all lines before.
    """

    number: int
    content: dict[str, Json]
    hash: str


NOTHING = AuditEntry(0, {}, START)  # what the first entry of a log follows


class AuditLog:
    """A log that is open for writing, made where there is none.

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
        if not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
            raise AuditError(f"{self._path} was just exchanged by its writer; stop that process")
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(_LINE_FEED) + 1
        before = self._before(data[:whole])
        entries = verified_entries(data[:whole], self._path, before)
        self._newest = entries[-1] if entries else before
        _check_noted((before, *entries), noted, self._path)
        if whole < len(data):
            _log.warning(
                "%s: the last %d bytes are of a line that a crash left unfinished; removed",
                self._path,
                len(data) - whole,
            )
            self._file.truncate(whole)
        os.fsync(self._file.fileno())
        sync_folder(self._path.parent)

    @property
    def head(self) -> str:
        """Hash of the newest entry; worth noting elsewhere."""
        return self._newest.hash

    @property
    def size_bytes(self) -> int:
        """How long the file is, which is open."""
        return os.fstat(self._file.fileno()).st_size

    def _before(self, data: bytes) -> AuditEntry:  # noqa: ARG002 - logs of several files read it
        """What the first line of the file follows."""
        return NOTHING

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
        try:
            entry, line = entry_line(self._newest, content)
        except MessageError as error:
            raise AuditError(f"{self._path}: an entry cannot be written: {error}") from error
        try:
            self._write(line)
        except OSError as error:
            self.close()
            raise StorageError(error, self._path) from error
        self._newest = entry
        return entry

    def _write(self, line: bytes) -> None:
        """The whole of it and on the disk, or nothing of it."""
        before = self.size_bytes
        try:
            write_whole(self._file, line)
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


def write_whole(file: FileIO, line: bytes) -> None:
    """All bytes of a line, on the disk when this returns.

    Raises:
        OSError: The operating system refuses; it may have taken some of them.
    """
    left = memoryview(line)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


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
        data = read_whole_lines(path)
    except FileNotFoundError as error:
        if noted == START:
            raise StorageError(error, path) from error
        raise AuditError(
            f"{path} is gone, and the hash {noted} was noted of it; restore it from a copy"
        ) from error
    except OSError as error:
        raise StorageError(error, path) from error
    entries = verified_entries(data, path)
    _check_noted((NOTHING, *entries), noted, path)
    return entries


def read_whole_lines(path: Path) -> bytes:
    """The bytes of a log that no process died in.

    Raises:
        AuditError: The last line has no end.
        OSError: The operating system refuses the file.
    """
    data = path.read_bytes()
    if data and not data.endswith(_LINE_FEED):
        raise AuditError(
            f"{path}:{data.count(_LINE_FEED) + 1}: the last line has no end: a crash left it "
            "unfinished, and the next run removes it, or somebody cut it short"
        )
    return data


def verified_entries(
    data: bytes, path: Path, before: AuditEntry = NOTHING
) -> tuple[AuditEntry, ...]:
    """The entries of whole lines, of which the first follows `before`.

    Raises:
        AuditError: One does not follow the one before it, or is no line of a log.
    """
    entries: list[AuditEntry] = []
    newest = before
    for number, line in enumerate(data.split(_LINE_FEED)[:-1], 1):
        try:
            content = json.loads(line)["content"]
            entry, expected = entry_line(newest, content)
            intact = isinstance(content, dict) and line + _LINE_FEED == expected
        except (ValueError, TypeError, KeyError, RecursionError, MessageError):
            intact = False
        if not intact:
            raise AuditError(
                f"{path}:{number}: the line was altered, or one before it was removed, inserted or "
                "moved; restore the file from a copy and find out who wrote to it"
            )
        entries.append(entry)
        newest = entry
    return tuple(entries)


def _check_noted(entries: tuple[AuditEntry, ...], noted: str, path: Path) -> None:
    """Look for a hash that was noted.

    Args:
        entries: From what the first entry follows.
        noted: The hash of one of them; `START` stands for none.
        path: For the message.

    Raises:
        AuditError: None has it.
    """
    if noted not in {entry.hash for entry in entries} | {START}:
        raise AuditError(
            f"{path} has {len(entries) - 1} entries, none of them with the hash {noted} that was "
            "noted of it: it was cut short, written anew or exchanged; restore it from a copy"
        )


def entry_hash(previous: str, number: int, content: Json) -> str:
    """The hash of an entry.

    Raises:
        MessageError: `content` is no plain finite JSON.
    """
    return hashlib.sha256(canonical_json([previous, number, content]).encode()).hexdigest()


def entry_line(previous: AuditEntry, content: dict[str, Json]) -> tuple[AuditEntry, bytes]:
    """The entry that follows `previous`, and its line.

    Raises:
        MessageError: `content` is no plain finite JSON.
    """
    number = previous.number + 1
    digest = entry_hash(previous.hash, number, content)
    line = {"content": content, "hash": digest, "number": number, "previous": previous.hash}
    return AuditEntry(number, content, digest), canonical_json(line).encode() + _LINE_FEED
