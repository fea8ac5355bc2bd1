"""The daemon's audit log over faults of the disk: it says that it is ill, and mends itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedhash.audit_log import read_audit_log
from fedhash.errors import AuditError, StorageError
from fedhash_client.daemon.audit import SiteAudit


class Disk:
    """`os.fsync`, which a disk may refuse."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuses = False
        self._sync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, file: int) -> None:
        if self.refuses:
            raise OSError(28, "No space left on device")
        self._sync(file)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("again_s", [0.0, 1000.0])
def test_a_log_that_the_disk_refused_is_written_again_once_there_is_room(
    tmp_path: Path, disk: Disk, again_s: float
) -> None:
    path = tmp_path / "audit.jsonl"
    audit = SiteAudit(path, again_s=again_s)
    audit.start()
    audit.append({"n": 1})
    disk.refuses = True
    for _ in range(3):
        with pytest.raises((StorageError, AuditError), match="No space left"):
            audit.append({"n": 2})
        assert audit.status()["healthy"] is False
        assert "No space left" in str(audit.status()["fault"])
    disk.refuses = False
    if again_s:  # the whole log is not read for each query that a full disk turns away
        with pytest.raises(AuditError, match="nothing can be written"):
            audit.append({"n": 3})
        audit.stop()
        assert read_audit_log(path)[0].content == {"n": 1}
        return
    entry = audit.append({"n": 3})
    assert audit.status() == {"healthy": True, "head": entry.hash, "fault": None}
    audit.stop()
    assert read_audit_log(path)[-1] == entry
    assert audit.status()["healthy"] is False


def test_a_log_that_was_altered_meanwhile_is_not_written(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "audit.jsonl"
    audit = SiteAudit(path, again_s=0)
    audit.start()
    audit.append({"n": 1})
    disk.refuses = True
    with pytest.raises(StorageError):
        audit.append({"n": 2})
    disk.refuses = False
    path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(AuditError, match="that was noted"):
            audit.append({"n": 3})
        assert audit.status()["healthy"] is False
    audit.stop()


def test_what_json_cannot_say_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    audit = SiteAudit(tmp_path / "audit.jsonl")
    audit.start()
    with pytest.raises(AuditError, match="cannot be written"):
        audit.append({"n": float("nan")})
    assert audit.status()["healthy"] is True
    audit.append({"n": 1})
    audit.stop()
