"""What a site's user types: search by code or by words, withdraw, rebuild-index, audit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from small_releases import AGREEMENT, make_site, registry_in, release_into, word_of
from test_release_follower import FolderSource, until
from typer.testing import CliRunner

from fedhash.audit_segments import SegmentedAuditLog, closed_segment
from fedhash.configuration import read_settings
from fedhash_client.cli import app
from fedhash_client.daemon.audit import SiteAudit
from fedhash_client.daemon.site_daemon import SiteDaemon
from fedhash_client.releases.in_daemon import add_releases
from fedhash_client.releases.served import ServedReleases
from fedhash_client.settings import SiteSettings
from fedhash_client.withdrawal import audit_file


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout if code == 0 else result.stderr.replace("\n", " ")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    make_site(tmp_path / "site")
    return tmp_path / "site" / "site.yaml"


@pytest.fixture
def indexed(site: Path, tmp_path: Path) -> Path:
    release = release_into(tmp_path / "brought", 1)
    call("index", site, "--release", tmp_path / "brought" / release.release_id)
    return site


def found(site: Path, *arguments: object) -> dict[str, object]:
    answer: dict[str, object] = json.loads(call("search", site, "--json", *arguments))
    return answer


def test_without_a_release_reports_are_searched_by_their_words(site: Path) -> None:
    answer = found(site, "--report", word_of(3))
    assert answer["source"] == "keywords"
    assert answer["reason"] == "this site has no release yet"
    assert len(answer["hits"]) == 2
    shown = call("search", site, "--report", word_of(3))
    assert "a search for words, not for findings" in shown
    assert "no report with any" in call("search", site, "--report", "unheardof")
    message = call("search", site, "--image", "film.png", code=1)
    assert "no modality" in message or "the agreement knows report" in message


def test_with_a_release_codes_are_searched_without_naming_it(indexed: Path) -> None:
    answer = found(
        indexed, "--report", f"Effusion of the left lung, {word_of(3)}, take 1.", "-k", 1
    )
    assert answer["source"] == "release"
    assert answer["hits"][0]["distance"] == 0
    assert found(indexed, "--report", word_of(3), "--keywords")["source"] == "keywords"


def test_a_release_that_cannot_be_used_falls_back_to_words_and_says_why(indexed: Path) -> None:
    (model,) = (indexed.parent / "state" / "releases").glob("*/model.safetensors")
    model.write_bytes(model.read_bytes()[:-1])
    answer = found(indexed, "--report", word_of(3))
    assert answer["source"] == "keywords"
    assert "damaged or was altered" in answer["reason"]
    assert len(answer["hits"]) == 2


def test_while_another_command_has_the_archives_words_are_searched(
    indexed: Path, tmp_path: Path
) -> None:
    settings = read_settings(indexed, SiteSettings)
    with ServedReleases(settings, AGREEMENT):  # as 'index' has, for as long as it encodes
        answer = found(indexed, "--report", word_of(3))
        assert answer["source"] == "keywords"
        assert "in use by another process" in answer["reason"]
        (folder,) = (tmp_path / "brought").iterdir()
        told = call("search", indexed, "--report", "x", "--release", folder, code=1)
        assert "in use by another process" in told
    assert found(indexed, "--report", word_of(3))["source"] == "release"


def test_withdraw_rebuild_and_audit(indexed: Path) -> None:
    receipt = json.loads(call("withdraw", indexed, "patient-7", "--json"))
    assert (receipt["studies"], receipt["archive_entries"]) == (2, 2)
    rebuilt = json.loads(call("rebuild-index", indexed, "--json"))
    assert rebuilt["entries"] == 22
    assert found(indexed, "--report", word_of(7), "--keywords")["hits"] == []
    log = json.loads(call("audit", indexed, "--json"))
    assert log["entries"] == 1
    assert log["newest"][0]["patient"] == receipt["patient"]
    assert "withdrawal" in call("audit", indexed, "--head", log["head"], "--last", 5)
    path = audit_file_of(indexed)
    path.write_bytes(path.read_bytes().replace(b"withdrawal", b"withdrawaL"))
    assert "was altered" in call("audit", indexed, code=1)
    assert "was altered" in call("withdraw", indexed, "patient-8", code=1)
    checked = CliRunner().invoke(app, ["check", str(indexed), "--json"])
    assert checked.exit_code == 1, "the altered log is an error of the site"
    studies = json.loads(checked.stdout)["usable studies"]
    assert studies == 20, "without a receipt the withdrawal is pending, and done all the same"


def test_audit_tells_what_is_archived(indexed: Path, tmp_path: Path) -> None:
    path, archive = audit_file_of(indexed), tmp_path / "archived"
    with SegmentedAuditLog(path) as log:
        log.append({"kind": "noted"})
        noted = log.head
        log.close_segment(None)
    archive.mkdir()
    closed = closed_segment(path, 1)
    closed.rename(archive / closed.name)
    facts = json.loads(call("audit", indexed, "--json"))
    assert (facts["entries"], facts["archived segments"], facts["archived entries"]) == (3, 1, 2)
    assert facts["signed by"] == ["nobody"]
    assert "--archive" in call("audit", indexed, "--head", noted, code=1)
    facts = json.loads(call("audit", indexed, "--head", noted, "--archive", archive, "--json"))
    assert (facts["archived segments"], len(facts["segments"])) == (0, 2)
    call("withdraw", indexed, "patient-7")
    assert json.loads(call("audit", indexed, "--json"))["entries"] == 4


def test_the_patient_s_id_may_come_by_standard_input(indexed: Path) -> None:
    def given(data: bytes) -> Result:
        return CliRunner().invoke(app, ["withdraw", str(indexed), "-", "--json"], input=data)

    receipt = json.loads(given(b"patient-7\n").stdout)
    assert receipt["archive_entries"] == 2
    for wrong in (b"", b"patient-1\npatient-2\n", b"\xff", b"x" * 100_000, b" patient-1\n"):
        refused = given(wrong)
        assert refused.exit_code == 1
        assert "the patient's id" in refused.output


def test_an_unknown_patient_is_noted_with_a_warning(indexed: Path) -> None:
    result = CliRunner().invoke(app, ["withdraw", str(indexed), "patient-77"])
    assert result.exit_code == 0, result.stderr
    assert "no study of this patient was found" in result.stderr


def test_check_leaves_out_who_withdrew(indexed: Path) -> None:
    call("withdraw", indexed, "patient-7")
    assert json.loads(call("check", indexed, "--json"))["usable studies"] == 22


def test_rebuilding_without_a_release_is_told(site: Path) -> None:
    assert "this site has no release" in call("rebuild-index", site, code=1)


@pytest.fixture
def daemon(site: Path, tmp_path: Path) -> Iterator[SiteDaemon]:
    """The daemon's parts that matter here, running: its control socket and its releases."""
    (site.parent / "state").mkdir(mode=0o700)
    site.write_text(site.read_text() + "training: {aggregations: [plain]}\n")
    made = SiteDaemon(site)
    registry = registry_in(tmp_path / "releases")
    registry.publish(release_into(tmp_path / "releases", 1).release_id)
    audit = SiteAudit(audit_file(made.settings))
    made.add(audit)
    served = add_releases(made, audit, FolderSource(tmp_path / "releases"))
    services = [*made._services, made.control]
    for service in services:
        service.start()
    until(lambda: served.current() is not None)
    yield made
    assert all(service.status()["healthy"] for service in services)
    for service in reversed(services):
        service.stop()


