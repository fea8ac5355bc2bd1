"""The ledger: what it refuses, what it keeps, and what of tampering it finds and cannot find."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from privacy_events import distributed, full_batch, poisson, release

from fedhash.errors import BudgetError, LedgerError, PrivacyError, RefusedError, StorageError
from fedhash.privacy import (
    Anchor,
    Ledger,
    PrivacyEvent,
    PrivacyTerms,
    anchor_of,
    epsilon,
    read_ledger,
)
from fedhash.privacy.ledger import _create

TERMS = PrivacyTerms(epsilon_cap=3.0, delta=1e-5)
EVENTS: list[PrivacyEvent] = [
    release(9.0),
    full_batch(12.0, 3),
    distributed(10.0),
    poisson(2.0, 0.01, 10),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with four entries."""
    path = tmp_path / "site" / "ledger.sqlite"
    with Ledger(path, [TERMS]) as ledger:
        for event in EVENTS:
            ledger.reserve(event)
    return path


def events_of(path: Path) -> list[PrivacyEvent]:
    return [entry.event for entry in read_ledger(path)]


def test_entries_span_openings_and_stand_in_their_order(path: Path) -> None:
    assert events_of(path) == EVENTS
    assert epsilon(EVENTS, TERMS.delta) <= TERMS.epsilon_cap
    with Ledger(path, [TERMS]) as ledger:
        ledger.reserve(release(30.0, run_id="run-8", data_fingerprint="11" * 32))
    assert [entry.position for entry in read_ledger(path)] == [1, 2, 3, 4, 5]


def test_its_files_are_the_owner_s(path: Path) -> None:
    assert path.parent.stat().st_mode & 0o777 == 0o700
    files = list(path.parent.iterdir())
    assert {file.name for file in files} >= {"ledger.sqlite", "ledger.sqlite.anchor"}
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_making_a_ledger_never_takes_the_place_of_one(path: Path) -> None:
    # what a process does that looked a moment before another one made it
    _create(path)
    assert events_of(path) == EVENTS
    assert not [file for file in path.parent.iterdir() if file.suffix == ".tmp"]


def test_what_exceeds_the_cap_is_refused_and_leaves_no_trace(path: Path) -> None:
    before = read_ledger(path)
    with Ledger(path, [TERMS]) as ledger:
        with pytest.raises(
            BudgetError,
            match=r"'model update' of run run-7, round 3, would bring epsilon from 0\.\d+ to "
            r"\d\.\d+ at delta 1e-05, the cap is 3; ask for more noise",
        ) as refused:
            ledger.reserve(release(1.0))
        assert isinstance(refused.value, RefusedError)
        assert refused.value.reason == "epsilon_cap"
        assert read_ledger(path) == before
        ledger.reserve(release(50.0))  # a smaller wish still fits


def test_events_that_belong_together_are_written_all_or_not_at_all(path: Path) -> None:
    before = read_ledger(path)
    pair = [release(20.0), release(20.0, purpose="margin statistics")]
    with Ledger(path, [TERMS]) as ledger:
        with pytest.raises(
            BudgetError, match="'model update' and 'margin statistics' of run run-7"
        ):
            ledger.reserve_together([release(20.0), release(1.0, purpose="margin statistics")])
        assert read_ledger(path) == before
        entries = ledger.reserve_together(pair)
    assert read_ledger(path) == (*before, *entries)
    assert [entry.event for entry in entries] == pair
    assert [entry.position for entry in entries] == [len(before) + 1, len(before) + 2]


def test_a_cap_may_be_met_exactly(tmp_path: Path) -> None:
    exactly = PrivacyTerms(epsilon_cap=epsilon([release(4.0)], 1e-5), delta=1e-5)
    with Ledger(tmp_path / "ledger.sqlite", [exactly]) as ledger:
        ledger.reserve(release(4.0))
        with pytest.raises(BudgetError):
            ledger.reserve(release(1e6))


def test_a_figure_that_is_no_number_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedhash.privacy.ledger.epsilon", lambda events, delta: float("nan"))
    with Ledger(path, [TERMS]) as ledger, pytest.raises(BudgetError):
        ledger.reserve(release(1e6))
    assert events_of(path) == EVENTS


@pytest.mark.parametrize("order", [1, -1])
def test_the_stricter_of_two_caps_binds_whatever_their_deltas(tmp_path: Path, order: int) -> None:
    loose = PrivacyTerms(epsilon_cap=2.0, delta=1e-3)
    strict = PrivacyTerms(epsilon_cap=2.0, delta=1e-7)
    event = full_batch(2.2)
    assert epsilon([event], loose.delta) < 2 < epsilon([event], strict.delta)
    with Ledger(tmp_path / "a.sqlite", [loose]) as ledger:
        ledger.reserve(event)
    with (
        Ledger(tmp_path / "b.sqlite", [loose, strict][::order]) as ledger,
        pytest.raises(BudgetError, match="delta 1e-07"),
    ):
        ledger.reserve(event)


