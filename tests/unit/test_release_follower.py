"""A site follows its consortium's releases, and nobody else's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest
from release_server import release_server
from small_releases import AGREEMENT, KEY, make_site, registry_in, release_into

from fedhash.errors import ProtocolError, ReleaseError
from fedhash.registry.registry import read_current
from fedhash.registry.release import load_release
from fedhash.registry.statement import Statement, signed
from fedhash.secagg.identity import SiteIdentity
from fedhash_client.releases.follower import ReleaseFollower
from fedhash_client.releases.served import ServedReleases
from fedhash_client.releases.source import GrpcReleases
from fedhash_client.settings import SiteSettings


class FolderSource:
    """A registry's folder without a network; can be out of reach, and send another statement."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.away = False
        self.statement: bytes | None = None

    def current(self) -> bytes:
        if self.away:
            raise ProtocolError("the coordinator does not answer")
        return self.statement or read_current(self.folder) or b""

    def fetch(self, release_id: str, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
        if self.away:
            raise ProtocolError("the coordinator does not answer")
        content = (self.folder / release_id / file).read_bytes()
        for start in range(offset, len(content), 300):
            yield len(content), content[start : start + 300]


class Site:
    """A site's follower with its archives and audit log; may be restarted."""

    def __init__(self, folder: Path, source: Any) -> None:
        self.settings: SiteSettings = make_site(folder)
        self.source = source
        self.notes: list[dict[str, Any]] = []
        self.start()

    def start(self) -> None:
        self.served = ServedReleases(self.settings, AGREEMENT)
        self.served.acquire()
        self.follower = ReleaseFollower(
            self.settings, AGREEMENT, self.served, self.source, self.notes.append
        )

    def restart(self) -> None:
        self.follower.stop()
        self.served.close()
        self.start()

    def release(self) -> str | None:
        now = self.served.current()
        return None if now is None else now.release.release_id


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "releases"


@pytest.fixture
def site(tmp_path: Path, registry: Path) -> Iterator[Site]:
    found = Site(tmp_path / "site", FolderSource(registry))
    yield found
    found.follower.stop()
    found.served.close()


def publish(folder: Path, seed: int) -> str:
    return registry_in(folder).publish(release_into(folder, seed).release_id).release_id


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_adopts_what_is_current_and_goes_back_when_told(site: Site, registry: Path) -> None:
    site.follower.step()  # before the first release
    assert site.release() is None
    first = publish(registry, 1)
    site.follower.step()
    assert site.release() == first
    second = publish(registry, 2)
    site.follower.step()
    assert site.release() == second
    registry_in(registry).roll_back(first)
    site.follower.step()
    assert site.release() == first
    assert [(note["statement"], note["release"]) for note in site.notes] == [
        (1, first),
        (2, second),
        (3, first),
    ]
    assert all(note["kind"] == "release" and note["entries"] == 24 for note in site.notes)
    status = site.follower.status()
    assert (status["healthy"], status["phase"], status["statement"]) == (True, "idle", 3)
    assert status["release"] == status["wanted"] == first


def test_an_old_statement_that_is_sent_again_is_no_way_back(site: Site, registry: Path) -> None:
    publish(registry, 1)
    site.source.statement = read_current(registry)
    site.follower.step()
    second = publish(registry, 2)
    old, site.source.statement = site.source.statement, None
    site.follower.step()
    site.source.statement = old
    with pytest.raises(ReleaseError, match="none below number 2"):
        site.follower.step()
    site.restart()
    with pytest.raises(ReleaseError, match="none below number 2"):
        site.follower.step()
    assert site.release() == second


def test_what_the_release_key_did_not_sign_is_refused(site: Site, registry: Path) -> None:
    release = release_into(registry, 1)
    statement = Statement(
        consortium=AGREEMENT.name,
        number=1,
        kind="release",
        release_id=release.release_id,
        issued="2026-01-02T03:04:05Z",
    )
    for data in (
        signed(statement, SiteIdentity.generate()),
        signed(statement.model_copy(update={"consortium": "another"}), KEY),
        b"{}",
    ):
        site.source.statement = data
        with pytest.raises(ReleaseError):
            site.follower.step()
    assert site.release() is None
    assert not list(site.served.releases.iterdir())


def test_a_release_of_another_agreement_is_not_even_downloaded(site: Site, registry: Path) -> None:
    first = publish(registry, 1)
    site.follower.step()
    other = release_into(
        registry, 2, agreement=AGREEMENT.model_copy(update={"ancestor_weight": 0.25})
    )
    statement = Statement(
        consortium=AGREEMENT.name,
        number=9,
        kind="release",
        release_id=other.release_id,
        issued="2026-01-02T03:04:05Z",
    )
    site.source.statement = signed(statement, KEY)
    with pytest.raises(ReleaseError, match="what this site signed"):
        site.follower.step()
    assert site.release() == first
    assert not list(site.served.releases.glob("**/*.part"))
    assert [path.name for path in site.served.releases.iterdir() if path.is_dir()].count(first) == 1
    assert not (site.served.releases / other.release_id).exists()
    assert not list(site.served.releases.glob(f"{other.release_id}.download/model*"))


def test_a_model_above_the_site_s_bound_is_not_downloaded(site: Site, registry: Path) -> None:
    wanted = publish(registry, 1)
    most = load_release(registry / wanted).vector.size
    training = site.settings.training
    for allowed in (most - 1, most):
        bound = training.model_copy(update={"largest_model_parameters": allowed})
        site.settings = site.settings.model_copy(update={"training": bound})
        site.restart()
        if allowed < most:
            with pytest.raises(ReleaseError, match=r"largest_model_parameters allows .*; raise it"):
                site.follower.step()
            assert site.release() is None
            assert not list(site.served.releases.glob("*.download/*"))
        else:
            site.follower.step()
    assert site.release() == wanted


def test_ever_new_statements_do_not_fill_the_disk(site: Site, registry: Path) -> None:
    """Downloads that break off, and releases that do not verify, leave one folder at most."""
    for number in range(1, 5):
        release_id = release_into(registry, number).release_id
        model = registry / release_id / "model.safetensors"
        model.write_bytes(model.read_bytes()[:-1] + b"x" * (number % 2))
        statement = Statement(
            consortium=AGREEMENT.name,
            number=number,
            kind="release",
            release_id=release_id,
            issued="2026-01-02T03:04:05Z",
        )
        site.source.statement = signed(statement, KEY)
        with pytest.raises(ReleaseError):
            site.follower.step()
        folders = [path.name for path in site.served.releases.iterdir() if path.is_dir()]
        assert folders == [f"{release_id}.download"]


def test_a_coordinator_out_of_reach_keeps_nobody_from_finishing(
    site: Site, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(registry, 1)
    with monkeypatch.context() as patch:
        patch.setattr(ServedReleases, "adopt", lambda *a, **o: pytest.fail("it was cut off"))
        with pytest.raises(pytest.fail.Exception):
            site.follower.step()  # downloaded, not encoded
    site.source.away = True
    site.restart()
    with pytest.raises(ProtocolError):
        site.follower.step()
    assert site.release() == first


class Pauses(Event):
    """Counts pauses in the place of waiting, and stops after so many."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.taken_s: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.taken_s.append(timeout or 0.0)
        if len(self.taken_s) == self.count:
            self.set()
        return self.is_set()


def test_a_coordinator_that_was_away_is_asked_again_within_a_minute(
    site: Site, registry: Path
) -> None:
    """And what is refused is begun anew less often."""
    publish(registry, 1)
    poll = site.settings.releases.model_copy(update={"poll_s": 30.0})
    site.settings = site.settings.model_copy(update={"releases": poll})

    def pauses(statement: bytes | None, *, away: bool) -> list[float]:
        site.source.statement, site.source.away = statement, away
        site.restart()
        site.follower._stop = counted = Pauses(20)
        site.follower._run()
        return counted.taken_s

    outage = pauses(None, away=True)
    assert all(30 <= pause <= 60 for pause in outage)
    assert len(set(outage)) > 15, "sites do not come back together"
    refused = pauses(b"{}", away=False)
    assert all(300 <= pause <= 600 for pause in refused[10:])
    assert all(15 <= pause <= 30 for pause in pauses(None, away=False))


def test_an_agreement_without_a_release_key_follows_nobody(site: Site) -> None:
    without = AGREEMENT.model_copy(update={"release_key": None})
    with pytest.raises(ReleaseError, match="names no release_key"):
        ReleaseFollower(site.settings, without, site.served, site.source, site.notes.append)


def test_as_a_service_over_grpc(site: Site, registry: Path) -> None:
    registry.mkdir()
    with release_server(registry) as address:
        site.source = GrpcReleases(lambda: grpc.insecure_channel(address))
        site.restart()
        site.follower.start()
        first = publish(registry, 1)
        until(lambda: site.release() == first)
        second = publish(registry, 2)
        until(lambda: site.release() == second)
        until(lambda: site.follower.status()["phase"] == "idle")
        site.follower.rebuild()
        assert site.release() == second
    until(lambda: site.follower.status()["fault"] is not None)
    status = site.follower.status()
    assert (status["healthy"], status["error"]) == (True, None), "a router may be away"
    assert site.release() == second, "searches go on"
    site.follower.stop()


def test_what_is_refused_is_ill_health_until_all_is_well_again(site: Site, registry: Path) -> None:
    publish(registry, 1)
    site.follower.step()
    site.source.statement = b"{}"
    site.follower.start()
    until(lambda: site.follower.status()["error"] is not None)
    site.source.away = True
    until(lambda: site.follower.status()["fault"] is not None)
    assert site.follower.status()["healthy"] is False, "going away hides nothing"
    site.source.statement, site.source.away = None, False
    until(lambda: site.follower.status()["healthy"] is True)
    assert site.follower.status()["fault"] is None


def test_a_refused_statement_is_told_though_nothing_can_be_fetched(
    site: Site, registry: Path
) -> None:
    publish(registry, 1)
    site.source.statement = read_current(registry)

    def away(*_: Any) -> Iterator[tuple[int, bytes]]:
        raise ProtocolError("the coordinator does not answer")

    site.source.fetch = away
    with pytest.raises(ProtocolError):
        site.follower.step()  # the statement is noted, its release did not come
    site.source.statement = b"{}"
    with pytest.raises(ReleaseError):
        site.follower.step()


def test_stop_ends_a_rebuilding_and_the_index_stays(site: Site, registry: Path) -> None:
    first = publish(registry, 1)
    site.follower.step()
    site.follower.stop()
    with pytest.raises(ReleaseError, match="the daemon ends, and the old index stays"):
        site.follower.rebuild()
    assert site.release() == first
    assert site.follower.status()["phase"] == "idle"


def test_stop_ends_a_download(site: Site, registry: Path) -> None:
    publish(registry, 1)
    fetch = site.source.fetch

    def slowly(*arguments: Any) -> Iterator[tuple[int, bytes]]:
        for piece in fetch(*arguments):
            time.sleep(0.2)
            yield piece

    site.source.fetch = slowly
    site.follower.start()
    until(lambda: site.follower.status()["phase"] == "downloading")
    site.follower.stop()
    assert site.release() is None
    site.source.fetch = fetch
    site.restart()
    site.follower.step()
    assert site.release() is not None
