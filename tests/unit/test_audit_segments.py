"""A log over several files: archived, removed, altered, and a death while one is closed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedhash import audit_segments
from fedhash.audit_log import AuditEntry, AuditLog, entry_hash, entry_line, read_audit_log
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
        (the_newest_is_gone, "is gone, and closed segments of it are there; restore it from"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_harm_to_a_segment_is_found(path: Path, harm: Callable[[Path], None], told: str) -> None:
    harm(path)
    with pytest.raises((AuditError, StorageError), match=told):
        verify_segments(path)


@pytest.mark.parametrize(
    "name", ["audit.jsonl", "audit.000002.jsonl", "archive/audit.000001.jsonl"]
)
def test_a_pipe_in_a_segment_s_place_is_not_waited_for(path: Path, name: str) -> None:
    archive = path.parent / "archive"
    archive.mkdir()
    closed_segment(path, 1).rename(archive / closed_segment(path, 1).name)
    (path.parent / name).unlink()
    os.mkfifo(path.parent / name)
    with pytest.raises(StorageError, match="no regular file"):
        verify_segments(path, archive=archive)


def test_names_that_no_closed_segment_has_are_no_segments(path: Path) -> None:
    for name in ("audit.000000.jsonl", "audit.0000009.jsonl", "audit.٠٠٠٠٠٩.jsonl"):
        path.with_name(name).write_bytes(b"somebody's")
    assert len(verify_segments(path).files) == 4
    SegmentedAuditLog(path).close()


def test_a_segment_that_is_in_the_archive_as_well_is_the_same(path: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    kept = archive / closed_segment(path, 2).name
    kept.write_bytes(closed_segment(path, 2).read_bytes())
    assert verify_segments(path, archive=archive).archived == 0
    kept.write_bytes(kept.read_bytes().replace(b'"entry":2', b'"entry":3'))
    with pytest.raises(AuditError, match=r"archive/audit\.000002\.jsonl and .* differ"):
        verify_segments(path, archive=archive)


@pytest.mark.parametrize("older", [1, 2, 3])
def test_no_older_segment_is_gone_on_with(path: Path, tmp_path: Path, older: int) -> None:
    """Beside closed segments it is not written; nor does it verify where they are archived."""
    lines = closed_segment(path, older).read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))  # as before it was closed
    with pytest.raises(AuditError, match="an older one was put in its place"):
        SegmentedAuditLog(path)
    archive = tmp_path / "archive"
    archive.mkdir()
    for number in (1, 2, 3):
        closed = closed_segment(path, number)
        closed.rename(archive / closed.name)
    with SegmentedAuditLog(path) as log:  # nothing here tells of the others
        log.append({"other": "history"})
    with pytest.raises(AuditError, match=r"archive/audit\.000003\.jsonl is there"):
        verify_segments(path, archive=archive)


def test_a_log_that_is_gone_is_missed_by_who_noted_its_head(path: Path) -> None:
    head = verify_segments(path).head
    for file in path.parent.iterdir():
        file.unlink()
    with pytest.raises(AuditError, match=f"is gone, and the hash {head} was noted of it; restore"):
        verify_segments(path, head)
    with pytest.raises(StorageError, match="No such file"):
        verify_segments(path)  # of a site that has written nothing yet


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


@pytest.mark.parametrize("field", ["signature", "signed_by"])
@pytest.mark.parametrize("missing", [False, True], ids=["null", "missing"])
def test_a_beginning_with_half_a_signature_is_refused(
    path: Path, field: str, *, missing: bool
) -> None:
    """Such a log could be written anew by anyone, under the site's name."""
    for number in (1, 2, 3):
        closed_segment(path, number).unlink()
    content = json.loads(path.read_bytes().split(b"\n")[0])["content"]
    closed = content["closed"]
    closed[field] = None
    forged = AuditEntry(
        closed["entries"] + 1, closed, entry_hash(closed["head"], closed["entries"] + 1, closed)
    )
    if missing:
        del closed[field]
    path.write_bytes(entry_line(forged, content)[1])
    for reader in (verify_segments, SegmentedAuditLog):
        with pytest.raises(AuditError, match=r"audit\.jsonl:1: .* never signed"):
            reader(path)


def test_a_segment_that_is_closed_while_the_log_is_read_is_no_harm(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer goes on after any one reading of a file or folder; or after all of them."""
    originals = {name: getattr(audit_segments, name) for name in ("_read", "closed_segments")}

    def closing(name: str, due: Callable[[], bool]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            found = originals[name](*arguments)
            if due():
                with monkeypatch.context() as patch:
                    for each, original in originals.items():
                        patch.setattr(audit_segments, each, original)
                    log.close_segment(IDENTITY)
            return found

        return call

    with SegmentedAuditLog(path) as log:
        for moment in range(8):
            calls = itertools.count()
            with monkeypatch.context() as patch:
                for name in originals:
                    due = functools.partial(lambda calls, at: next(calls) == at, calls, moment)
                    patch.setattr(audit_segments, name, closing(name, due))
                found = verify_segments(path)
            assert (found.head, found.archived) == (log.head, 0)
            assert next(calls) > moment, "the writer went on meanwhile"
        for name in originals:
            monkeypatch.setattr(audit_segments, name, closing(name, lambda: True))
        with pytest.raises(AuditError, match="verify it again"):
            verify_segments(path)


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
    with SegmentedAuditLog(path) as log:
        taken.write_bytes(b"somebody's")
        with pytest.raises(AuditError, match="is to get this name"):
            log.close_segment(IDENTITY)
    with pytest.raises(AuditError, match="If that file is none of this log, move it away"):
        SegmentedAuditLog(path, noted=log.head)
    assert taken.read_bytes() == b"somebody's"
    taken.unlink()
    with SegmentedAuditLog(path, noted=log.head) as log:
        log.append({"goes on": True})
    assert verify_segments(path).files[-2] == taken


def test_a_file_system_without_hard_links_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as vfat does

    with SegmentedAuditLog(path) as log, monkeypatch.context() as patch:
        patch.setattr(os, "link", refusing)
        with pytest.raises(StorageError, match="makes no hard links"):
            log.close_segment(IDENTITY)
    assert verify_segments(path, log.head).head == log.head
    SegmentedAuditLog(path).close()  # on another file system it goes on
    assert len(verify_segments(path).files) == 5


def test_a_log_that_is_a_link_is_refused(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    with pytest.raises(AuditError, match="is a symbolic link"):
        SegmentedAuditLog(path)
    assert path.is_symlink()


def test_the_daemon_says_that_a_name_is_taken_and_goes_on_once_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = SiteAudit(path, identity=IDENTITY, segment_bytes=1, again_s=0)
    audit.start()
    audit.append({"number": 1})
    taken = closed_segment(path, 1)
    taken.write_bytes(b"somebody's")
    for _ in range(3):
        with pytest.raises(AuditError, match=taken.name):
            audit.append({"number": 2})
        assert audit.status()["healthy"] is False
        assert taken.name in str(audit.status()["fault"])
    taken.rename(tmp_path / "elsewhere")
    audit.append({"number": 3})
    assert (audit.status()["healthy"], audit.status()["fault"]) == (True, None)
    audit.stop()
    mine = [each.content.get("number") for each in verify_segments(path, last=100).newest]
    assert [number for number in mine if number] == [1, 3]


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
