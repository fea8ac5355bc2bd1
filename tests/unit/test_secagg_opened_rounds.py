"""What a site remembers of the sums that it helped to open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedhash.errors import CheckpointError
from fedhash.rounds._files import write_stored
from fedhash.rounds.messages import Message
from fedhash.secagg.opened_rounds import (
    FileOpenedRounds,
    MemoryOpenedRounds,
    OpenedRound,
    OpenedRounds,
)

FIRST = OpenedRound(1, ("site-00", "site-01", "site-02"), "a" * 64)
SECOND = OpenedRound(2, ("site-01", "site-02", "site-03"), "b" * 64)


@pytest.mark.parametrize(
    "new", [lambda folder: MemoryOpenedRounds(), lambda folder: FileOpenedRounds(folder / "opened")]
)
def test_the_newest_round_of_each_run(tmp_path: Path, new: Callable[[Path], OpenedRounds]) -> None:
    opened = new(tmp_path)
    assert opened.newest("run-1") is None
    opened.keep("run-1", FIRST)
    opened.keep("run-2", SECOND)
    assert opened.newest("run-1") == FIRST
    assert opened.newest("run-2") == SECOND
    opened.keep("run-1", SECOND)
    assert opened.newest("run-1") == SECOND


def test_files_outlive_the_process(tmp_path: Path) -> None:
    FileOpenedRounds(tmp_path).keep("run-1", FIRST)
    assert FileOpenedRounds(tmp_path).newest("run-1") == FIRST


def test_a_damaged_memory_is_no_empty_one(tmp_path: Path) -> None:
    """Taken for empty, it would let a sum be opened again over other sites."""
    FileOpenedRounds(tmp_path).keep("run-1", FIRST)
    path = tmp_path / "run-1"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="does not match its own hash"):
        FileOpenedRounds(tmp_path).newest("run-1")


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"round_number": 1, "survivors": ["site-00"]},
        {"round_number": "first", "survivors": ["site-00"], "task": "a"},
        {"round_number": 1, "survivors": 3, "task": "a"},
    ],
)
def test_a_memory_of_another_version(tmp_path: Path, header: dict[str, object]) -> None:
    write_stored(tmp_path / "run-1", Message("opened_round", header, {}))
    with pytest.raises(CheckpointError, match="written by another version"):
        FileOpenedRounds(tmp_path).newest("run-1")
