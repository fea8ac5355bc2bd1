"""A patient who withdraws is gone, in the bytes of every file, and stays gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_releases import AGREEMENT, make_site, release_into, word_of

from fedhash.audit_log import AuditLog, read_audit_log
from fedhash.configuration import read_settings
from fedhash.errors import AuditError, DataError, QueryError
from fedhash.index import site_handle
from fedhash.models.prepared import prepare_studies
from fedhash.privacy.ledger import Ledger
from fedhash.privacy.reservation import margin_release
from fedhash_client import withdrawal as withdrawal_module
from fedhash_client.archive_index import read_handle_key, read_site_manifest
from fedhash_client.daemon.prepared_cache import PreparedCache
from fedhash_client.keyword_index import open_keywords
from fedhash_client.releases.served import ServedReleases
from fedhash_client.settings import SitePrivacy, SiteSettings
from fedhash_client.withdrawal import (
    audit_file,
    complete_withdrawals,
    patient_pseudonym,
    withdraw,
)
from fedhash_client.withdrawn import Withdrawn

PATIENT = "patient-7"


class Site:
    """A site with two archives, a keyword store and prepared studies of everybody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = make_site(folder)
        assert self.settings.state is not None
        self.state = self.settings.state
        with ServedReleases(self.settings, AGREEMENT) as served:
            self.first = release_into(served.releases, 1)
            served.adopt(self.first)
            self.second = release_into(served.releases, 2)
            served.adopt(self.second)
        open_keywords(self.settings, AGREEMENT).close()
        studies = read_site_manifest(self.settings, AGREEMENT).studies
        model = self.first.build_model()
        prepared = prepare_studies(model, studies, AGREEMENT.findings)
        PreparedCache(self.state / "prepared").store("k" * 64, prepared, {})
        key = read_handle_key(self.settings.handle_key)
        self.handles = [site_handle(key, f"study-7-{place}") for place in range(2)]
        with ServedReleases(self.settings, AGREEMENT) as served:
            now = served.open()
            assert now is not None
            self.entries = now.archive.count()
            shelf = now.archive._contents.shelves["report"]
            code_of = {shelf.handle(i): shelf.codes[i].tobytes() for i in range(len(shelf))}
        others = {code for handle, code in code_of.items() if handle not in self.handles}
        self.codes = {code_of[handle] for handle in self.handles} - others
        assert self.codes, "the patient has a code that nobody shares"

    def withdraw(self, **options: Any) -> Any:
        with (
            ServedReleases(self.settings, AGREEMENT) as served,
            AuditLog(audit_file(self.settings)) as log,
        ):
            served.open()
            return withdraw(
                self.settings, AGREEMENT, PATIENT, served=served, note=log.append, **options
            )

    def traces(self) -> list[str]:
        """Files of the state folder that hold anything of the patient."""
        marks = [PATIENT.encode(), word_of(7).encode(), *map(bytes.fromhex, self.handles)]
        marks += [handle.encode() for handle in self.handles]
        marks += [b"study-7-0", b"study-7-1", *self.codes]
        return sorted(
            f"{path.relative_to(self.state)}: {mark!r}"
            for path in self.state.rglob("*")
            if path.is_file() and not path.is_symlink()
            for mark in marks
            if mark in path.read_bytes()
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


def test_nothing_is_left_in_the_bytes_of_any_file(site: Site) -> None:
    places = {trace.split(":")[0].split("/")[0] for trace in site.traces()}
    assert places == {"archives", "keywords.sqlite", "prepared"}, "the test sees what it looks for"
    forgotten: list[str] = []
    receipt = site.withdraw(forget=[lambda: forgotten.append("warm trainer")])
    assert site.traces() == []
    assert forgotten == ["warm trainer"]
    assert (receipt.studies, receipt.archive_entries, receipt.keyword_reports) == (2, 4, 2)
    assert receipt.release == site.second.release_id
    with ServedReleases(site.settings, AGREEMENT) as served:
        now = served.open()
        assert now is not None
        assert now.archive.count() == site.entries - 2
        assert not now.archive.handles("report") & set(site.handles)


def test_the_receipt_names_nobody_and_says_what_remains(site: Site) -> None:
    receipt = site.withdraw()
    (entry,) = read_audit_log(audit_file(site.settings))
    key = read_handle_key(site.settings.handle_key)
    assert entry.content["kind"] == "withdrawal"
    assert entry.content["patient"] == receipt.patient == patient_pseudonym(key, PATIENT)
    assert PATIENT not in audit_file(site.settings).read_text()
    assert receipt.epsilon is None
    assert "no bound" in receipt.remains


def test_the_receipt_states_the_ledgers_epsilon(site: Site) -> None:
    ledger = site.state / "privacy.sqlite"
    privacy = SitePrivacy(epsilon_cap=8.0, delta=1e-5, ledger=ledger)
    site.settings = site.settings.model_copy(update={"privacy": privacy})
    with Ledger(ledger, [privacy]) as book:
        book.reserve(margin_release("0" * 64, "run", 1, 4.0))
    receipt = site.withdraw()
    assert receipt.delta == 1e-5
    assert 0 < receipt.epsilon < 8
    assert f"at most epsilon {receipt.epsilon:.4g} at delta 1e-05" in receipt.remains


def test_no_later_reading_training_index_or_manifest_brings_the_patient_back(site: Site) -> None:
    site.withdraw()
    manifest = site.settings.manifest  # still names the patient, as a hospital's export may
    assert PATIENT in manifest.read_text()
    studies = read_site_manifest(site.settings, AGREEMENT).studies
    assert len(studies) == 22
    assert all(study.patient_id != PATIENT for study in studies)
    with ServedReleases(site.settings, AGREEMENT) as served:
        now = served.adopt(site.first)
        assert now.archive.count() == 22
        now = served.adopt(site.first, anew=True)
        assert now.archive.count() == 22
    open_keywords(site.settings, AGREEMENT).close()
    assert site.traces() == []
    assert Withdrawn(site.state).since(PATIENT)
    assert Withdrawn(site.state).since("patient-8") is None


def test_a_withdrawal_during_encoding_reaches_the_archive_that_is_being_filled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedhash_client.releases.served._BLOCK_STUDIES", 6)
    for moment in (0, 6, 18, 24):
        again = Site(site.folder.with_name(f"at-{moment}"))
        third = release_into(again.state / "releases", 3)
        with ServedReleases(again.settings, AGREEMENT) as served:
            served.open()

            def progress(done: int, total: int, moment: int = moment, site: Site = again) -> None:
                if done == moment:
                    withdraw(
                        site.settings, AGREEMENT, PATIENT, served=served, note=lambda entry: None
                    )

            now = served.adopt(third, progress)
            assert now.archive.count() == 22
        assert again.traces() == []


STEPS = [
    "Withdrawn.begin",
    "ServedReleases.remove_patient",
    "remove_keywords",
    "PreparedCache.forget",
    "note",
    "Withdrawn.finish",
]


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_death_between_any_two_steps_is_completed_at_the_next_start(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if after:
                original(*arguments, **options)
            raise Killed

        return call

    owner, _, name = step.rpartition(".")
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        if step == "note":
            patch.setattr(AuditLog, "append", dying(AuditLog.append))
        else:
            place = getattr(withdrawal_module, owner) if owner else withdrawal_module
            patch.setattr(place, name, dying(getattr(place, name)))
        site.withdraw()
        pytest.fail("it died")
    begun = step != "Withdrawn.begin" or after
    if begun:
        studies = read_site_manifest(site.settings, AGREEMENT).studies
        assert all(study.patient_id != PATIENT for study in studies), "at once"
    with (
        ServedReleases(site.settings, AGREEMENT) as served,
        AuditLog(audit_file(site.settings)) as log,
    ):
        completed = complete_withdrawals(site.settings, AGREEMENT, served=served, note=log.append)
    done = step == "Withdrawn.finish" and after
    assert completed == (begun and not done)
    if begun:
        assert site.traces() == []
        assert len(read_audit_log(audit_file(site.settings))) >= 1
    assert Withdrawn(site.state).pending() == []


def test_what_cannot_be_completed_stays_pending(site: Site) -> None:
    def full(entry: dict[str, Any]) -> None:
        raise AuditError("the disk is full")

    with ServedReleases(site.settings, AGREEMENT) as served, pytest.raises(AuditError):
        withdraw(site.settings, AGREEMENT, PATIENT, served=served, note=full)
    assert Withdrawn(site.state).pending() == [PATIENT]
    site.withdraw()
    assert Withdrawn(site.state).pending() == []
    assert site.traces() == []


def test_a_second_withdrawal_and_an_unknown_patient_are_told_as_such(site: Site) -> None:
    first = site.withdraw()
    second = site.withdraw()
    assert second.since == first.since
    assert (second.archive_entries, second.keyword_reports) == (0, 0)
    with ServedReleases(site.settings, AGREEMENT) as served:
        note = [].append
        unknown = withdraw(site.settings, AGREEMENT, "nobody", served=served, note=note)
        assert (unknown.studies, unknown.archive_entries) == (0, 0)
        for blank in ("", " ", " patient-1", "patient-\udcff"):
            with pytest.raises(QueryError, match=r"white space|not UTF-8"):
                withdraw(site.settings, AGREEMENT, blank, served=served, note=note)


def test_nothing_is_left_where_each_release_was_adopted_by_a_process_of_its_own(
    site: Site,
) -> None:
    """Each reads the site's file anew, in which the archive is a link by then."""
    link = site.settings.archive
    for seed in (3, 4):
        site.settings = read_settings(site.folder / "site.yaml", SiteSettings)
        assert site.settings.archive == link
        with ServedReleases(site.settings, AGREEMENT) as served:
            served.open()
            served.adopt(release_into(served.releases, seed))
    site.settings = read_settings(site.folder / "site.yaml", SiteSettings)
    site.withdraw()
    assert site.traces() == []
    assert sorted(path.parent for path in site.state.rglob("*.sqlite") if len(path.stem) > 30) == (
        2 * [site.state / "archives"]
    )


def test_a_damaged_list_is_an_error_and_never_an_empty_one(site: Site) -> None:
    site.withdraw()
    path = site.state / "withdrawn.sqlite"
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(b"")
    with pytest.raises(DataError, match="it says who has withdrawn"):
        read_site_manifest(site.settings, AGREEMENT)


def test_an_archive_that_does_not_answer_and_is_damaged_is_removed(site: Site) -> None:
    (other,) = [
        path
        for path in (site.state / "archives").glob("*.sqlite")
        if path != site.settings.archive.resolve()
    ]
    other.write_bytes(other.read_bytes()[:5000])
    site.withdraw()
    assert not other.exists()
    assert site.traces() == []
