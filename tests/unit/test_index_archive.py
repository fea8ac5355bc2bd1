"""The archive's file and its life: adding, replacing, removing, reopening, damage, releases."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedhash.agreement import Agreement
from fedhash.errors import ArchiveError, ModelError, QueryError
from fedhash.index import (
    Archive,
    Entry,
    Match,
    SiteAnswer,
    SiteSearcher,
    replace_archive,
    site_handle,
)
from fedhash.search import Hit, Query

SECRET = b"0123456789abcdef"
BITS = 128


def code(number: int) -> bytes:
    return np.random.default_rng(number).bytes(BITS // 8)


def entry(number: int, **changes: object) -> Entry:
    fields = {
        "handle": site_handle(SECRET, f"study-{number}"),
        "patient_id": f"patient-{number // 2}",
        "modality": "image",
        "code": code(number),
        "attributes": {"sex": "fm"[number % 2]},
    }
    return Entry(**(fields | changes))


def query(number: int = 0, **changes: object) -> Query:
    fields = {
        "release_id": "r1",
        "modality": "image",
        "code": code(number),
        "weights": np.zeros(BITS, dtype=np.int16),
        "k": 1000,
    }
    return Query(**(fields | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive.sqlite"


@pytest.fixture
def archive(path: Path) -> Iterator[Archive]:
    with Archive(path, "r1", BITS) as archive:
        yield archive


def test_a_stored_code_is_found_at_distance_0(archive: Archive) -> None:
    archive.add([entry(n) for n in range(50)])
    assert archive.search(query(7, k=1)) == [Match(entry(7).handle, 0, 0)]


def test_an_empty_archive_answers_with_nothing(archive: Archive) -> None:
    archive.add([])
    assert archive.search(query()) == []
    assert archive.remove_patient("nobody") == 0
    assert archive.count() == 0


def test_modalities_are_searched_apart(archive: Archive) -> None:
    archive.add([entry(0), entry(1), entry(0, modality="report", code=code(9))])
    assert archive.search(query(9, modality="report")) == [Match(entry(0).handle, 0, 0)]
    assert len(archive.search(query(9))) == 2
    assert archive.search(query(modality="signal")) == []
    assert (archive.count("image"), archive.count("report"), archive.count()) == (2, 1, 3)


def test_adding_a_study_again_replaces_it(path: Path, archive: Archive) -> None:
    archive.add([entry(n) for n in range(4)])
    archive.add([entry(1, code=code(99), attributes={"sex": "f"}), entry(4)])
    assert archive.count() == 5
    assert archive.search(query(99, k=1)) == [Match(entry(1).handle, 0, 0)]
    assert archive.search(query(1, radius=0)) == []
    assert len(archive.search(query(filters={"sex": "f"}))) == 4
    found = archive.search(query())
    archive.close()
    with Archive(path, "r1", BITS) as reopened:
        assert reopened.search(query()) == found


def test_a_study_can_move_to_another_patient(archive: Archive) -> None:
    archive.add([entry(0)])
    archive.add([entry(0, patient_id="merged")])
    assert archive.remove_patient("patient-0") == 0
    assert archive.remove_patient("merged") == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry(1, handle="study-1"), "'study-1' is not 32 lowercase hex digits"),
        (entry(1, handle="A" * 32), "lowercase hex"),
        (entry(1, handle="a" * 32 + "\n"), "lowercase hex"),
        (entry(1, code=bytes(8)), "has 64 bits, expected 128"),
        (entry(0), "a handle twice for 'image'"),
    ],
)
def test_a_bad_entry_keeps_the_whole_batch_out(archive: Archive, bad: Entry, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        archive.add([entry(0), bad])
    assert archive.count() == 0
    archive.add([entry(0), entry(1)])
    assert archive.count() == 2


def test_removing_a_patient_takes_all_entries_and_nobody_elses(
    path: Path, archive: Archive
) -> None:
    archive.add([entry(n, patient_id=f"patient-{n % 3}") for n in range(9)])
    archive.add([entry(4, patient_id="patient-1", modality="report")])
    assert archive.remove_patient("patient-1") == 4
    assert archive.remove_patient("patient-1") == 0
    found = archive.search(query())
    assert {m.handle for m in found} == {entry(n).handle for n in (0, 2, 3, 5, 6, 8)}
    assert archive.search(query(modality="report")) == []
    archive.close()
    with Archive(path, "r1", BITS) as reopened:
        assert reopened.search(query()) == found


def test_removed_rows_are_physically_gone(path: Path, archive: Archive) -> None:
    archive.add([entry(n) for n in range(400)])
    archive.add([entry(1000, patient_id="leaving", attributes={"device": "one-of-a-kind"})])
    archive.add([entry(n) for n in range(400, 800)])

    def stored(needle: bytes) -> bool:
        files = [path, path.with_name(path.name + "-wal")]
        return any(needle in file.read_bytes() for file in files if file.exists())

    needles = [code(1000), bytes.fromhex(entry(1000).handle), b"one-of-a-kind"]
    assert all(map(stored, needles))
    archive.remove_patient("leaving")
    assert not any(map(stored, needles))
    assert stored(code(1))
    assert not stored(b"patient-")  # ids of patients are stored as keyed hashes only


def test_no_answer_depends_on_batches_or_on_reopening(tmp_path: Path) -> None:
    with Archive(tmp_path / "a", "r1", BITS) as one, Archive(tmp_path / "b", "r1", BITS) as many:
        one.add([entry(n) for n in range(100)])
        for n in reversed(range(0, 100, 10)):
            many.add([entry(m) for m in range(n, n + 10)])
        assert one.search(query()) == many.search(query())


def test_searches_see_whole_batches_only(archive: Archive) -> None:
    done = threading.Event()
    sizes: set[int] = set()

    def search() -> None:
        while not done.is_set():
            sizes.add(len(archive.search(query(k=10_000))))

    reader = threading.Thread(target=search)
    reader.start()
    for start in range(0, 400, 20):
        archive.add([entry(n, code=code(0)) for n in range(start, start + 20)])
    done.set()
    reader.join()
    assert {size % 20 for size in sizes} == {0}


@pytest.mark.parametrize(("release", "bits"), [("r2", BITS), ("r1", 64)])
def test_another_release_or_width_is_refused(path: Path, release: str, bits: int) -> None:
    with Archive(path, "r1", BITS) as archive:
        archive.add([entry(0)])
    before = path.read_bytes()
    with pytest.raises(ArchiveError, match=f"128-bit codes of release r1, expected {bits}-bit"):
        Archive(path, release, bits)
    assert path.read_bytes() == before


def test_an_impossible_code_length_is_refused(path: Path) -> None:
    with pytest.raises(ModelError, match="multiple of 8"):
        Archive(path, "r1", 12)
    assert not path.exists()


def test_queries_of_another_release_or_width_are_refused(archive: Archive) -> None:
    with pytest.raises(QueryError, match="query is of release r2, this archive of release r1"):
        archive.search(query(release_id="r2"))
    with pytest.raises(QueryError, match="64 bits, expected 128"):
        archive.search(query(code=bytes(8), weights=np.zeros(64, dtype=np.int16)))


def test_a_second_opener_is_refused(path: Path, archive: Archive) -> None:
    with pytest.raises(ArchiveError, match="in use by another process"):
        Archive(path, "r1", BITS)


def test_every_changed_byte_is_found_or_changes_no_answer(path: Path) -> None:
    with Archive(path, "r1", BITS) as archive:
        archive.add([entry(n) for n in range(120)])
        found = archive.search(query())
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in [*range(100), *rng.integers(100, len(good), 400).tolist()]:
        bad = bytearray(good)
        bad[place] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            with Archive(path, "r1", BITS) as archive:
                assert archive.search(query()) == found
                assert archive.remove_patient("nobody") == 0
        except ArchiveError:
            refused += 1
            assert path.read_bytes() == bytes(bad)
    assert refused > 100


@pytest.mark.parametrize(
    "content", [b"", b"x", b"not an archive" * 1000, b"SQLite format 3\0" + bytes(4080)]
)
def test_a_file_that_is_no_archive_is_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"name another file|restore it from a backup"):
        Archive(path, "r1", BITS)
    assert path.read_bytes() == content


def test_a_truncated_file_is_refused(path: Path) -> None:
    with Archive(path, "r1", BITS) as archive:
        archive.add([entry(n) for n in range(500)])
    good = path.read_bytes()
    for length in range(0, len(good), 3000):
        path.write_bytes(good[:length])
        with pytest.raises(ArchiveError):
            Archive(path, "r1", BITS)
        assert path.read_bytes() == good[:length]


def test_rows_missing_behind_the_archives_back_are_noticed(path: Path) -> None:
    with Archive(path, "r1", BITS) as archive:
        archive.add([entry(n) for n in range(10)])
    database = sqlite3.connect(path)
    with database:
        database.execute("DELETE FROM entries WHERE entry = 3")
    database.close()
    with pytest.raises(ArchiveError, match="checksum over its rows does not fit"):
        Archive(path, "r1", BITS)


def test_another_applications_database_is_refused(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(ArchiveError, match="of kind 0x0 and format 0, expected an archive"):
        Archive(path, "r1", BITS)
    assert path.read_bytes() == before


def test_a_folder_in_the_place_of_the_file_is_explained(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ArchiveError, match="cannot be used"):
        Archive(path, "r1", BITS)


def test_what_cannot_be_stored_is_not_searched(path: Path, archive: Archive) -> None:
    archive.add([entry(0)])
    archive._store._database.execute("PRAGMA query_only = ON")  # as a full or read-only disk
    with pytest.raises(ArchiveError, match="nothing of this batch was kept"):
        archive.add([entry(1)])
    with pytest.raises(ArchiveError, match="cannot be used"):
        archive.remove_patient("patient-0")
    assert archive.count() == 1
    archive._store._database.execute("PRAGMA query_only = OFF")
    archive.add([entry(1)])
    assert archive.count() == 2


def test_a_successor_takes_the_place_of_an_archive(path: Path) -> None:
    beside = path.with_name("beside.sqlite")
    with Archive(path, "r1", BITS) as old, Archive(beside, "r2", BITS) as new:
        old.add([entry(0)])
        new.add([entry(1), entry(2)])
        with pytest.raises(ArchiveError, match="in use"):
            replace_archive(beside, path)
    replace_archive(beside, path)
    assert not beside.exists()
    with Archive(path, "r2", BITS) as archive:
        assert archive.count() == 2
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


def test_a_successor_needs_no_predecessor(path: Path) -> None:
    beside = path.with_name("beside.sqlite")
    Archive(beside, "r2", BITS).close()
    replace_archive(beside, path)
    assert path.exists()


def test_a_bad_successor_leaves_the_archive(path: Path) -> None:
    Archive(path, "r1", BITS).close()
    before = path.read_bytes()
    beside = path.with_name("beside.sqlite")
    with pytest.raises(ArchiveError, match="cannot be used"):
        replace_archive(beside, path)
    beside.write_bytes(b"nothing of use")
    with pytest.raises(ArchiveError, match="damaged"):
        replace_archive(beside, path)
    assert path.read_bytes() == before


def test_handles_depend_on_the_secret_and_the_study() -> None:
    handle = site_handle(SECRET, "s1")
    assert len(handle) == 32
    assert handle == site_handle(SECRET, "s1")
    assert len({handle, site_handle(SECRET, "s2"), site_handle(SECRET + b"x", "s1")}) == 3


@pytest.mark.parametrize("length", [0, 15, 65])
def test_a_secret_of_the_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(ArchiveError, match=f"has {length} bytes; draw 16 to 64"):
        site_handle(bytes(length), "s1")


AGREEMENT = Agreement(
    name="test",
    findings=("no_finding", "edema"),
    code_bits=BITS,
    modalities=("image", "report"),
    largest_k=5,
)


def test_a_site_answers_in_its_own_name(archive: Archive) -> None:
    archive.add([entry(n) for n in range(9)])
    answer = SiteSearcher("site-1", archive, AGREEMENT).answer(query(2, k=5))
    hits = answer.hits
    assert answer.cut_to_bits is None
    assert hits[0] == Hit("site-1", entry(2).handle, 0, 0)
    assert len(hits) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 6}, "asks for 6 hits, the agreement allows 5"),
        ({"k": 5, "modality": "signal"}, "'signal'; the agreement knows image, report"),
        ({"k": 5, "release_id": "r0"}, "release r0"),
    ],
)
def test_a_site_refuses_what_the_agreement_does_not_allow(
    archive: Archive, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        SiteSearcher("site-1", archive, AGREEMENT).answer(query(**changes))


def at_distance(bits: int) -> bytes:
    """A code that many bits away from the code of zeros."""
    return np.packbits(np.arange(BITS) < bits).tobytes()


ZEROS = at_distance(0)


@pytest.mark.parametrize(
    ("smallest_kappa", "asked", "cut_to_bits", "farthest"),
    [
        (None, None, None, 128),
        (None, 40, None, 40),
        (0.5, None, 16, 16),
        (0.5, 128, 16, 16),
        (0.5, 17, 16, 16),
        (0.5, 16, None, 16),  # as far as the site goes: nothing is cut
        (0.5, 3, None, 3),
        (1.0, None, 0, 0),
        (-1.0, None, 64, 64),
    ],
)
def test_no_answer_reaches_beyond_the_site_s_own_radius(
    archive: Archive,
    smallest_kappa: float | None,
    asked: int | None,
    cut_to_bits: int | None,
    farthest: int,
) -> None:
    archive.add([entry(n, code=at_distance(n)) for n in range(BITS + 1)])
    agreement = AGREEMENT.model_copy(update={"largest_k": 1000})
    searcher = SiteSearcher("site-1", archive, agreement, smallest_kappa)
    answer = searcher.answer(query(code=ZEROS, radius=asked))
    assert [hit.distance for hit in answer.hits] == list(range(farthest + 1))
    assert answer.cut_to_bits == cut_to_bits


def test_a_cut_tells_nothing_of_what_lies_beyond(archive: Archive) -> None:
    searcher = SiteSearcher("site-1", archive, AGREEMENT, 0.5)
    asked = query(code=ZEROS, k=5)
    empty = searcher.answer(asked)
    archive.add([entry(n, code=at_distance(n)) for n in range(17, 40)])
    assert searcher.answer(asked) == empty == SiteAnswer((), 16)


@pytest.mark.parametrize("kappa", [1.01, -2.0, float("nan")])
def test_a_site_s_bound_outside_its_range_is_refused_at_once(
    archive: Archive, kappa: float
) -> None:
    with pytest.raises(QueryError, match=f"kappa is {kappa}; expected -1 to 1"):
        SiteSearcher("site-1", archive, AGREEMENT, kappa)


def test_a_code_of_another_length_is_named_as_such_by_a_site_with_a_bound(
    archive: Archive,
) -> None:
    short = query(code=ZEROS[:2], weights=np.zeros(16, dtype=np.int16), k=5)
    with pytest.raises(QueryError, match="has 16 bits, expected 128"):
        SiteSearcher("site-1", archive, AGREEMENT, -1.0).answer(short)


def test_a_filter_by_an_unknown_attribute_finds_nothing_and_the_archive_tells_its_own(
    archive: Archive,
) -> None:
    assert archive.attributes == ()
    archive.add([entry(0, attributes={"sex": "f", "scanner": "B"}), entry(2)])
    searcher = SiteSearcher("site-1", archive, AGREEMENT)
    assert searcher.answer(query(0, k=5, filters={"age": "60"})).hits == ()
    assert archive.attributes == ("scanner", "sex")
    archive.remove_patient("patient-0")
    assert archive.attributes == ("sex",)


def test_a_file_in_the_place_of_the_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveError, match="check folder and rights"):
        Archive(tmp_path / "file" / "archive.sqlite", "r1", BITS)


def test_a_removal_that_does_not_find_its_rows_says_so(archive: Archive) -> None:
    archive.add([entry(0), entry(2)])
    archive._store._database.execute("DELETE FROM entries WHERE entry = 1")
    with pytest.raises(ArchiveError, match="1 rows to remove are not all there"):
        archive.remove_patient("patient-0")
    assert archive.count() == 2
