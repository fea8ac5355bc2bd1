"""From a site's `init` over the coordinator's `enrol` to a certificate that proves the site."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import fedhash_server.enrolment as enrolling
from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash.enrolment import check_certificate, peer_of
from fedhash.enrolment.request import SiteRequest, make_request, read_request
from fedhash.errors import CertificateError, ConfigurationError, StorageError
from fedhash.secagg.identity import SiteIdentity
from fedhash_client.cli import app as site_app
from fedhash_client.settings import SiteSettings
from fedhash_client.site_folder import make_site_folder
from fedhash_server.agreement_file import write_agreement_section
from fedhash_server.cli import app as coordinator_app
from fedhash_server.coordinator_folder import CoordinatorFolder, make_coordinator_folder
from fedhash_server.enrolment import enrol, strike
from fedhash_server.roster import read_roster
from fedhash_server.superlink import SuperLink


def call(app: object, *arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout if code == 0 else result.stderr.replace("\n", " ")


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    place = CoordinatorFolder(tmp_path / "thorax")
    make_coordinator_folder(place, "thorax", ["localhost"])
    return place


def request_of(tmp_path: Path, name: str, where: str | None = None) -> SiteRequest:
    return make_site_folder(tmp_path / (where or name), name).request


def test_the_commands_lead_from_nothing_to_an_enrolled_site(tmp_path: Path) -> None:
    site, place = tmp_path / "site", tmp_path / "thorax"
    init = ("init", site, "--name", "hospital-a", "--coordinator", "::1", "--json")
    facts = json.loads(call(site_app, *init))
    assert "secrets/identity.pem" in facts["made"]
    assert json.loads(call(site_app, *init)) == facts | {"made": []}, "nothing is made twice"
    made = ("init", place, "--name", "thorax", "--host", "localhost", "--host", "127.0.0.1")
    first = json.loads(call(coordinator_app, *made, "--json"))
    assert json.loads(call(coordinator_app, *made, "--json")) == first | {"made": []}
    command = ("enrol", place, facts["request"], "--json")
    trial = json.loads(call(coordinator_app, *command, "--dry-run"))
    assert not (place / "sites" / "hospital-a").exists()
    done = json.loads(call(coordinator_app, *command))
    assert done == trial | {"dry_run": False, "expires": done["expires"]}
    assert done["digest"] == facts["digest"]
    assert json.loads(call(coordinator_app, *command)) == done | {"changed": False}
    for file in Path(done["send_to_the_site"]).iterdir():
        (site / "consortium" / file.name).write_bytes(file.read_bytes())
    settings = read_settings(site / "site.yaml", SiteSettings)
    assert settings.network is not None
    assert settings.network.superlink == "[::1]:9443"
    peer = check_certificate(
        settings.network.certificate.read_bytes(),
        settings.network.ca.read_bytes(),
        datetime.now(UTC),
    )
    assert (peer.consortium, peer.role, peer.name) == ("thorax", "site", "hospital-a")
    terms = read_settings(settings.agreement, Agreement)
    assert terms.sites == {"hospital-a": facts["public_key"]}
    assert terms.digest() == done["agreement_digest"]
    release_key = SiteIdentity.load(place / "secrets" / "release.key")
    assert terms.release_key == release_key.public_hex
    struck = json.loads(call(coordinator_app, "strike", place, "hospital-a", "--json"))
    assert struck["struck_off"] == "hospital-a"
    assert "is not enrolled" in call(coordinator_app, "strike", place, "hospital-a", code=1)


def test_every_key_is_its_owner_s_alone(tmp_path: Path, folder: CoordinatorFolder) -> None:
    make_site_folder(tmp_path / "site", "a")
    for keys in (tmp_path / "site" / "secrets", folder.path / "secrets"):
        assert keys.stat().st_mode & 0o777 == 0o700
        assert {each.stat().st_mode & 0o777 for each in keys.iterdir()} == {0o600}
    load_ssh_private_key((tmp_path / "site" / "secrets" / "supernode.key").read_bytes(), None)


def test_a_folder_stays_that_of_its_site_and_of_its_consortium(
    tmp_path: Path, folder: CoordinatorFolder
) -> None:
    make_site_folder(tmp_path / "site", "a")
    with pytest.raises(CertificateError, match="folder of the site 'a'"):
        make_site_folder(tmp_path / "site", "b")
    with pytest.raises(CertificateError, match="folder of the consortium 'thorax'"):
        make_coordinator_folder(folder, "abdomen", ["localhost"])
    with pytest.raises(ConfigurationError, match="no coordinator's folder"):
        CoordinatorFolder(tmp_path / "site").settings()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a" * 64, "-a", "ü", "a\n"])
def test_a_name_that_is_no_folder_is_refused_before_a_key_is_made(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(CertificateError, match="cannot be enrolled"):
        make_site_folder(tmp_path / "site", name)
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("host", ["", "a\nb", "c.example.org/x", "\udcff"])
def test_a_coordinator_that_is_no_host_is_refused_before_a_key_is_made(
    tmp_path: Path, host: str
) -> None:
    with pytest.raises(CertificateError, match="neither a host name nor an IP address"):
        make_site_folder(tmp_path / "site", "a", coordinator=host)
    assert not (tmp_path / "site").exists()


def test_what_a_user_wrote_into_the_site_s_file_stays(tmp_path: Path) -> None:
    make_site_folder(tmp_path, "a")
    (tmp_path / "site.yaml").write_text("name: a\n")
    (tmp_path / "secrets" / "tls.key").unlink()
    made = make_site_folder(tmp_path, "a").made
    assert made == ("secrets/tls.key", "request.json"), "a new key needs a new request"
    assert (tmp_path / "site.yaml").read_text() == "name: a\n"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda key: key.chmod(0o644), "chmod 600"),
        (lambda key: key.write_bytes(b"x"), "damaged"),
        (lambda key: key.write_bytes(key.with_name("identity.pem").read_bytes()), "no ECDSA key"),
    ],
)
def test_a_bad_key_is_told(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    make_site_folder(tmp_path, "a")
    spoil(tmp_path / "secrets" / "tls.key")
    with pytest.raises((CertificateError, ConfigurationError), match=message):
        make_site_folder(tmp_path, "a")


@pytest.fixture(scope="module")
def two_requests(tmp_path_factory: pytest.TempPathFactory) -> list[SiteRequest]:
    folder = tmp_path_factory.mktemp("sites")
    return [make_site_folder(folder / name, name).request for name in "ab"]


@pytest.mark.parametrize(
    "field", ["name", "certificate_request", "supernode_key", "identity", "signature"]
)
def test_no_field_of_a_request_can_be_exchanged(
    tmp_path: Path, two_requests: list[SiteRequest], field: str
) -> None:
    mine, other = two_requests
    mixed = mine.model_copy(update={field: getattr(other, field)})
    (tmp_path / "request.json").write_text(mixed.model_dump_json())
    with pytest.raises(CertificateError, match="changed on the way"):
        read_request(tmp_path / "request.json")
    assert mixed.digest() != mine.digest()


@given(st.data())
def test_bytes_that_are_no_request_are_refused(
    two_requests: list[SiteRequest], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = two_requests[0].model_dump_json().encode()
    place, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    content = data.draw(
        st.one_of(
            st.binary(max_size=200), st.just(whole[:place] + bytes([byte]) + whole[place + 1 :])
        )
    )
    path = tmp_path_factory.getbasetemp() / "request.json"
    path.write_bytes(content)
    try:
        read = read_request(path)
    except CertificateError:
        return
    assert read == two_requests[0]


def test_a_request_that_is_too_long_or_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(bytes(1 << 20))
    for path in (tmp_path / "long", tmp_path, tmp_path / "none"):
        with pytest.raises(StorageError, match=str(path)):
            read_request(path)


def test_other_keys_under_a_taken_name_need_replace(
    tmp_path: Path, folder: CoordinatorFolder
) -> None:
    first, second = request_of(tmp_path, "a"), request_of(tmp_path, "a", "elsewhere")
    enrol(folder, first)
    old = read_roster(folder)["a"]
    with pytest.raises(CertificateError, match=r"enrolled with other keys.*--replace"):
        enrol(folder, second)
    assert read_roster(folder)["a"] == old
    enrol(folder, second, replace=True)
    new = read_roster(folder)["a"]
    assert new.fingerprint != old.fingerprint
    assert new.supernode_key == second.supernode_key
    assert folder.agreement().sites == {"a": second.identity}
    (kept,) = folder.struck.iterdir()
    assert peer_of((kept / "certificate.pem").read_bytes()).fingerprint == old.fingerprint


@pytest.mark.parametrize("same_keys", [True, False])
def test_a_crash_while_a_site_is_replaced_leaves_it_enrolled(
    tmp_path: Path, folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch, same_keys: bool
) -> None:
    """At no moment does a running coordinator miss the site: its key would be refused for good."""
    first = request_of(tmp_path, "a")
    second = first if same_keys else request_of(tmp_path, "a", "elsewhere")
    enrol(folder, first)
    old = read_roster(folder)["a"].fingerprint
    write, keys = enrolling.replace_file, {first.supernode_key, second.supernode_key}
    for last in range(5):
        written: list[Path] = []

        def dies(
            path: Path, content: bytes, last: int = last, written: list[Path] = written
        ) -> None:
            assert read_roster(folder)["a"].supernode_key in keys
            if len(written) == last:
                power_cut()
            written.append(path)
            write(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(enrolling, "replace_file", dies)
            with pytest.raises(KeyboardInterrupt):
                enrol(folder, second, replace=True)
        assert read_roster(folder)["a"].supernode_key in keys
    with monkeypatch.context() as patch:
        rename = Path.rename

        def elsewhere(path: Path, target: Path) -> Path:
            assert path.parent != folder.sites, "between two renames there would be no site"
            return rename(path, target)

        patch.setattr(Path, "rename", elsewhere)
        enrol(folder, second, replace=True)
    assert read_roster(folder)["a"].supernode_key == second.supernode_key
    assert read_roster(folder)["a"].fingerprint != old
    assert not enrol(folder, second).changed
    records = [peer_of((each / "certificate.pem").read_bytes()) for each in folder.struck.iterdir()]
    assert old in {each.fingerprint for each in records}
    assert strike(folder, "a") == ()
    with pytest.raises(CertificateError, match="was struck off"):
        enrol(folder, second)


def test_a_certificate_is_renewed_for_the_same_keys(
    tmp_path: Path, folder: CoordinatorFolder
) -> None:
    request = request_of(tmp_path, "a")
    before = enrol(folder, request)
    old = read_roster(folder)["a"].fingerprint
    again = enrol(folder, request, replace=True)
    assert again.changed
    assert again.agreement_digest == before.agreement_digest
    assert read_roster(folder)["a"].fingerprint != old


def test_a_supernode_key_that_was_struck_off_is_not_taken_again(
    tmp_path: Path, folder: CoordinatorFolder
) -> None:
    request = request_of(tmp_path, "a")
    enrol(folder, request)
    enrol(folder, request, replace=True)  # the key stays in use
    strike(folder, "a")
    with pytest.raises(CertificateError, match=r"SuperNode key of a was struck off.*init"):
        enrol(folder, request)
    (tmp_path / "a" / "secrets" / "supernode.key").unlink()
    enrol(folder, request_of(tmp_path, "a"))
    assert list(read_roster(folder)) == ["a"]


def test_a_name_in_other_case_is_the_same_name(tmp_path: Path, folder: CoordinatorFolder) -> None:
    enrol(folder, request_of(tmp_path, "north"))
    before = folder.agreement_file.read_bytes()
    for name in ("North", "NORTH"):
        for how in ({}, {"replace": True}, {"dry_run": True}):
            with pytest.raises(
                CertificateError, match=f"'north' is enrolled, and '{name}' differs"
            ):
                enrol(folder, request_of(tmp_path, name), **how)
    assert list(read_roster(folder)) == ["north"]
    assert folder.agreement_file.read_bytes() == before
    strike(folder, "north")
    assert enrol(folder, request_of(tmp_path, "North")).changed


def test_two_names_cannot_share_a_key(tmp_path: Path, folder: CoordinatorFolder) -> None:
    enrol(folder, request_of(tmp_path, "a"))
    (tmp_path / "a" / "request.json").unlink()
    both = make_site_folder(tmp_path / "a", "b").request
    with pytest.raises(
        CertificateError, match="the TLS key and SuperNode key and identity of b is that of a"
    ):
        enrol(folder, both)
    with pytest.raises(CertificateError, match="is that of a"):
        enrol(folder, both, dry_run=True)
    assert list(read_roster(folder)) == ["a"]


def test_a_key_in_another_spelling_is_not_another_key(
    tmp_path: Path, folder: CoordinatorFolder
) -> None:
    """136 bytes leave four bits of the last base64 digit unused, so a key has sixteen spellings."""
    key = request_of(tmp_path, "a").supernode_key
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = key.rstrip("=")[-1]
    spelt = key.rstrip("=")[:-1] + digits[digits.index(last) + 1] + "=="
    identity = SiteIdentity.load(tmp_path / "a" / "secrets" / "identity.pem")
    tls_key = load_pem_private_key((tmp_path / "a" / "secrets" / "tls.key").read_bytes(), None)
    assert isinstance(tls_key, EllipticCurvePrivateKey)
    for other in (spelt, f"{key}="):
        path = tmp_path / "other.json"
        path.write_text(make_request("b", tls_key, other, identity).model_dump_json())
        with pytest.raises(CertificateError, match="not written as OpenSSH writes it"):
            read_request(path)


def test_a_site_that_the_agreement_cannot_list_gets_no_certificate(
    tmp_path: Path, folder: CoordinatorFolder
) -> None:
    request_of(tmp_path, "coordinator")
    agreement = folder.agreement_file.read_text()
    for options in ([], ["--dry-run"]):
        command = ("enrol", folder.path, tmp_path / "coordinator" / "request.json", *options)
        assert "a site is called 'coordinator'" in call(coordinator_app, *command, code=1)
    assert read_roster(folder) == {}
    assert list(folder.sites.iterdir()) == []
    assert folder.agreement_file.read_text() == agreement


def test_a_draft_that_is_no_text_makes_no_folder(tmp_path: Path) -> None:
    (tmp_path / "draft.yaml").write_bytes(b"name: \xff")
    init = ("init", tmp_path / "new", "--name", "x", "--host", "localhost")
    told = call(coordinator_app, *init, "--agreement", tmp_path / "draft.yaml", code=1)
    assert "not UTF-8" in told
    assert not (tmp_path / "new").exists()


def test_every_site_gets_the_new_agreement(tmp_path: Path, folder: CoordinatorFolder) -> None:
    enrol(folder, request_of(tmp_path, "a"))
    done = enrol(folder, request_of(tmp_path, "b"))
    assert done.other_sites == ("a",)
    for name in "ab":
        welcome = folder.sites / name / "welcome" / "agreement.yaml"
        assert read_settings(welcome, Agreement).digest() == done.agreement_digest
    assert strike(folder, "a") == ("b",)
    assert list(folder.agreement().sites) == list(read_roster(folder)) == ["b"]
    welcome = folder.sites / "b" / "welcome" / "agreement.yaml"
    assert list(read_settings(welcome, Agreement).sites) == ["b"]


def test_a_crash_before_the_agreement_is_mended_by_the_same_command(
    tmp_path: Path, folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(tmp_path, "a")
    with monkeypatch.context() as patch:
        patch.setattr(enrolling, "write_agreement_section", power_cut)
        with pytest.raises(KeyboardInterrupt):
            enrol(folder, request)
    assert folder.agreement().sites == {}
    fingerprint = read_roster(folder)["a"].fingerprint
    done = enrol(folder, request)
    assert done.changed
    assert folder.agreement().sites == {"a": request.identity}
    assert read_roster(folder)["a"].fingerprint == fingerprint, "no second certificate"
    assert (done.welcome / "agreement.yaml").exists()


@pytest.mark.parametrize("same_keys", [True, False])
def test_a_replacement_that_is_cut_short_anywhere_is_finished_by_the_same_command(
    tmp_path: Path,
    folder: CoordinatorFolder,
    monkeypatch: pytest.MonkeyPatch,
    same_keys: bool,
) -> None:
    """The site is enrolled at every moment, and its SuperNode key never counts as struck off."""
    enrol(folder, request_of(tmp_path, "a"))
    request = request_of(tmp_path, "a", where="a" if same_keys else "another")
    before = read_roster(folder)["a"].fingerprint
    for step in range(1, 100):
        left = step

        def cut(function: Callable[..., None]) -> Callable[..., None]:
            def each(*arguments: object) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
                function(*arguments)

            return each

        with monkeypatch.context() as patch:
            patch.setattr(enrolling, "replace_file", cut(enrolling.replace_file))
            patch.setattr(enrolling, "sync_folder", cut(enrolling.sync_folder))
            patch.setattr(enrolling.shutil, "copytree", cut(enrolling.shutil.copytree))
            try:
                enrol(folder, request, replace=True)
            except KeyboardInterrupt:
                assert list(read_roster(folder)) == ["a"]
                continue
        break
    assert step > 6, "each write was cut once"
    assert read_roster(folder)["a"].fingerprint != before
    assert read_request(folder.sites / "a" / "request.json") == request
    strike(folder, "a")
    assert read_roster(folder) == {}


def power_cut(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_certificate_in_the_wrong_folder_is_found(
    tmp_path: Path, folder: CoordinatorFolder
) -> None:
    for name in "ab":
        enrol(folder, request_of(tmp_path, name))
    stolen = (folder.sites / "a" / "certificate.pem").read_bytes()
    (folder.sites / "b" / "certificate.pem").write_bytes(stolen)
    with pytest.raises(CertificateError, match=r"names the site 'a' .* expected the site 'b'"):
        read_roster(folder)


@pytest.mark.parametrize("content", [b"", b"ecdsa-sha2-nistp384 AAAA", b"\xff\xfe", b"no key"])
def test_a_damaged_supernode_key_is_told_and_ends_no_server(
    tmp_path: Path, folder: CoordinatorFolder, content: bytes
) -> None:
    enrol(folder, request_of(tmp_path, "a"))
    (folder.sites / "a" / "supernode.pub").write_bytes(content)
    with (
        SuperLink(folder, folder.settings()) as superlink,
        pytest.raises(CertificateError, match=r"sites/a/supernode.pub holds no key"),
    ):
        superlink.keep_nodes(read_roster(folder))


def test_the_remedy_for_a_certificate_in_the_wrong_folder_works(
    tmp_path: Path, folder: CoordinatorFolder
) -> None:
    for name in "ab":
        enrol(folder, request_of(tmp_path, name))
    stolen = (folder.sites / "a" / "certificate.pem").read_bytes()
    (folder.sites / "b" / "certificate.pem").write_bytes(stolen)
    with pytest.raises(CertificateError, match=r"move .*/sites/b away, and enrol"):
        strike(folder, "b")
    away = (folder.sites / "b").rename(tmp_path / "away")
    enrol(folder, read_request(away / "request.json"))
    assert list(read_roster(folder)) == ["a", "b"]


def test_servers_have_certificates_and_a_lost_one_is_made_again(folder: CoordinatorFolder) -> None:
    folder.check_servers()
    before = folder.ca.read_bytes()
    folder.certificate("router").unlink()
    made = make_coordinator_folder(folder, "thorax", ["localhost"])
    assert made == ("secrets/router.key", "certificates/router.pem")
    folder.check_servers()
    assert folder.ca.read_bytes() == before
    with pytest.raises(CertificateError, match="expired"):
        folder.check_servers(datetime(2200, 1, 1, tzinfo=UTC))


def test_an_agreement_of_one_s_own_is_taken_with_its_comments(tmp_path: Path) -> None:
    own = tmp_path / "agreement.yaml"
    own.write_text(
        "# ours\nname: thorax\nfindings: [a, b] # both\nsites: {\n}\n\n# what we look at\n"
        "modalities: [image]\n"
    )
    with pytest.raises(ConfigurationError, match="name is 'thorax', and the consortium 'x'"):
        make_coordinator_folder(CoordinatorFolder(tmp_path / "x"), "x", ["localhost"], own)
    place = CoordinatorFolder(tmp_path / "c")
    make_coordinator_folder(place, "thorax", ["localhost"], own)
    enrol(place, request_of(tmp_path, "a"))
    text = place.agreement_file.read_text()
    for comment in ("# ours", "# both", "# what we look at"):
        assert comment in text
    assert list(place.agreement().sites) == ["a"]
    assert place.agreement().findings == ("a", "b")


IDENTITIES = [SiteIdentity.from_seed(bytes([i]) * 32).public_hex for i in range(4)]


@settings(max_examples=25)
@given(
    st.lists(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20),
            st.sampled_from(IDENTITIES),
            max_size=3,
        ).filter(
            lambda sites: (
                len(set(sites.values())) == len({site.casefold() for site in sites}) == len(sites)
            )
        ),
        max_size=3,
    )
)
def test_a_roster_of_any_names_can_be_written_over_another(
    tmp_path_factory: pytest.TempPathFactory, rosters: list[dict[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "agreement.yaml"
    path.write_text("name: x\nfindings: [a, b]\nmodalities: [image] # last")
    for sites in rosters:
        agreement = write_agreement_section(path, {"sites": sites})
        assert read_settings(path, Agreement) == agreement
        assert agreement.sites == sites
        assert "# last" in path.read_text()


def test_an_agreement_that_cannot_be_changed_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agreement.yaml"
    text = "{name: x, findings: [a, b], modalities: [image]}\n"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="write it by hand"):
        write_agreement_section(path, {"sites": {"a": IDENTITIES[0]}})
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]
