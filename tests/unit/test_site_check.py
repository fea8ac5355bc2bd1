"""`fedhash-site check`: silent about a sound site, and each planted mistake with its remedy."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
from collections import namedtuple
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedhash import flower_version
from fedhash.audit_log import AuditLog
from fedhash.audit_segments import SegmentedAuditLog, closed_segment
from fedhash.errors import ProtocolError
from fedhash.privacy import Ledger, PrivacyTerms
from fedhash.secagg.identity import SiteIdentity
from fedhash_client.checks import state as state_checks
from fedhash_client.cli import app
from tests.checked_site import CheckedSite
from tests.consortium_certificates import Consortium
from tests.privacy_events import release

Place = tuple[Path, str]  # the file that must be named, and its remedy
Plant = Callable[[CheckedSite], Place]
PLANTS: dict[str, Plant] = {}
TERMS = PrivacyTerms(epsilon_cap=8.0, delta=1e-5)
DAY = timedelta(days=1)


def plant(mistake: Plant) -> Plant:
    PLANTS[mistake.__name__.replace("_", " ")] = mistake
    return mistake


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CheckedSite:
    return CheckedSite.make(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def site(made: CheckedSite, tmp_path: Path) -> CheckedSite:
    shutil.copytree(made.folder, tmp_path / "site")
    return CheckedSite(tmp_path / "site", made.consortium)


# keys


def others_may_read(path: Path) -> Place:
    path.chmod(0o644)
    return path, "chmod 600"


@plant
def the_tls_key_is_readable_by_others(site: CheckedSite) -> Place:
    return others_may_read(site.folder / "secrets" / "tls.key")


@plant
def the_identity_is_readable_by_others(site: CheckedSite) -> Place:
    return others_may_read(site.folder / "secrets" / "identity.pem")


@plant
def the_supernode_key_is_readable_by_others(site: CheckedSite) -> Place:
    return others_may_read(site.folder / "secrets" / "supernode.key")


@plant
def the_handle_key_is_readable_by_others(site: CheckedSite) -> Place:
    key = site.folder / "state" / "handle.key"
    key.write_bytes(bytes(32))
    return others_may_read(key)


@plant
def the_handle_key_is_cut_short(site: CheckedSite) -> Place:
    key = site.folder / "state" / "handle.key"
    key.touch(mode=0o600)
    key.write_bytes(bytes(31))
    return key, "restore it from backup"


@plant
def a_key_is_missing(site: CheckedSite) -> Place:
    key = site.folder / "secrets" / "supernode.key"
    key.unlink()
    return key, "restore it from a copy"


@plant
def the_identity_is_missing(site: CheckedSite) -> Place:
    key = site.folder / "secrets" / "identity.pem"
    key.unlink()
    return key, "restore it from a copy"


@plant
def a_key_is_damaged(site: CheckedSite) -> Place:
    key = site.folder / "secrets" / "tls.key"
    key.write_bytes(key.read_bytes()[:-60])
    return key, "restore it from a copy"


@plant
def the_supernode_key_is_of_another_kind(site: CheckedSite) -> Place:
    key = site.folder / "secrets" / "supernode.key"
    shutil.copy(site.folder / "secrets" / "tls.key", key)
    return key, "fedhash-site init"


# certificates


def certificate(site: CheckedSite) -> Path:
    return site.folder / "consortium" / "site.pem"


@plant
def the_certificate_has_expired(site: CheckedSite) -> Place:
    site.certify("hospital-a", now=datetime.now(UTC) - 9 * DAY, days=5)
    return certificate(site), "ask the coordinator for a new one"


@plant
def the_certificate_is_not_valid_yet_or_the_clock_is_behind(site: CheckedSite) -> Place:
    site.certify("hospital-a", now=datetime.now(UTC) + 9 * DAY)
    return certificate(site), "correct this machine's clock"


@plant
def the_certificate_expires_soon(site: CheckedSite) -> Place:
    site.certify("hospital-a", days=9)
    return certificate(site), "warning: the certificate expires on"


@plant
def the_certificate_is_of_another_site(site: CheckedSite) -> Place:
    site.certify("hospital-b")
    return certificate(site), "take what the coordinator sent"


@plant
def the_certificate_is_of_another_authority(site: CheckedSite) -> Place:
    site.consortium = Consortium(site.folder / "other", "phantom")
    site.certify("hospital-a")
    return certificate(site), "take both from the same coordinator"


@plant
def the_certificate_is_of_another_consortium(site: CheckedSite) -> Place:
    site.consortium = Consortium(site.folder / "other", "thorax")
    shutil.copy(site.consortium.ca, site.folder / "consortium" / "ca.pem")
    site.certify("hospital-a")
    return certificate(site), "of one consortium"


@plant
def the_certificate_is_not_of_this_key(site: CheckedSite) -> Place:
    shutil.copy(site.consortium.site("hospital-a").certificate, certificate(site))
    return certificate(site), "restore the key that was enrolled"


@plant
def the_certificate_is_no_certificate(site: CheckedSite) -> Place:
    certificate(site).write_text("certificate\n")
    return certificate(site), "take the file from the coordinator"


@plant
def the_authority_is_missing(site: CheckedSite) -> Place:
    ca = site.folder / "consortium" / "ca.pem"
    ca.unlink()
    return ca, "take what the coordinator sent"


# the agreement


@plant
def the_agreement_is_missing(site: CheckedSite) -> Place:
    site.agreement.unlink()
    return site.agreement, "take what the coordinator sent"


@plant
def the_identity_is_not_the_one_of_the_agreement(site: CheckedSite) -> Place:
    (site.folder / "secrets" / "identity.pem").unlink()
    SiteIdentity.generate().save(site.folder / "secrets" / "identity.pem")
    return site.file, "use the key that was enrolled"


@plant
def the_site_is_not_in_the_agreement(site: CheckedSite) -> Place:
    other = SiteIdentity.from_seed(bytes([9] * 32)).public_hex
    site.change(site.agreement, sites=None)
    site.change(site.agreement, sites={"hospital-b": other})
    return site.file, "fetch the agreement that names this key"


@plant
def epsilon_is_above_the_agreement(site: CheckedSite) -> Place:
    site.change(privacy={"epsilon_cap": 12.0})
    return site.file, "warning: the site's cap 12 is above the agreement's 8"


@plant
def delta_is_above_one_over_the_patients(site: CheckedSite) -> Place:
    row = site.manifest.read_text().splitlines()
    cells = row[1].split(",")
    lines = [*row]
    for number in range(120):
        new = [f"more-{number}", f"more-{number}", *cells[2:]]
        lines.append(",".join(new))
    site.manifest.write_text("\n".join(lines) + "\n")
    site.change(privacy={"delta": 0.009})
    return site.file, "choose one of at most"


@plant
def the_agreement_has_no_private_rounds(site: CheckedSite) -> Place:
    site.change(site.agreement, privacy=None)
    return site.file, "warning: the agreement has no section privacy"


@plant
def no_mode_of_privacy_is_agreed_upon(site: CheckedSite) -> Place:
    site.change(privacy={"modes": ["distributed"]})
    return site.file, "name one of these"


@plant
def a_purpose_is_not_agreed_upon(site: CheckedSite) -> Place:
    site.change(queries={"purposes": ["care", "marketing"]})
    return site.file, "it has care, research. Correct the name"


@plant
def the_agreement_has_no_search(site: CheckedSite) -> Place:
    site.change(site.agreement, search=None)
    return site.file, "agree on one, or remove the section queries"


@plant
def largest_k_is_above_the_agreement(site: CheckedSite) -> Place:
    site.change(queries={"largest_k": 500})
    return site.file, "warning: the agreement's largest_k is 100, which binds; lower this"


@plant
def the_agreement_names_no_release_key(site: CheckedSite) -> Place:
    site.change(site.agreement, release_key=None)
    return site.agreement, "warning: the agreement names no release_key"


@plant
def plain_aggregation_is_allowed(site: CheckedSite) -> Place:
    site.change(training={"aggregations": ["secure", "plain"]})
    return site.file, "warning: plain shows the coordinator this site's own update"


@plant
def secure_rounds_without_a_network(site: CheckedSite) -> Place:
    site.change(network=None)
    return site.file, "warning: training.aggregations has secure, and without a section network"


# data


def rewritten(site: CheckedSite, old: str, new: str) -> None:
    text = site.manifest.read_text()
    assert old in text
    site.manifest.write_text(text.replace(old, new))


@plant
def the_manifest_is_missing(site: CheckedSite) -> Place:
    site.manifest.unlink()
    return site.manifest, "or name another"


@plant
def an_image_is_missing(site: CheckedSite) -> Place:
    next((site.folder / "data" / "images").iterdir()).unlink()
    return site.manifest, "image: "


@plant
def a_finding_is_unknown(site: CheckedSite) -> Place:
    header, row, *rest = site.manifest.read_text().splitlines()
    cells = row.split(",")
    cells[header.split(",").index("positive")] = "cardiomegally"
    site.manifest.write_text("\n".join([header, ",".join(cells), *rest]) + "\n")
    return site.manifest, "not in the vocabulary; did you mean"


@plant
def a_study_stands_twice(site: CheckedSite) -> Place:
    text = site.manifest.read_text()
    site.manifest.write_text(text + text.splitlines()[1] + "\n")
    return site.manifest, "give every study its own"


@plant
def nobody_consents(site: CheckedSite) -> Place:
    rewritten(site, ",yes,", ",no,")
    return site.manifest, "training and the index need some"


@plant
def a_frozen_file_is_missing(site: CheckedSite) -> Place:
    site.change(training={"frozen": {"image": "frozen-image.safetensors"}})
    return site.folder / "frozen-image.safetensors", "copy the file there"


@plant
def a_frozen_file_is_damaged(site: CheckedSite) -> Place:
    (site.folder / "frozen-image.safetensors").write_bytes(b"features")
    site.change(training={"frozen": {"image": "frozen-image.safetensors"}})
    return site.folder / "frozen-image.safetensors", "fetch it again"


# state


@plant
def others_may_open_the_state_folder(site: CheckedSite) -> Place:
    (site.folder / "state").chmod(0o750)
    return site.folder / "state", "chmod 700"


@plant
def the_state_folder_is_a_file(site: CheckedSite) -> Place:
    (site.folder / "state").rmdir()
    (site.folder / "state").write_text("")
    return site.folder / "state", "name another under state"


@plant
def the_state_folder_cannot_be_written(site: CheckedSite) -> Place:
    site.change(state="/proc/fedhash")  # not even by root
    return Path("/proc/fedhash"), "name another folder under state"


@plant
def the_state_folder_has_too_long_a_name(site: CheckedSite) -> Place:
    folder = site.folder / ("long" * 30)
    folder.mkdir(mode=0o700)
    site.change(state=str(folder))
    return folder / "control.sock", "name a shorter folder"


def ledger(site: CheckedSite, clock: Callable[[], datetime] | None = None) -> Path:
    path = site.folder / "state" / "privacy.sqlite"
    with Ledger(path, [TERMS]) if clock is None else Ledger(path, [TERMS], clock) as book:
        book.reserve(release(5.0))
    return path


@plant
def the_ledger_was_altered(site: CheckedSite) -> Place:
    path = ledger(site)
    database = sqlite3.connect(path)
    database.executescript("DROP TRIGGER no_removal; DELETE FROM entries;")
    database.close()
    return path, "was altered"


@plant
def the_ledger_is_gone(site: CheckedSite) -> Place:
    path = ledger(site)
    for each in path.parent.glob("privacy.sqlite*"):
        if not each.name.endswith(".anchor"):
            each.unlink()
    return path, "restore it"


@plant
def the_clock_was_set_back(site: CheckedSite) -> Place:
    path = ledger(site, lambda: datetime.now(UTC) + 400 * DAY)
    return path, "Correct this machine's clock"


@plant
def the_audit_log_was_altered(site: CheckedSite) -> Place:
    path = site.folder / "state" / "audit.jsonl"
    with AuditLog(path) as log:
        log.append({"kind": "release"})
    path.write_bytes(path.read_bytes().replace(b"release", b"nothing"))
    return path, "restore the file from a copy"


@plant
def a_closed_audit_file_was_altered(site: CheckedSite) -> Place:
    path = site.folder / "state" / "audit.jsonl"
    with SegmentedAuditLog(path) as log:
        log.append({"kind": "release"})
        log.close_segment(None)
    closed = closed_segment(path, 1)
    closed.write_bytes(closed.read_bytes().replace(b"release", b"nothing"))
    return path, r"audit.000001.jsonl:1: the line was altered"


@plant
def the_memory_of_releases_is_damaged(site: CheckedSite) -> Place:
    path = site.folder / "state" / "releases" / "newest.json"
    path.parent.mkdir(mode=0o700)
    path.write_text("{}")
    return path, "set releases.smallest_number"


@plant
def the_training_seed_is_damaged(site: CheckedSite) -> Place:
    path = site.folder / "state" / "training.seed"
    path.write_text("seven\n")
    return path, "remove the file"


@plant
def the_list_of_who_withdrew_is_damaged(site: CheckedSite) -> Place:
    (site.folder / "state" / "withdrawn.sqlite").write_bytes(b"nobody" * 100)
    return site.manifest, "withdrawn.sqlite"


# machine


@plant
def both_ports_are_one(site: CheckedSite) -> Place:
    site.change(daemon={"health_port": 9470, "supernode_port": 9470})
    return site.file, "choose another for one"


@plant
def the_superlinks_port_is_impossible(site: CheckedSite) -> Place:
    site.change(network={"superlink": "localhost:99999"})
    return site.file, "expected HOST:PORT"


@plant
def the_routers_address_is_no_address(site: CheckedSite) -> Place:
    site.change(network={"router": "2001:db8::1:9444"})
    return site.file, "expected HOST:PORT"


@plant
def the_routers_address_has_no_port(site: CheckedSite) -> Place:
    site.change(network={"router": "localhost"})
    return site.file, "network.router"


@plant
def an_address_is_still_the_examples(site: CheckedSite) -> Place:
    site.change(network={"superlink": "coordinator.example.org:9443"})
    return site.file, "write that of the coordinator's machine"


@plant
def both_addresses_are_one(site: CheckedSite) -> Place:
    site.change(network={"router": "localhost:9443"})
    return site.file, "9444 by default"


@plant
def a_key_of_the_sites_file_is_misspelt(site: CheckedSite) -> Place:
    site.change(manifesto="manifest.csv")
    return site.file, "did you mean"


def test_a_sound_site_is_told_nothing(site: CheckedSite) -> None:
    before = sorted(site.folder.rglob("*"))
    assert site.check() == []
    assert sorted(site.folder.rglob("*")) == before, "a check leaves nothing behind"
    assert CliRunner().invoke(app, ["check", str(site.file)]).stderr == ""


def told(problems: list[dict[str, str]], place: Place) -> list[dict[str, str]]:
    file, remedy = place
    return [
        each
        for each in problems
        if each["file"] == str(file) and remedy in f"{each['severity']}: {each['message']}"
    ]


@pytest.mark.parametrize("mistake", PLANTS)
def test_a_planted_mistake_is_named_with_its_remedy(mistake: str, site: CheckedSite) -> None:
    place = PLANTS[mistake](site)
    problems = site.check()
    (found,) = told(problems, place)
    assert found["severity"] == ("warning" if place[1].startswith("warning") else "error")
    if place[0] in {site.file, site.manifest} and "need some" not in place[1]:
        assert found["line"] is not None or place[0] == site.manifest
    assert len(problems) <= 3, "one mistake is not told as many"


def test_many_mistakes_are_told_at_once(site: CheckedSite) -> None:
    apart = (
        the_tls_key_is_readable_by_others,
        the_certificate_has_expired,
        others_may_open_the_state_folder,
        a_study_stands_twice,
        an_image_is_missing,
        the_audit_log_was_altered,
        epsilon_is_above_the_agreement,
        a_purpose_is_not_agreed_upon,
        both_ports_are_one,
        a_frozen_file_is_damaged,
    )
    places = [mistake(site) for mistake in apart]
    problems = site.check()
    assert all(told(problems, place) for place in places)


@pytest.mark.parametrize("name", ["health_port", "supernode_port"])
def test_a_port_that_another_program_has(name: str, site: CheckedSite) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        site.change(daemon={name: taken.getsockname()[1]})
        (problem,) = site.check()
    assert problem["line"] == site.line_of(name)
    assert f"choose another daemon.{name}" in problem["message"]


def test_a_running_daemon_has_its_own_ports(site: CheckedSite) -> None:
    with socket.socket(socket.AF_UNIX) as control, socket.socket() as taken:
        control.bind(str(site.folder / "state" / "control.sock"))
        control.listen()
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        site.change(daemon={"health_port": taken.getsockname()[1]})
        assert site.check() == []


def test_another_flower(site: CheckedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower_version, "version", lambda _: "1.42.0")
    (problem,) = site.check()
    assert "Flower 1.42.0 is installed" in problem["message"]
    assert "install fedhash again" in problem["message"]
    with pytest.raises(ProtocolError):
        flower_version.check_flower_version()


@pytest.mark.parametrize(
    ("free", "severity", "remedy"),
    [(10 << 20, "error", "free some, or move state"), (1 << 30, "warning", "or lower that")],
)
def test_a_disk_that_is_nearly_full(
    free: int, severity: str, remedy: str, site: CheckedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        state_checks.shutil, "disk_usage", lambda _: usage(1 << 40, (1 << 40) - free, free)
    )
    (problem,) = site.check()
    assert (problem["severity"], problem["file"]) == (severity, str(site.folder / "state"))
    assert remedy in problem["message"]


def test_people_read_the_place_first(site: CheckedSite) -> None:
    site.change(privacy={"epsilon_cap": 12.0})
    result = CliRunner().invoke(app, ["check", str(site.file)])
    assert result.exit_code == 0, "a warning is no error"
    line = site.line_of("epsilon_cap")
    assert result.stderr.startswith(f"warning: {site.file}:{line}: the site's cap 12")
    assert "usable studies" in result.stdout


def test_a_wrong_file_of_the_site_is_told_by_line(site: CheckedSite) -> None:
    site.file.write_text(site.file.read_text().replace("modes:", "mode:"))
    result = CliRunner().invoke(app, ["check", str(site.file), "--json"])
    assert result.exit_code == 1
    (problem, *_) = json.loads(result.stdout)["problems"]
    assert problem["line"] == site.line_of("mode:")


def test_there_are_enough_mistakes() -> None:
    assert len(PLANTS) >= 20
