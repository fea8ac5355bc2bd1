"""One release, its model and its archive: always of each other, through switches and deaths."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from power_cut import PowerCut, cut_power_at
from small_releases import AGREEMENT, make_site, release_into

from fedhash.errors import ArchiveError, ReleaseError
from fedhash.index import Archive, archive_release, site_handle
from fedhash.index.encoding import encode_example
from fedhash.registry import Release
from fedhash.search import make_query
from fedhash_client.archive_index import read_handle_key
from fedhash_client.releases import served as served_module
from fedhash_client.releases.served import ServedRelease, ServedReleases
from fedhash_client.settings import SiteSettings


@pytest.fixture
def settings(tmp_path: Path) -> SiteSettings:
    return make_site(tmp_path / "site")


def a_release(settings: SiteSettings, seed: int) -> Release:
    assert settings.state is not None
    return release_into(settings.state / "releases", seed)


def handles(now: ServedRelease) -> list[str]:
    return sorted(now.archive.handles("report"))


def expected(settings: SiteSettings, patients: int = 12) -> list[str]:
    key = read_handle_key(settings.handle_key)
    names = [f"study-{number}-{place}" for number in range(patients) for place in range(2)]
    return sorted(site_handle(key, name) for name in names)


def check(now: ServedRelease | None) -> ServedRelease:
    """The archive's codes are the model's, and the model is the release's."""
    assert now is not None
    assert now.archive.release_id == now.release.release_id
    code = encode_example(now.model, "report", "Effusion of the left lung, zqaxv, take 0.")
    query = make_query(code, release_id=now.release.release_id, modality="report", k=1)
    assert now.archive.search(query)[0].distance == 0, "the very study is in it"
    return now


def test_a_release_is_encoded_served_and_found_again(settings: SiteSettings) -> None:
    told: list[tuple[int, int]] = []
    with ServedReleases(settings, AGREEMENT) as served:
        assert served.open() is None
        now = check(served.adopt(a_release(settings, 1), lambda *at: told.append(at)))
        assert handles(now) == expected(settings)
        assert served.current() is now
    assert told[0] == (0, 24)
    assert told[-1] == (24, 24)
    with ServedReleases(settings, AGREEMENT) as served:
        again = check(served.open())
        assert again.release.release_id == now.release.release_id
        assert handles(again) == handles(now)