def test_two_data_sets_share_one_budget_and_so_do_both_kinds_of_noise(tmp_path: Path) -> None:
    half = full_batch(1.8)
    assert epsilon([half], TERMS.delta) < 3 < epsilon([half, half], TERMS.delta)
    for other in (full_batch(1.8, data_fingerprint="ab" * 32), distributed(1.8)):
        with Ledger(tmp_path / other.kind / "ledger.sqlite", [TERMS]) as ledger:
            ledger.reserve(half)
            with pytest.raises(BudgetError):
                ledger.reserve(other)


def test_a_clock_that_is_set_back_changes_nothing_but_the_times(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    for year in (2030, 1999, 2026):
        with Ledger(path, [TERMS], clock=partial(datetime, year, 1, 1, tzinfo=UTC)) as ledger:
            ledger.reserve(release(20.0, round_number=year))
    entries = read_ledger(path)
    assert [entry.event.round_number for entry in entries] == [2030, 1999, 2026]
    assert [entry.written_at[:4] for entry in entries] == ["2030", "1999", "2026"]


def test_a_ledger_without_a_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="without a limit refuses nothing"):
        Ledger(tmp_path / "ledger.sqlite", [])


def test_reading_where_there_is_no_ledger_makes_none(tmp_path: Path) -> None:
    assert read_ledger(tmp_path / "ledger.sqlite") == ()
    assert list(tmp_path.iterdir()) == []


Statement = tuple[str, tuple[object, ...]]


def edit(path: Path, *statements: str | Statement) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TRIGGER no_change")
        database.execute("DROP TRIGGER no_removal")
        for statement in statements:
            database.execute(*((statement, ()) if isinstance(statement, str) else statement))
        database.commit()


def new_head(count: int, newest: str) -> Statement:
    return "UPDATE head SET entries = ?, newest = ?", (count, newest)


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "more noise": (
        lambda path: edit(
            path, "UPDATE entries SET event = replace(event, '9.0', '99.0') WHERE position = 1"
        ),
        "entry 1 does not match its hash",
    ),
    "another time": (
        lambda path: edit(path, "UPDATE entries SET written_at = '' WHERE position = 3"),
        "entry 3 does not match",
    ),
    "no text": (
        lambda path: edit(path, "UPDATE entries SET event = x'00' WHERE position = 3"),
        "entry 3 does not match",
    ),
    "one in the middle gone": (
        lambda path: edit(path, "DELETE FROM entries WHERE position = 2"),
        "entry 2 is missing",
    ),
    "one in the middle gone, the rest moved up": (
        lambda path: edit(
            path,
            "DELETE FROM entries WHERE position = 2",
            "UPDATE entries SET position = 2 WHERE position = 3",
            "UPDATE entries SET position = 3 WHERE position = 4",
        ),
        "entry 2 does not match",
    ),
    "two exchanged": (
        lambda path: edit(
            path,
            "UPDATE entries SET position = 9 WHERE position = 1",
            "UPDATE entries SET position = 1 WHERE position = 2",
            "UPDATE entries SET position = 2 WHERE position = 9",
        ),
        "entry 1 does not match",
    ),
    "one repeated": (
        lambda path: edit(
            path, "INSERT INTO entries SELECT 5, written_at, event, hash FROM entries LIMIT 1"
        ),
        "entry 5 does not match",
    ),
    "the newest gone": (
        lambda path: edit(path, "DELETE FROM entries WHERE position = 4"),
        "it ends after 3 entries, its head says otherwise",
    ),
    "the newest gone, with the head": (
        lambda path: edit(
            path, "DELETE FROM entries WHERE position = 4", new_head(3, read_ledger(path)[2].hash)
        ),
        "its 3 entries do not go on from the 4 of",
    ),
    "all gone, with the head": (
        lambda path: edit(
            path,
            "DELETE FROM entries",
            new_head(0, hashlib.sha256(b"fedhash privacy ledger 1").hexdigest()),
        ),
        "its 0 entries do not go on from the 4 of",
    ),
    "no head": (lambda path: edit(path, "DELETE FROM head"), "its head says otherwise"),
    "no anchor": (
        lambda path: path.with_name("ledger.sqlite.anchor").unlink(),
        "ledger.sqlite.anchor is gone",
    ),
    "a damaged anchor": (
        lambda path: path.with_name("ledger.sqlite.anchor").write_text("[]"),
        "ledger.sqlite.anchor is damaged",
    ),
    "an anchor of another ledger": (
        lambda path: path.with_name("ledger.sqlite.anchor").write_text(
            json.dumps({"entries": 2, "newest": "0" * 64})
        ),
        "do not go on from the 2 of",
    ),
    "no table": (lambda path: edit(path, "DROP TABLE entries"), "no such table"),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_found_and_stops_everything(path: Path, name: str) -> None:
    tamper, message = TAMPERINGS[name]
    tamper(path)
    stored = path.read_bytes()
    with pytest.raises(LedgerError, match=message):
        read_ledger(path)
    with pytest.raises(LedgerError, match=message), Ledger(path, [TERMS]) as ledger:
        ledger.reserve(release(100.0))
    assert path.read_bytes() == stored, "it is left as it is"


