"""A ledger's length and newest hash, in a small file beside it: a shortened or lost one is found.

>>> write_anchor(Path("ledger.sqlite"), Anchor(4, "2e6a..."))
>>> read_anchor(Path("ledger.sqlite"))
Anchor(entries=4, newest='2e6a...')
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from fedhash.durability import sync_folder
from fedhash.errors import LedgerError, StorageError

__all__ = [
    "Anchor",
    "altered",
    "anchor_path",
    "new_file",
    "read_anchor",
    "write_anchor",
]


@dataclass(frozen=True)
class Anchor:
    """A ledger's length and newest hash; whoever notes it can later tell a shortened ledger."""

    entries: int
    newest: str

    def __str__(self) -> str:
        return f"{self.entries}:{self.newest}"


def anchor_path(path: Path) -> Path:
    """The file beside a ledger that holds its length and newest hash."""
    return path.with_name(path.name + ".anchor")


def read_anchor(path: Path) -> Anchor | None:
    """The anchor of the ledger at `path`; None without one.

    Raises:
        LedgerError: The file is damaged.
    """
    try:
        content = json.loads(anchor_path(path).read_text(encoding="utf-8"))
        return Anchor(int(content["entries"]), str(content["newest"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise altered(path, f"{anchor_path(path)} is damaged") from error


def write_anchor(path: Path, anchor: Anchor) -> None:
    """Replace the anchor file in one step, synced.

    Raises:
        StorageError: The operating system refuses it.
    """
    content = json.dumps({"entries": anchor.entries, "newest": anchor.newest}) + "\n"
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")  # two processes may write
    try:
        with open(new_file(unfinished), "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(anchor_path(path))
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(error, anchor_path(path)) from error


def new_file(path: Path) -> int:
    """A descriptor of a file that was not there, for its owner alone."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)


def altered(path: Path, found: str) -> LedgerError:
    """The error of a ledger that does not verify."""
    return LedgerError(
        f"{path} was altered, shortened or damaged ({found}); it was left as it is and nothing "
        "private runs: keep a copy, find out who wrote to it, and restore the newest whole one"
    )
