"""A log over several files: archived, removed, altered, and a death while one is closed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhash.audit_log import AuditLog, read_audit_log
from fedhash.audit_segments import SegmentedAuditLog, closed_segment, verify_segments
from fedhash.errors import AuditError, StorageError
from fedhash.secagg.identity import SiteIdentity
from fedhash_client.daemon.audit import SiteAudit

IDENTITY = SiteIdentity.generate()


def write(path: Path, segments: int = 4) -> None:
    """Two entries in each segment, beside the lines that close and begin them."""
    with SegmentedAuditLog(path) as log:
        for segment in range(1, segments + 1):
            log.append({"segment": segment, "entry": 1})
            log.append({"segment": segment, "entry": 2})
            if segment < segments:
                log.close_segment(IDENTITY)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "audit.jsonl"
    write(path)
    return path


def concatenated(path: Path, segments: int = 3) -> bytes:
    files = [closed_segment(path, number) for number in range(1, segments + 1)]
    return b"".join(file.read_bytes() for file in (*files, path))


def test_segments_one_behind_the_other_are_one_log(path: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(concatenated(path))
    entries = read_audit_log(whole)
    found = verify_segments(path, last=len(entries) + 1)
    assert found.newest == entries
    assert (found.entries, found.head) == (len(entries), entries[-1].hash)
    assert (found.archived, found.archived_entries) == (0, 0)
    assert [file.name for file in found.files] == [
        *(f"audit.00000{number}.jsonl" for number in (1, 2, 3)),
        "audit.jsonl",
    ]
    assert found.signed_by == {IDENTITY.public_hex}
    mine = [each.content for each in entries if "entry" in each.content]
    assert mine == [{"segment": s, "entry": e} for s in (1, 2, 3, 4) for e in (1, 2)]
    for entry in entries:
        assert verify_segments(path, entry.hash).head == found.head
    assert verify_segments(path, last=3).newest == entries[-3:]


def test_a_log_of_one_file_is_the_first_segment(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as old:
        old.append({"from": "before there were segments"})
    with SegmentedAuditLog(path, noted=old.head) as log:
        log.close_segment(None)
        log.append({"more": True})
    found = verify_segments(path, old.head, last=9)
    assert found.newest[0].content == {"from": "before there were segments"}
    assert found.signed_by == {None}
    with pytest.raises(AuditError, match=r"audit\.jsonl:1: the line was altered"):
        AuditLog(path)  # a log that has no segments does not begin in the middle


def test_what_is_left_verifies_without_what_was_archived(path: Path, tmp_path: Path) -> None:
    before = verify_segments(path, last=100)
    archive = tmp_path / "archive"
    archive.mkdir()
    for number in (1, 2, 3):
        closed = closed_segment(path, number)
        closed.rename(archive / closed.name)
        left = verify_segments(path, last=100)
        assert (left.entries, left.head) == (before.entries, before.head)
        assert left.archived == number
        assert left.newest == before.newest[left.archived_entries :]
        assert left.signed_by == {IDENTITY.public_hex}
        again = verify_segments(path, before.newest[0].hash, last=100, archive=archive)
        assert (again.newest, again.archived) == (before.newest, 0)
    with pytest.raises(AuditError, match=r"one of the 11 in archived segments"):
        verify_segments(path, before.newest[0].hash)
    with SegmentedAuditLog(path, noted=before.head) as log:
        log.close_segment(IDENTITY)
    assert verify_segments(path).archived == 3
    assert verify_segments(path, archive=archive).archived == 0


def removed(path: Path) -> None:
    closed_segment(path, 2).unlink()


def cut_short(path: Path) -> None:
    closed = closed_segment(path, 2)
    closed.write_bytes(closed.read_bytes()[: closed.read_bytes()[:-1].rindex(b"\n") + 1])


def emptied(path: Path) -> None:
    closed_segment(path, 2).write_bytes(b"")


def altered(path: Path) -> None:
    closed = closed_segment(path, 2)
    closed.write_bytes(closed.read_bytes().replace(b'"entry":2', b'"entry":3'))


def moved(path: Path) -> None:
    second, third = closed_segment(path, 2), closed_segment(path, 3)
    kept = second.read_bytes()
    third.rename(second)
    third.write_bytes(kept)


def written_anew(path: Path) -> None:
    other = path.parent / "other" / path.name
    with SegmentedAuditLog(other) as log:
        log.append({"segment": 1, "entry": "forged"})
        log.append({"segment": 1, "entry": 2})
        log.close_segment(IDENTITY)
    closed_segment(other, 1).replace(closed_segment(path, 1))


def an_older_one_in_the_place_of_the_newest(path: Path) -> None:
    path.write_bytes(closed_segment(path, 2).read_bytes())


def a_copy_of_the_last_closed_in_the_place_of_the_newest(path: Path) -> None:
    path.write_bytes(closed_segment(path, 3).read_bytes())


def the_newest_is_gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (removed, r"audit\.000002\.jsonl is missing, and .*audit\.000001\.jsonl is there"),
        (cut_short, r"audit\.000002\.jsonl does not end as the segment after it repeats"),
        (emptied, r"audit\.000002\.jsonl does not end as the segment after it repeats"),
        (altered, r"audit\.000002\.jsonl:3: the line was altered"),
        (moved, r"audit\.000003\.jsonl does not end as the segment after it repeats"),
        (written_anew, r"audit\.000001\.jsonl does not end as the segment after it repeats"),
        (an_older_one_in_the_place_of_the_newest, "an older one was put in its place"),
        (a_copy_of_the_last_closed_in_the_place_of_the_newest, "an older one was put in its place"),
        (the_newest_is_gone, "cannot be used"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_harm_to_a_segment_is_found(path: Path, harm: Callable[[Path], None], told: str) -> None:
    harm(path)
    with pytest.raises((AuditError, StorageError), match=told):
        verify_segments(path)


def test_no_new_chain_begins_beside_closed_segments(path: Path) -> None:
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(AuditError, match="is gone, and closed segments of it are there"):
        SegmentedAuditLog(path)
    assert not path.exists()
    path.write_bytes(kept)
    SegmentedAuditLog(path).close()


@pytest.mark.parametrize("field", ["entries", "head", "signature", "segment", "signed_by"])
def test_a_beginning_that_nobody_signed_is_refused(path: Path, field: str) -> None:
    """Without the segments before it, this line alone says what they held."""
    for number in (1, 2, 3):
        closed_segment(path, number).unlink()
    line = path.read_bytes().split(b"\n")[0]
    place = line.index(b'"' + field.encode() + b'":') + len(field) + 4
    digit = b"7" if line[place : place + 1] != b"7" else b"8"
    path.write_bytes(line[:place] + digit + line[place + 1 :] + b"\n")
    for reader in (verify_segments, SegmentedAuditLog):
        with pytest.raises(AuditError, match=r"audit\.jsonl:1"):
            reader(path)


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_death_at_any_call_of_the_system_leaves_one_whole_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    """Killed before or after each call in turn, until a closing runs to its end."""
    calls = ((os, "fsync"), (os, "link"), (Path, "replace"), (Path, "unlink"), (fcntl, "flock"))
    for deadly in range(100):
        path = tmp_path / str(deadly) / "audit.jsonl"
        write(path, 2)
        log = SegmentedAuditLog(path)
        left = [deadly]

        def dying(original: Any, left: list[int] = left) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == -1 and not after:
                    raise Killed
                returned = original(*arguments, **options)
                if left[0] == -1:
                    raise Killed
                return returned

            return call

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            for place, name in calls:
                patch.setattr(place, name, dying(getattr(place, name)))
            log.close_segment(IDENTITY)
            log.append({"acknowledged": True})
        log.close()  # as the system does for a process that died
        verify_segments(path)
        with SegmentedAuditLog(path, noted=log.head) as again:
            again.append({"goes on": True})
        found = verify_segments(path, log.head, last=100)
        assert found.archived == 0
        mine = [each.content for each in found.newest if "entry" in each.content]
        assert mine == [{"segment": s, "entry": e} for s in (1, 2) for e in (1, 2)]
        assert found.newest[-1].content == {"goes on": True}
        assert len(found.files) in {2, 3}, "the death came before or after the closing line"
        assert not path.with_name("audit.jsonl.next").exists() or len(found.files) == 2
        if left[0] >= 0:
            assert deadly > 8, "every call was deadly once"
            assert {"acknowledged": True} in [each.content for each in found.newest]
            return
    pytest.fail("the closing never ran to its end")


def test_a_line_of_the_next_segment_that_a_crash_left_unfinished_is_nobody_s(path: Path) -> None:
    path.with_name("audit.jsonl.next").write_bytes(b'{"content":{"ki')
    with SegmentedAuditLog(path) as log:
        log.close_segment(IDENTITY)
    assert len(verify_segments(path).files) == 5


def test_one_process_writes_also_over_a_closing(path: Path) -> None:
    with SegmentedAuditLog(path) as log:
        log.close_segment(IDENTITY)
        with pytest.raises(AuditError, match="being written by another process"):
            SegmentedAuditLog(path)
        log.append({})


def test_a_name_that_is_taken_is_told_and_no_file_is_lost(path: Path) -> None:
    taken = closed_segment(path, 4)
    taken.write_bytes(b"somebody's")
    with SegmentedAuditLog(path) as log, pytest.raises(AuditError, match="is to get this name"):
        log.close_segment(IDENTITY)
    assert taken.read_bytes() == b"somebody's"
    taken.unlink()
    with SegmentedAuditLog(path, noted=log.head) as log:
        log.append({"goes on": True})
    assert verify_segments(path).files[-2] == taken


def test_the_daemon_closes_segments_and_opens_the_newest_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    audit = SiteAudit(path, identity=IDENTITY, segment_bytes=2000)
    audit.start()
    for number in range(40):
        audit.append({"number": number})
    audit.stop()
    found = verify_segments(path, last=1000)
    assert len(found.files) > 3
    assert all(file.stat().st_size < 4000 for file in found.files)
    mine = [each.content["number"] for each in found.newest if "number" in each.content]
    assert mine == list(range(40))
    for file in found.files[:-1]:
        file.unlink()
    audit.start()
    assert audit.status()["head"] == found.head
    audit.stop()


@pytest.mark.parametrize("refused", range(8))
def test_a_disk_that_is_full_while_a_segment_is_closed_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    path = tmp_path / "audit.jsonl"
    audit = SiteAudit(path, identity=IDENTITY, segment_bytes=1, again_s=0)
    audit.start()
    audit.append({"number": 1})
    sync, left = os.fsync, [refused]

    def refusing(file: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refusing)
        for _ in range(2):
            with contextlib.suppress(StorageError):
                audit.append({"number": 2})
    audit.append({"number": 3})
    assert audit.status()["fault"] is None
    audit.stop()
    mine = [each.content.get("number") for each in verify_segments(path, last=100).newest]
    assert (mine.count(1), mine[-1]) == (1, 3)