def test_no_statement_but_an_insertion_passes_by_accident(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        for statement in ("DELETE FROM entries", "UPDATE entries SET event = ''"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                database.execute(statement)


def test_flipped_bytes_are_found_or_change_nothing(path: Path) -> None:
    entries = read_ledger(path)
    whole = path.read_bytes()
    found = 0
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
        try:
            assert read_ledger(path) == entries
        except LedgerError:
            found += 1
    assert found > 5
    path.write_bytes(whole)
    assert read_ledger(path) == entries


def test_an_older_copy_of_the_ledger_is_found(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    with Ledger(path, [TERMS]) as ledger:
        ledger.reserve(release(40.0))
    copy.replace(path)
    with pytest.raises(LedgerError, match="its 4 entries do not go on from the 5 of"):
        read_ledger(path)


def test_a_lost_ledger_does_not_start_at_nothing(path: Path) -> None:
    path.unlink()
    for use in (lambda: read_ledger(path), lambda: Ledger(path, [TERMS])):
        with pytest.raises(LedgerError, match=r"is gone, and .*anchor says that it had 4 entries"):
            use()
    assert not path.exists()


def test_what_only_an_anchor_noted_elsewhere_finds(path: Path) -> None:
    noted = anchor_of(read_ledger(path))
    assert str(noted).startswith("4:")
    with Ledger(path, [TERMS]) as ledger:
        ledger.reserve(release(40.0))
    assert len(read_ledger(path, noted)) == 5, "it goes on from what was noted"

    for file in path.parent.iterdir():
        file.unlink()
    assert read_ledger(path) == ()  # the documented limit: everything was deleted together
    with pytest.raises(LedgerError, match="its 0 entries do not go on from the 4 of the anchor"):
        read_ledger(path, noted)
    with Ledger(path, [TERMS]) as ledger:
        for event in EVENTS:
            ledger.reserve(event)
    assert events_of(path) == EVENTS
    with pytest.raises(LedgerError, match="do not go on"):
        read_ledger(path, noted)
    with pytest.raises(LedgerError, match="do not go on"):
        read_ledger(path, Anchor(-1, noted.newest))


def test_an_anchor_that_is_behind_is_caught_up(path: Path) -> None:
    first = read_ledger(path)[0]
    anchor = path.with_name("ledger.sqlite.anchor")
    anchor.write_text(json.dumps({"entries": 1, "newest": first.hash}))
    assert events_of(path) == EVENTS
    with Ledger(path, [TERMS]) as ledger:
        newest = ledger.reserve(release(40.0))
    assert json.loads(anchor.read_text()) == {"entries": 5, "newest": newest.hash}


def test_an_event_of_a_newer_version_stops_everything(path: Path) -> None:
    before = read_ledger(path)[-1].hash
    event = '{"kind":"laplace_release"}'
    content = json.dumps([before, 5, "", event], separators=(",", ":"))
    newest = hashlib.sha256(content.encode()).hexdigest()
    edit(
        path,
        ("INSERT INTO entries VALUES (5, '', ?, ?)", (event, newest)),
        new_head(5, newest),
    )
    with pytest.raises(LedgerError, match=r"entry 5 .* does not know; update fedhash"):
        read_ledger(path)


def test_a_locked_ledger_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedhash.privacy.ledger._LOCK_TIMEOUT_S", 0.01)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked by another process"):
            Ledger(path, [TERMS])
        assert events_of(path) == EVENTS, "it can be read meanwhile"


def test_other_files_are_no_ledger(tmp_path: Path) -> None:
    text, database = tmp_path / "text", tmp_path / "database"
    text.write_text("not a database, and long enough to be told apart from an empty file " * 9)
    with closing(sqlite3.connect(database)) as other:
        other.execute("CREATE TABLE t (x)")
    with pytest.raises(LedgerError, match="file is not a database"):
        read_ledger(text)
    with pytest.raises(LedgerError, match="expected a privacy ledger"):
        Ledger(database, [TERMS])
    with pytest.raises(StorageError, match="cannot be used"):
        Ledger(text / "ledger.sqlite", [TERMS])
