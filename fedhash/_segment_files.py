"""The files of an audit log over several: their names, how one closes and how the next begins.

`fedhash.audit_segments` has the rules, and writes and verifies them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from fedhash.audit_log import NOTHING, AuditEntry, entry_hash, read_whole_lines
from fedhash.configuration import Settings
from fedhash.errors import AuditError, RefusedError, StorageError
from fedhash.rounds.messages import canonical_json
from fedhash.secagg.identity import verify_signature

__all__ = [
    "BEGINS",
    "CLOSED",
    "Closing",
    "begun",
    "bytes_of",
    "check_newest",
    "closed_segment",
    "closed_segments",
]

_DOMAIN = b"fedhash audit segment 1\n"
BEGINS: Literal["segment"] = "segment"
CLOSED: Literal["segment closed"] = "segment closed"

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Closing(Settings):
    """The content of the last line of a closed segment."""

    kind: Literal["segment closed"] = CLOSED
    segment: int = Field(ge=1, lt=1 << 53)
    entries: int = Field(ge=0, lt=1 << 53)
    head: _Hash
    signed_by: _Hash | None = None
    signature: Annotated[str, Field(pattern="^[0-9a-f]{128}$")] | None = None

    @model_validator(mode="after")
    def _a_key_that_is_named_signed(self) -> Closing:
        if (self.signed_by is None) != (self.signature is None):
            raise ValueError("signed_by and signature are there together, or neither is")
        return self

    def signed_text(self) -> bytes:
        return _DOMAIN + canonical_json([self.segment, self.entries, self.head]).encode()

    def entry(self) -> AuditEntry:
        content = self.model_dump(mode="json")
        number = self.entries + 1
        return AuditEntry(number, content, entry_hash(self.head, number, content))


def closed_segment(path: Path, segment: int) -> Path:
    """Where a segment of the log at `path` is once it is closed."""
    return path.with_name(f"{path.stem}.{segment:06}{path.suffix}")


def begun(data: bytes, path: Path) -> tuple[int, AuditEntry]:
    """Number of the segment, and the entry that its first line follows.

    Raises:
        AuditError: The line says that it follows a segment, and not how, or nobody signed that.
    """
    try:
        content = json.loads(data.partition(b"\n")[0])["content"]
        follows = content["kind"] == BEGINS
    except (ValueError, TypeError, KeyError, RecursionError):
        return 1, NOTHING  # as the first line of all, which is verified with the others
    if not follows:
        return 1, NOTHING
    try:
        closing = Closing.model_validate(content.get("closed"))
        if closing.signature is not None and closing.signed_by is not None:
            signature = bytes.fromhex(closing.signature)
            verify_signature(closing.signed_by, signature, closing.signed_text())
    except (ValidationError, RefusedError) as error:
        raise AuditError(
            f"{path}:1: what this line repeats of the segment before was altered, or never signed; "
            "restore the file from a copy and find out who wrote to it"
        ) from error
    return closing.segment + 1, closing.entry()


def closed_segments(path: Path, archive: Path | None) -> dict[int, Path]:
    """Files of closed segments by their number.

    Raises:
        AuditError: The two folders have different ones of one number.
        StorageError: The operating system refuses.
    """
    number_of = re.compile(rf"{re.escape(path.stem)}\.([0-9]{{6,18}}){re.escape(path.suffix)}")
    found: dict[int, Path] = {}
    for folder in (path.parent,) if archive is None else (archive, path.parent):
        try:
            for file in folder.iterdir():
                match = number_of.fullmatch(file.name)
                number = int(match[1]) if match else 0
                if number < 1 or file.name != closed_segment(path, number).name:
                    continue
                if number in found and bytes_of(found[number]) != bytes_of(file):
                    raise AuditError(
                        f"{found[number]} and {file} differ, and both are called segment {number}: "
                        "one was altered, or is of another log; keep the one that verifies"
                    )
                found[number] = file
        except OSError as error:
            raise StorageError(error, folder) from error
    return found


def bytes_of(file: Path) -> bytes:
    try:
        return read_whole_lines(file)
    except OSError as error:
        raise StorageError(error, file) from error


def check_newest(path: Path, segment: int, closed: dict[int, Path]) -> None:
    """Look for closed segments that are not before the one at `path`.

    Raises:
        AuditError: There is one, and it is another file.
        StorageError: The operating system refuses a file.
    """
    newest = max(closed, default=0)
    try:
        follows = newest < segment or closed[newest].samefile(path)
    except OSError as error:
        raise StorageError(error, closed[newest]) from error
    if not follows:
        raise AuditError(
            f"{path} holds segment {segment}, and {closed[newest]} is there: an older one was put "
            "in its place; restore it from a copy. If that file is none of this log, move it away"
        )
