"""The audit log: what it finds, what it repairs, and what it cannot find."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhash.audit_log import START, AuditLog, read_audit_log
from fedhash.errors import AuditError, StorageError

CONTENTS: list[dict[str, Any]] = [
    {"kind": "step", "round": 5, "sums": [0.1, -2e-7, 3.0]},
    {"kind": "step", "round": 10, "sums": []},
    {"kind": "note", "text": 'ünïcode\n"quoted" \u2028'},
    {},
]


def write(path: Path, contents: list[dict[str, Any]] = CONTENTS) -> bytes:
    with AuditLog(path) as log:
        for content in contents:
            log.append(content)
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("log") / "log.jsonl")


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("altered") / "log.jsonl"


def test_entries_come_back_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "made" / "log.jsonl"
    write(path)
    entries = read_audit_log(path)
    assert [entry.content for entry in entries] == CONTENTS
    assert [entry.number for entry in entries] == [1, 2, 3, 4]
    with AuditLog(path, noted=entries[1].hash) as log:
        assert log.head == entries[-1].hash
        fifth = log.append({"more": True})
    assert read_audit_log(path)[-1] == fifth


def test_the_format_is_the_published_one(whole: bytes) -> None:
    """Computed with nothing but the standard library: an auditor needs no fedhash."""
    previous = hashlib.sha256(b"fedhash audit log 1").hexdigest()
    for number, line in enumerate(whole.decode().split("\n")[:-1], 1):
        read = json.loads(line)
        text = json.dumps(
            [previous, number, read["content"]],
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
        )
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert (read["hash"], read["number"], read["previous"]) == (digest, number, previous)
        previous = digest


@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_any_changed_byte_is_found(whole: bytes, altered: Path, place: int, byte: int) -> None:
    place %= len(whole)
    changed = whole[:place] + bytes([byte]) + whole[place + 1 :]
    if changed != whole:
        altered.write_bytes(changed)
        with pytest.raises(AuditError):
            read_audit_log(altered)


@given(place=st.integers(0, 10_000), inserted=st.binary(max_size=3), removed=st.integers(0, 3))
def test_any_inserted_or_removed_bytes_are_found(
    whole: bytes, altered: Path, place: int, inserted: bytes, removed: int
) -> None:
    place %= len(whole)
    changed = whole[:place] + inserted + whole[place + removed :]
    if changed != whole:
        altered.write_bytes(changed)
        with pytest.raises(AuditError):
            read_audit_log(altered)


@given(st.lists(st.integers(0, 3), max_size=6))
def test_lines_that_are_removed_repeated_or_moved_are_found(
    whole: bytes, altered: Path, order: list[int]
) -> None:
    lines = [line + b"\n" for line in whole.split(b"\n")[:-1]]
    altered.write_bytes(b"".join(lines[i] for i in order))
    newest = json.loads(lines[-1])["hash"]
    if order == list(range(len(order))):  # a prefix: only a noted hash tells
        assert len(read_audit_log(altered)) == len(order)
        if len(order) < len(lines):
            with pytest.raises(AuditError, match="none of them with the hash"):
                read_audit_log(altered, noted=newest)
    else:
        with pytest.raises(AuditError, match="was altered, or one before it was removed"):
            read_audit_log(altered)


def test_a_log_that_was_written_anew_is_found_by_a_noted_hash_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path)
    noted = read_audit_log(path)[2].hash
    path.unlink()
    write(path, [*CONTENTS[:2], {"forged": True}, *CONTENTS[3:]])
    assert len(read_audit_log(path)) == 4
    for open_log in (read_audit_log, AuditLog):
        with pytest.raises(AuditError, match="cut short, written anew or exchanged"):
            open_log(path, noted)


def test_a_line_that_a_crash_left_unfinished_is_told_and_removed(
    tmp_path: Path, whole: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.jsonl"
    last = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for end in range(last + 1, len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(AuditError, match=r"log\.jsonl:4: the last line has no end"):
            read_audit_log(path)
        caplog.clear()
        with AuditLog(path) as log:
            log.append(CONTENTS[-1])
        assert f"the last {end - last} bytes are of a line that a crash left" in caplog.text
        assert path.read_bytes() == whole


def test_damage_before_the_last_line_is_never_repaired(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "log.jsonl"
    damaged = whole.replace(b'"round":10', b'"round":11')
    path.write_bytes(damaged)
    with pytest.raises(AuditError, match=r"log\.jsonl:2: the line was altered"):
        AuditLog(path)
    assert path.read_bytes() == damaged


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with AuditLog(path) as log:
        log.append({})
        with pytest.raises(AuditError, match="being written by another process"):
            AuditLog(path)
        assert len(read_audit_log(path)) == 1
    AuditLog(path).close()


@pytest.mark.parametrize("content", [{"x": float("nan")}, {"x": {1, 2}}, {"x": "\ud800"}])
def test_what_json_cannot_say_is_not_written(tmp_path: Path, content: dict) -> None:
    with AuditLog(tmp_path / "log.jsonl") as log:
        with pytest.raises(AuditError, match="cannot be written"):
            log.append(content)
        assert log.head == START
    assert read_audit_log(tmp_path / "log.jsonl") == ()


@contextmanager
def disk_that_ends_at(size: int) -> Iterator[None]:
    """The system refuses every byte of a file beyond `size`, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_writing_and_harms_no_line(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "log.jsonl"
    write(path)
    with AuditLog(path) as log:  # leaving it writes nothing more
        with disk_that_ends_at(len(whole) + 50), pytest.raises(StorageError, match="too large"):
            log.append({"text": "x" * 500})
        assert path.read_bytes() == whole
        with pytest.raises(AuditError, match="was closed, perhaps after an entry"):
            log.append({"text": "there is space again"})
    with AuditLog(path) as log:
        log.append({"text": "there is space again"})
    assert [entry.number for entry in read_audit_log(path)] == [1, 2, 3, 4, 5]


def test_a_line_that_did_not_reach_the_disk_is_taken_back(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    write(path)
    sync = os.fsync
    failures = [OSError(5, "Input/output error")]

    def fails_once(file: int) -> None:
        if failures:
            raise failures.pop()
        sync(file)

    with AuditLog(path) as log:
        monkeypatch.setattr(os, "fsync", fails_once)
        with pytest.raises(StorageError, match="Input/output error"):
            log.append({"text": "x"})
    assert path.read_bytes() == whole


def test_a_log_that_is_gone_does_not_hold_what_was_noted_of_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path)
    noted = read_audit_log(path)[-1].hash
    path.unlink()
    with pytest.raises(AuditError, match="is gone"):
        read_audit_log(path, noted)


def test_what_the_system_refuses_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        read_audit_log(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        AuditLog(tmp_path / "file" / "log.jsonl")