def test_a_snapshot_outlives_the_switch_and_the_way_back_encodes_nothing(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = a_release(settings, 1), a_release(settings, 2)
    with ServedReleases(settings, AGREEMENT) as served:
        before = served.adopt(first)
        check(served.adopt(second))
        check(before)
        with monkeypatch.context() as patch:
            patch.setattr(served_module, "prepare_studies", None)
            assert check(served.adopt(first)).release.release_id == first.release_id
            check(served.adopt(first))  # told again
        third = a_release(settings, 3)
        check(served.adopt(third))
    kept = [archive_release(path)[0] for path in settings.archive.parent.glob("archives/*.sqlite")]
    assert sorted(kept) == sorted([first.release_id, third.release_id])
    folders = [path.name for path in (settings.state or Path()).glob("releases/*")]
    assert sorted(folders) == sorted(kept)


def test_changed_data_and_a_rebuild_encode_everything(settings: SiteSettings) -> None:
    release = a_release(settings, 1)
    with ServedReleases(settings, AGREEMENT) as served:
        served.adopt(release)
        text = settings.manifest.read_text()
        settings.manifest.write_text(text.replace("zqbxv", "zqbxw"))
        told: list[tuple[int, int]] = []
        now = check(served.adopt(release, lambda *at: told.append(at)))
        assert told[0] == (0, 24)
        for _ in range(3):
            told.clear()
            now = check(served.adopt(release, lambda *at: told.append(at), anew=True))
            assert told[0] == (0, 24)
        assert handles(now) == expected(settings)
        assert served.adopt(release) is now


def test_one_process_at_a_time_and_one_agreement(settings: SiteSettings) -> None:
    release = a_release(settings, 1)
    other = AGREEMENT.model_copy(update={"ancestor_weight": 0.25})
    with ServedReleases(settings, AGREEMENT) as served:
        with pytest.raises(ArchiveError, match="in use by another process"):
            ServedReleases(settings, AGREEMENT).acquire()
        served.adopt(release)
    with ServedReleases(settings, other) as served, pytest.raises(ReleaseError, match="signed"):
        served.open()


def test_an_archive_that_is_a_plain_file_is_taken_over(settings: SiteSettings) -> None:
    release = a_release(settings, 1)
    with ServedReleases(settings, AGREEMENT) as served:
        served.adopt(release)
    plain = settings.archive.resolve().read_bytes()
    settings.archive.unlink()
    settings.archive.write_bytes(plain)
    settings.archive.with_name("archive.sqlite-shm").write_bytes(b"left by a kill")
    with ServedReleases(settings, AGREEMENT) as served:
        assert handles(check(served.open())) == expected(settings)
        check(served.adopt(a_release(settings, 2)))
    assert settings.archive.is_symlink()
    assert not settings.archive.with_name("archive.sqlite-shm").exists()


def test_what_is_damaged_is_encoded_anew(settings: SiteSettings) -> None:
    release = a_release(settings, 1)
    with ServedReleases(settings, AGREEMENT) as served:
        served.adopt(release)
    path = settings.archive.resolve()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    with ServedReleases(settings, AGREEMENT) as served:
        with pytest.raises(ArchiveError, match="damaged"):
            served.open()
        assert handles(check(served.adopt(release))) == expected(settings)


def test_a_release_that_the_site_lost_is_told(settings: SiteSettings) -> None:
    release = a_release(settings, 1)
    with ServedReleases(settings, AGREEMENT) as served:
        served.adopt(release)
        place = served.releases / release.release_id
    place.rename(place.with_name("away"))
    with ServedReleases(settings, AGREEMENT) as served:
        with pytest.raises(ReleaseError, match="let the site fetch it again"):
            served.open()
        place.with_name("away").rename(place)
        check(served.adopt(release))


@pytest.mark.parametrize("operation", range(1, 9))
def test_a_power_cut_never_mixes_two_releases(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch, operation: int
) -> None:
    first, second = a_release(settings, 1), a_release(settings, 2)
    with ServedReleases(settings, AGREEMENT) as served:
        served.adopt(first)
    served = ServedReleases(settings, AGREEMENT)
    served.acquire()
    served.open()
    for _ in cut_power_at(monkeypatch, operation):
        try:
            served.adopt(second)
        except PowerCut:
            check(served.current())
    served.close()
    with ServedReleases(settings, AGREEMENT) as served:
        now = check(served.open())
        assert now.release.release_id in {first.release_id, second.release_id}
        assert handles(check(served.adopt(second))) == expected(settings)


FILL = """
import sys
from pathlib import Path
from small_releases import AGREEMENT
from fedhash.configuration import read_settings
from fedhash.registry import load_release
from fedhash_client.releases import served
from fedhash_client.settings import SiteSettings

served._BLOCK_STUDIES = 20
settings = read_settings(Path(sys.argv[1]), SiteSettings)
with served.ServedReleases(settings, AGREEMENT) as archives:
    archives.adopt(load_release(Path(sys.argv[2])), lambda *at: print(*at, flush=True))
"""


def test_kill_9_while_encoding_loses_and_doubles_no_row(tmp_path: Path) -> None:
    settings = make_site(tmp_path / "site", patients=150)
    release = a_release(settings, 1)
    assert settings.state is not None
    place = settings.state / "releases" / release.release_id
    waits, starts = random.Random(0), []
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", FILL, str(tmp_path / "site" / "site.yaml"), str(place)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        assert child.stdout is not None
        starts.append(int(child.stdout.readline().split()[0]))
        child.stdout.readline()  # a batch is stored
        time.sleep(waits.uniform(0, 0.05))
        child.kill()
        child.stdout.close()
        child.wait()
    assert starts == sorted(starts)
    assert starts[1] > 0, "it goes on where it was"
    with ServedReleases(settings, AGREEMENT) as served:
        now = check(served.adopt(release))
        assert handles(now) == expected(settings, patients=150)
        assert now.archive.count() == 300


def say(settings: SiteSettings, refusing: set[int], text: str = "no") -> None:
    """Write the manifest anew: the patients of these numbers refuse."""
    with settings.manifest.open(newline="") as file:
        header, *rows = csv.reader(file)
    patient, consent = header.index("patient_id"), header.index("consent")
    for row in rows:
        number = int(row[patient].removeprefix("patient-"))
        row[consent] = text if number in refusing else "yes"
    with settings.manifest.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def of(settings: SiteSettings, patient: int) -> set[str]:
    key = read_handle_key(settings.handle_key)
    return {site_handle(key, f"study-{patient}-{place}") for place in range(2)}


def test_who_no_longer_consents_is_answered_no_more(settings: SiteSettings) -> None:
    with ServedReleases(settings, AGREEMENT) as served:
        served.adopt(a_release(settings, 1))
        second = a_release(settings, 2)
        served.adopt(second)
        say(settings, {3})
        archive = served.archive()
        assert archive is not None
        assert set(expected(settings)) - archive.handles("report") == of(settings, 3)
        say(settings, {3, 4}, "perhaps")
        archive = served.archive()
        assert archive is not None
        assert archive.count() == 20
        whole = settings.manifest.read_text()
        settings.manifest.write_text("")  # nobody can say
        served.archive()
        settings.manifest.write_text(whole)
        assert archive.count() == 20
    gone = of(settings, 3) | of(settings, 4)
    for path in settings.archive.parent.rglob("*.sqlite"):
        assert not [handle for handle in gone if bytes.fromhex(handle) in path.read_bytes()], path
    say(settings, {3, 5})
    with ServedReleases(settings, AGREEMENT) as served:
        now = served.open()  # edited while nothing ran
        assert now is not None
        assert now.archive.count() == 18
        say(settings, {5})
        now = check(served.adopt(second, anew=True))
        assert now.archive.count() == 22, "who consents again is in the next index"


def test_consent_that_is_taken_back_during_encoding_counts(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_module, "_BLOCK_STUDIES", 6)
    with ServedReleases(settings, AGREEMENT) as served:
        served.adopt(a_release(settings, 1))

        def progress(done: int, total: int) -> None:
            if done == 6:
                say(settings, {0, 11})  # one is encoded already
                served.archive()

        now = served.adopt(a_release(settings, 2), progress)
        assert set(expected(settings)) - now.archive.handles("report") == (
            of(settings, 0) | of(settings, 11)
        )


def test_where_entries_cannot_be_removed_nothing_answers(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise ArchiveError("the disk is full")

    with ServedReleases(settings, AGREEMENT) as served:
        served.adopt(a_release(settings, 1))
        say(settings, {3})
        with monkeypatch.context() as patch:
            patch.setattr(Archive, "remove_studies", full)
            for _ in range(2):
                with pytest.raises(ArchiveError):
                    served.archive()
        archive = served.archive()
        assert archive is not None
        assert archive.count() == 22


def test_consent_taken_back_while_the_first_archive_is_filled_counts_before_any_answer(
    settings: SiteSettings,
) -> None:
    with ServedReleases(settings, AGREEMENT) as served:

        def progress(done: int, total: int) -> None:
            if done == 0:
                say(settings, {0})  # the manifest was read already
                assert served.archive() is None

        served.adopt(a_release(settings, 1), progress)
        archive = served.archive()
        assert archive is not None
        assert archive.count() == 22