def test_a_running_daemon_searches_withdraws_and_rebuilds(daemon: SiteDaemon) -> None:
    site = daemon.site_file
    text = f"Effusion of the left lung, {word_of(7)}, take 1."
    answer = found(site, "--report", text, "-k", 1)
    assert (answer["source"], answer["hits"][0]["distance"]) == ("release", 0)
    waited: list[str] = []
    daemon.forgetting.append(lambda: waited.append("answers under way"))
    receipt = json.loads(call("withdraw", site, "patient-7", "--json"))
    assert receipt["archive_entries"] == 2
    assert waited
    after = found(site, "--report", text, "-k", 100)
    assert answer["hits"][0]["handle"] not in {hit["handle"] for hit in after["hits"]}
    assert len(after["hits"]) == 22
    rebuilt = json.loads(call("rebuild-index", site, "--json"))
    assert rebuilt["phase"] == "idle"
    assert len(found(site, "--report", text, "-k", 100)["hits"]) == 22
    kinds = [each["kind"] for each in json.loads(call("audit", site, "--json"))["newest"]]
    assert kinds == ["release", "withdrawal"]


def test_a_daemon_refuses_what_is_no_search_or_no_patient(daemon: SiteDaemon) -> None:
    from fedhash.errors import ProtocolError
    from fedhash_client.daemon.control import ask_daemon
    from fedhash_client.daemon.paths import CONTROL_SOCKET

    socket = daemon.state_folder / CONTROL_SOCKET
    for command, arguments in (
        ("withdraw", {}),
        ("withdraw", {"patient": 7}),
        ("search", {"modality": "report"}),
        ("search", {"modality": "video", "example": "x"}),
        ("search", {"modality": "report", "example": "x", "k": 0}),
        ("search", {"modality": "report", "example": "x", "filters": {"sex": 1}}),
    ):
        with pytest.raises(ProtocolError):
            ask_daemon(socket, command, **arguments)


def audit_file_of(site: Path) -> Path:
    return audit_file(read_settings(site, SiteSettings))
