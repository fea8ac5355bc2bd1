"""Files that are whole or absent: written beside, synced and renamed, with their hash inside.

A stored message is its SHA-256 (32 bytes) followed by its byte form.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedhash.durability import replace_file
from fedhash.errors import CheckpointError, MessageError
from fedhash.rounds.messages import Message

__all__ = ["is_stored", "read_stored", "stored_names", "write_stored"]

_HASH_BYTES = 32
# A site's memory keeps it from giving to a run twice: of all files, only checkpoints may go.
_REMEDY = (
    "restore it from a copy or start a new run; do not delete it, for it keeps this site from "
    "answering the same round in two ways"
)


def write_stored(path: Path, message: Message) -> None:
    """Store `message`; a process that dies here leaves the earlier file or the whole new one.

    Raises:
        CheckpointError: The operating system refuses to write; an earlier file stays as it is.
    """
    data = message.encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, hashlib.sha256(data).digest() + data)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}); free disk space or correct "
            "the folder's rights, then go on: what was stored before is whole"
        ) from error


def is_stored(path: Path) -> bool:
    """Whether there is anything at `path`; what cannot be looked at is not nothing.

    Raises:
        CheckpointError: The operating system does not say.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unreadable(path, error) from error
    return True


def stored_names(folder: Path) -> list[str]:
    """Names in a folder; none for a folder that is not there.

    Raises:
        CheckpointError: The operating system does not say.
    """
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({error}); check its permissions")


def read_stored(path: Path, kind: str, remedy: str = _REMEDY) -> Message:
    """Read what `write_stored` wrote.

    Args:
        path: The file.
        kind: What kind of message it must hold.
        remedy: What to do about a damaged file.

    Raises:
        CheckpointError: The file is damaged or holds something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    digest, content = data[:_HASH_BYTES], data[_HASH_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointError(
            f"{path} does not match its own hash, so it was damaged or altered; {remedy}"
        )
    try:
        message = Message.decode(content, max_bytes=len(content))
    except MessageError as error:
        raise CheckpointError(f"{path} was written by another version: {error}") from error
    if message.kind != kind:
        raise CheckpointError(f"{path} holds a {message.kind!r}, expected a {kind!r}")
    return message
