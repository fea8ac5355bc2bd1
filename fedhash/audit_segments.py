"""An audit log over several files, so that old ones may be archived and the rest still verifies.

    audit.000001.jsonl    closed, never written again
    audit.000002.jsonl    closed
    audit.jsonl           the one that is written

1. The files in their order, one behind the other, are one log of `fedhash.audit_log`: numbers and
   hashes go on. A log of one file is the first segment.
2. A segment ends with a line of kind ``segment closed``: its number, how many entries are before
   that line, the hash of the newest of them, and an Ed25519 signature over the three, where the
   writer has a key. The next begins with a line of kind ``segment``, which repeats that line and
   names its file. So the chain of what is there verifies without what was archived, and the
   archived without the rest.
3. Segments are archived from the oldest on. One that is missing between two others was removed.
4. The path always holds the newest segment, whole: a process that dies while it closes one leaves
   the closed one there, perhaps under its other name as well, and whoever opens the log goes on.

    >>> with SegmentedAuditLog(Path("audit.jsonl")) as log:
    ...     log.append({"kind": "query", "hits": 3})
    ...     log.close_segment(identity)
    >>> verify_segments(Path("audit.jsonl")).head == log.head
    True
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from fedhash.audit_log import (
    NOTHING,
    START,
    AuditEntry,
    AuditLog,
    entry_hash,
    entry_line,
    read_whole_lines,
    verified_entries,
    write_whole,
)
from fedhash.configuration import Settings
from fedhash.durability import sync_folder
from fedhash.errors import AuditError, RefusedError, StorageError
from fedhash.rounds.messages import Json, canonical_json
from fedhash.secagg.identity import SiteIdentity, verify_signature

__all__ = ["SegmentedAuditLog", "VerifiedSegments", "closed_segment", "verify_segments"]

_DOMAIN = b"fedhash audit segment 1\n"
_BEGINS: Literal["segment"] = "segment"
_CLOSED: Literal["segment closed"] = "segment closed"

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Closing(Settings):
    """The content of the last line of a closed segment."""

    kind: Literal["segment closed"] = _CLOSED
    segment: int = Field(ge=1, lt=1 << 53)
    entries: int = Field(ge=0, lt=1 << 53)
    head: _Hash
    signed_by: _Hash | None = None
    signature: Annotated[str, Field(pattern="^[0-9a-f]{128}$")] | None = None

    def signed_text(self) -> bytes:
        return _DOMAIN + canonical_json([self.segment, self.entries, self.head]).encode()

    def entry(self) -> AuditEntry:
        content = self.model_dump(mode="json")
        number = self.entries + 1
        return AuditEntry(number, content, entry_hash(self.head, number, content))


@dataclass(frozen=True)
class VerifiedSegments:
    """What a log over several files holds.

    Attributes:
        entries: How many, those of archived segments among them.
        head: Hash of the newest.
        newest: Some of the newest.
        files: Those that were read, from the oldest.
        archived: How many segments before them are not there.
        archived_entries: How many entries those held.
        signed_by: Public keys that signed when segments were closed; None where there was no key.
    """

    entries: int
    head: str
    newest: tuple[AuditEntry, ...]
    files: tuple[Path, ...]
    archived: int
    archived_entries: int
    signed_by: frozenset[str | None]


class SegmentedAuditLog(AuditLog):
    """The newest segment, open for writing; a closing that a process died in is finished.

    Args and Raises: as of `AuditLog`. Segments before this one are not read, but where there are
    any and this one is not, the log is refused: a new one would begin the chain anew.
    """

    def __init__(self, path: Path, noted: str = START) -> None:
        self._segment = 1
        if path.parent.is_dir() and not path.exists() and _closed_segments(path, None):
            raise AuditError(
                f"{path} is gone, and closed segments of it are there; restore it from a copy"
            )
        super().__init__(path, noted)
        if self._newest.content.get("kind") == _CLOSED:
            self._begin_next()

    def _before(self, data: bytes) -> AuditEntry:
        self._segment, before = _begun(data, self._path)
        return before

    def close_segment(self, identity: SiteIdentity | None) -> None:
        """Begin another file.

        Args:
            identity: Signs what the closed one holds.

        Raises:
            AuditError: The log was closed, or another file has the closed segment's name.
            StorageError: The operating system refuses; the log is closed, and whoever opens it
                finishes what was begun.
        """
        with self._writing:
            closing = _Closing(
                segment=self._segment, entries=self._newest.number, head=self._newest.hash
            )
            if identity is not None:
                signature = identity.sign(closing.signed_text()).hex()
                signed = {"signed_by": identity.public_hex, "signature": signature}
                closing = closing.model_copy(update=signed)
            self._append(closing.model_dump(mode="json"))
            self._begin_next()

    def _begin_next(self) -> None:
        closed = closed_segment(self._path, self._segment)
        if _is_closed_elsewhere(self._path, self._segment):
            self.close()
            raise AuditError(
                f"{closed} is there, and {self._path} is to get this name; move it to where the "
                "archived segments are"
            )
        opening: dict[str, Json] = {
            "kind": _BEGINS,
            "file": closed.name,
            "closed": self._newest.content,
        }
        entry, line = entry_line(self._newest, opening)
        try:
            file = self._exchanged(closed, line)
        except OSError as error:
            self.close()
            raise StorageError(error, self._path) from error
        self._file.close()
        self._file, self._newest, self._segment = file, entry, self._segment + 1

    def _exchanged(self, closed: Path, line: bytes) -> FileIO:
        """Give the closed segment its name, and a new one with its first line the path."""
        unfinished = self._path.with_name(self._path.name + ".next")
        unfinished.unlink(missing_ok=True)
        file = unfinished.open("a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before anybody else finds it
            write_whole(file, line)
            if not closed.exists():
                os.link(self._path, closed)
                sync_folder(closed.parent)
            unfinished.replace(self._path)
            sync_folder(self._path.parent)
        except BaseException:
            file.close()
            raise
        return file


def closed_segment(path: Path, segment: int) -> Path:
    """Where a segment of the log at `path` is once it is closed."""
    return path.with_name(f"{path.stem}.{segment:06}{path.suffix}")


@dataclass(frozen=True)
class _Segment:
    number: int
    before: AuditEntry
    entries: tuple[AuditEntry, ...]

    @property
    def newest(self) -> AuditEntry:
        return self.entries[-1] if self.entries else self.before

    def holds(self, noted: str) -> bool:
        return any(entry.hash == noted for entry in (NOTHING, self.before, *self.entries))


def verify_segments(
    path: Path, noted: str = START, *, last: int = 0, archive: Path | None = None
) -> VerifiedSegments:
    """Verify all segments that are there, one at a time; writes nothing.

    Args:
        path: The newest segment.
        noted: A hash that was noted earlier, of an entry in a segment that is there.
        last: How many of the newest entries to give.
        archive: A folder with closed segments that are not beside `path`.

    Raises:
        AuditError: A segment was altered, cut short or exchanged, or one between two others is
            missing; or none holds `noted`.
        StorageError: The operating system refuses a file.
    """
    segment = _read(path)
    if _is_closed_elsewhere(path, segment.number):
        segment = _read(path)  # its writer closed it while it was read
    closed = _closed_segments(path, archive)
    if _is_closed_elsewhere(path, segment.number) or max(closed, default=0) > segment.number:
        raise AuditError(
            f"{path} holds segment {segment.number}, and {closed[max(closed)]} is there: an older "
            "one was put in its place; restore it from a copy"
        )
    newest = segment
    files = [path]
    shown = _last(segment.entries, last)
    found = segment.holds(noted)
    keys = _signed_by(segment)
    while segment.number - 1 in closed:
        file = closed.pop(segment.number - 1)
        earlier = _read(file)
        if earlier.newest != segment.before:
            raise AuditError(
                f"{file} does not end as the segment after it repeats: it was cut short, written "
                "anew or exchanged; restore it from a copy"
            )
        segment = earlier
        files.append(file)
        shown = _last(segment.entries + shown, last)
        found |= segment.holds(noted)
        keys |= _signed_by(segment)
    if left := [number for number in closed if number < segment.number]:
        raise AuditError(
            f"{closed_segment(path, segment.number - 1)} is missing, and {closed[max(left)]} is "
            "there: restore it from the archive, or archive those before it as well"
        )
    if not found:
        raise AuditError(
            f"{path} and {len(files) - 1} closed segments have no entry with the hash {noted} that "
            f"was noted: the log was cut short, written anew or exchanged, or the entry is one of "
            f"the {segment.before.number} in archived segments (--archive)"
        )
    return VerifiedSegments(
        entries=newest.newest.number,
        head=newest.newest.hash,
        newest=shown,
        files=tuple(reversed(files)),
        archived=segment.number - 1,
        archived_entries=segment.before.number,
        signed_by=keys,
    )


def _last(entries: tuple[AuditEntry, ...], count: int) -> tuple[AuditEntry, ...]:
    return entries[max(0, len(entries) - count) :]


def _signed_by(segment: _Segment) -> frozenset[str | None]:
    """Who closed the one before."""
    if segment.number == 1:
        return frozenset()
    return frozenset([_Closing.model_validate(segment.before.content).signed_by])


def _read(path: Path) -> _Segment:
    try:
        data = read_whole_lines(path)
    except OSError as error:
        raise StorageError(error, path) from error
    number, before = _begun(data, path)
    return _Segment(number, before, verified_entries(data, path, before))


def _begun(data: bytes, path: Path) -> tuple[int, AuditEntry]:
    """Number of the segment, and the entry that its first line follows.

    Raises:
        AuditError: The line says that it follows a segment, and not how, or nobody signed that.
    """
    try:
        content = json.loads(data.partition(b"\n")[0])["content"]
        follows = content["kind"] == _BEGINS
    except (ValueError, TypeError, KeyError, RecursionError):
        return 1, NOTHING  # as the first line of all, which is verified with the others
    if not follows:
        return 1, NOTHING
    try:
        closing = _Closing.model_validate(content.get("closed"))
        if closing.signature is not None and closing.signed_by is not None:
            signature = bytes.fromhex(closing.signature)
            verify_signature(closing.signed_by, signature, closing.signed_text())
    except (ValidationError, RefusedError) as error:
        raise AuditError(
            f"{path}:1: what this line repeats of the segment before was altered, or never signed; "
            "restore the file from a copy and find out who wrote to it"
        ) from error
    return closing.segment + 1, closing.entry()


def _closed_segments(path: Path, archive: Path | None) -> dict[int, Path]:
    """Files of closed segments by their number."""
    name = re.compile(rf"{re.escape(path.stem)}\.([0-9]{{6,}}){re.escape(path.suffix)}")
    found = {}
    for folder in (path.parent,) if archive is None else (archive, path.parent):
        try:
            files = sorted(folder.iterdir())
        except OSError as error:
            raise StorageError(error, folder) from error
        found.update(
            {int(match[1]): file for file in files if (match := name.fullmatch(file.name))}
        )
    return found


def _is_closed_elsewhere(path: Path, segment: int) -> bool:
    """Whether a closed segment of this number is another file than the one at `path`."""
    closed = closed_segment(path, segment)
    return closed.exists() and not closed.samefile(path)
