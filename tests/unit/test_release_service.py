"""Releases over gRPC: who may ask, what is given, and a download that trusts nobody."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from consortium_certificates import NAME, Consortium, Credentials
from hypothesis import given, settings
from hypothesis import strategies as st
from release_server import release_server
from small_releases import registry_in, release_into

from fedhash.enrolment import peer_of
from fedhash.errors import CertificateError, ProtocolError, ReleaseError
from fedhash.registry import load_release
from fedhash.registry.registry import read_current
from fedhash.registry.wire import FETCH_METHOD, SERVICE
from fedhash.registry.wire.releases_pb2 import FetchRequest
from fedhash_client.network_settings import NetworkSettings
from fedhash_client.releases.download import fetch_release, install_release
from fedhash_client.releases.source import GrpcReleases
from fedhash_client.router_channel import open_channel
from fedhash_server.release_service import release_handler
from tests.router_network import Place, RouterThread

BOUND = 1 << 30


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with two releases, of which the first is current."""
    folder = tmp_path_factory.mktemp("releases")
    registry_in(folder).publish(release_into(folder, 1).release_id)
    release_into(folder, 2)
    return folder


@pytest.fixture(scope="module")
def address(releases: Path) -> Iterator[str]:
    with release_server(releases) as found:
        yield found


@pytest.fixture
def source(address: str) -> GrpcReleases:
    return GrpcReleases(lambda: grpc.insecure_channel(address))


def current_id(releases: Path) -> str:
    current = registry_in(releases).current()
    assert current is not None
    return current.release_id


def test_a_site_fetches_what_is_current(
    releases: Path, source: GrpcReleases, tmp_path: Path
) -> None:
    assert source.current() == read_current(releases)
    wanted, told = current_id(releases), []
    release = fetch_release(source, tmp_path, wanted, BOUND, lambda *at: told.append(at))
    assert release.release_id == wanted
    for path in (releases / wanted).iterdir():
        assert (tmp_path / wanted / path.name).read_bytes() == path.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == [wanted]
    assert told[-1][0] == told[-1][1] > 0
    assert fetch_release(source, tmp_path, wanted, BOUND).release_id == wanted, "it is there"


def test_only_the_current_release_and_its_files_are_given(
    releases: Path, source: GrpcReleases, tmp_path: Path
) -> None:
    wanted = current_id(releases)
    (other,) = {path.name for path in releases.iterdir() if len(path.name) == 64} - {wanted}
    for release_id, file in (
        (other, "manifest.json"),
        (wanted, "../current.json"),
        (wanted, "statements.jsonl"),
        (wanted, "frozen-image.safetensors"),
        ("..", "manifest.json"),
        (wanted + "/", "manifest.json"),
    ):
        with pytest.raises(ProtocolError, match=r"not current|no release has|no such file"):
            list(source.fetch(release_id, file, 0))
    ((total, content),) = source.fetch(wanted, "manifest.json", 1 << 40)
    assert (total, content) == ((releases / wanted / "manifest.json").stat().st_size, b"")


@settings(max_examples=50)
@given(request=st.binary(max_size=2000), method=st.sampled_from(["Current", "Fetch", "Other"]))
def test_hostile_requests_end_in_a_status_and_the_service_goes_on(
    address: str, releases: Path, request: bytes, method: str
) -> None:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_stream(f"/{SERVICE}/{method}")(request, timeout=10)
        with suppress(grpc.RpcError):
            list(call)
        assert call.code() in {
            grpc.StatusCode.OK,  # what is asked of Current is not looked at
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.UNIMPLEMENTED,
        }
    source = GrpcReleases(lambda: grpc.insecure_channel(address))
    assert source.current() == read_current(releases)


def test_a_fetch_without_a_deadline_is_refused(address: str, releases: Path) -> None:
    from fedhash.registry.wire.releases_pb2 import FetchRequest

    request = FetchRequest(release_id=current_id(releases), file="manifest.json")
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_stream(f"/{SERVICE}/Fetch")
        with pytest.raises(grpc.RpcError, match="needs a deadline"):
            list(call(request.SerializeToString()))


def test_large_files_come_in_pieces_that_the_router_lets_through(tmp_path: Path) -> None:
    release = release_into(tmp_path, 1)
    registry_in(tmp_path).publish(release.release_id)
    content = bytes(range(256)) * 10_000
    (tmp_path / release.release_id / "model.safetensors").write_bytes(content)
    with release_server(tmp_path) as address:
        source = GrpcReleases(lambda: grpc.insecure_channel(address))
        pieces = list(source.fetch(release.release_id, "model.safetensors", 7))
    assert [total for total, _ in pieces] == [len(content)] * 3
    assert b"".join(piece for _, piece in pieces) == content[7:]


def test_a_site_that_reads_slowly_keeps_nobody_else_from_downloading(tmp_path: Path) -> None:
    release_id = registry_in(tmp_path).publish(release_into(tmp_path, 1).release_id).release_id
    with (tmp_path / release_id / "model.safetensors").open("r+b") as file:
        file.truncate(64 << 20)  # more than a connection holds
    names = iter(["slow"] * 3 + ["quick"])
    with release_server(tmp_path, lambda _: next(names)) as address, ExitStack() as opened:

        def begun() -> object:
            channel = opened.enter_context(grpc.insecure_channel(address))
            call = channel.unary_stream(f"/{SERVICE}/{FETCH_METHOD}")
            asked = FetchRequest(release_id=release_id, file="model.safetensors", offset=0)
            return next(call(asked.SerializeToString(), timeout=60))

        assert begun()
        assert begun()
        with pytest.raises(grpc.RpcError, match="too many downloads"):
            begun()
        assert begun()


def test_before_the_first_release_there_is_nothing(tmp_path: Path) -> None:
    with release_server(tmp_path) as address:
        assert GrpcReleases(lambda: grpc.insecure_channel(address)).current() == b""


def test_mutual_tls_and_who_may_ask(releases: Path, tmp_path: Path) -> None:
    ours, foreign = Consortium(tmp_path / "ours"), Consortium(tmp_path / "foreign")
    router = ours.server("router")
    admitted: list[str] = []

    def admit(connection: dict[str, list[bytes]]) -> str:
        (certificate,) = connection["x509_pem_cert"]
        peer = peer_of(certificate)
        if (peer.consortium, peer.role) != (NAME, "site"):
            raise CertificateError(f"the {peer.role} {peer.name!r} may not fetch releases")
        admitted.append(peer.name)
        return str(peer.name)

    credentials = grpc.ssl_server_credentials(
        [(router.key.read_bytes(), router.certificate.read_bytes())],
        root_certificates=ours.ca.read_bytes(),
        require_client_auth=True,
    )

    def source_of(shown: Credentials, address: str) -> GrpcReleases:
        network = NetworkSettings(
            superlink=address,
            router=address,
            ca=ours.ca,
            certificate=shown.certificate,
            key=shown.key,
            identity=shown.key,
            supernode_key=shown.key,
        )
        return GrpcReleases(lambda: open_channel(network))

    with release_server(releases, admit, credentials) as address:
        site = source_of(ours.site("hospital-a"), address)
        assert site.current() == read_current(releases)
        assert admitted == ["hospital-a"]
        assert list(site.fetch(current_id(releases), "manifest.json", 0))
        with pytest.raises(ProtocolError, match="permission_denied: the coordinator"):
            source_of(ours.issue("coordinator", "c"), address).current()
        for stranger in (foreign.site("hospital-a"), ours.site("late", expired=True)):
            with pytest.raises(ProtocolError, match="unavailable"):
                source_of(stranger, address).current()
        plain = GrpcReleases(lambda: grpc.insecure_channel(address))
        with pytest.raises(ProtocolError):
            plain.current()
    assert set(admitted) == {"hospital-a"}


class Changed:
    """A source that changes what the files of a folder hold."""

    def __init__(self, releases: Path, change: Callable[[str, bytes], bytes]) -> None:
        self.releases, self.change, self.offsets = releases, change, []

    def current(self) -> bytes:
        raise AssertionError("nobody asks")

    def fetch(self, release_id: str, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
        self.offsets.append((file, offset))
        content = self.change(file, (self.releases / release_id / file).read_bytes())
        for start in range(offset, max(len(content), offset + 1), 1000):
            yield len(content), content[start : start + 1000]


def test_what_does_not_have_its_hash_is_thrown_away_and_fetched_again(
    releases: Path, tmp_path: Path
) -> None:
    wanted = current_id(releases)
    (other,) = {path.name for path in releases.iterdir() if len(path.name) == 64} - {wanted}
    manifest = (releases / other / "manifest.json").read_bytes()
    for change, message in (
        (lambda file, content: manifest, "is that of"),
        (lambda file, content: b"{}", "damaged or was altered"),
        (
            lambda file, content: content[:-1] + b"x" if file.endswith("tensors") else content,
            "another SHA-256",
        ),
    ):
        with pytest.raises(ReleaseError, match=message):
            fetch_release(Changed(releases, change), tmp_path, wanted, BOUND)
        assert not (tmp_path / wanted).exists()
    honest = Changed(releases, lambda file, content: content)
    assert fetch_release(honest, tmp_path, wanted, BOUND).release_id == wanted


def test_a_broken_download_goes_on_where_it_was(releases: Path, tmp_path: Path) -> None:
    wanted = current_id(releases)
    size = (releases / wanted / "model.safetensors").stat().st_size

    class Cut(Changed):
        def fetch(self, release_id: str, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
            for count, piece in enumerate(super().fetch(release_id, file, offset)):
                if file == "model.safetensors" and count == 2:
                    raise ProtocolError("the line is cut")
                yield piece

    source = Cut(releases, lambda file, content: content)
    attempts = 0
    while not (tmp_path / wanted).exists():
        attempts += 1
        try:
            fetch_release(source, tmp_path, wanted, BOUND)
        except ProtocolError:
            assert attempts < 100
    offsets = [offset for file, offset in source.offsets if file == "model.safetensors"]
    assert offsets == list(range(0, size, 2000))[: len(offsets)]
    assert len(offsets) > 1
    assert [file for file, _ in source.offsets].count("manifest.json") == 1
    assert load_release(tmp_path / wanted).release_id == wanted


def test_sizes_are_bounded_whatever_is_announced(releases: Path, tmp_path: Path) -> None:
    wanted = current_id(releases)

    class Endless(Changed):
        def fetch(self, release_id: str, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
            while True:
                yield self.size, b"x" * 1000

        size = 5000

    endless = Endless(releases, lambda file, content: content)
    with pytest.raises(ReleaseError, match="longer than announced"):
        fetch_release(endless, tmp_path, wanted, BOUND)
    endless.size = BOUND + 1
    with pytest.raises(ReleaseError, match="raise it in site"):
        fetch_release(endless, tmp_path, wanted, BOUND)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0

    class Nothing(Changed):
        def fetch(self, release_id: str, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
            return iter(())

    class Idle(Changed):
        def fetch(self, release_id: str, file: str, offset: int) -> Iterator[tuple[int, bytes]]:
            while True:
                yield 5000, b""

    with pytest.raises(ReleaseError, match="empty piece"):
        fetch_release(Idle(releases, lambda f, c: c), tmp_path, wanted, BOUND)
    with pytest.raises(ReleaseError, match="broke off after 0 bytes"):
        fetch_release(Nothing(releases, lambda f, c: c), tmp_path, wanted, BOUND)


def test_a_release_that_somebody_brought_is_copied(releases: Path, tmp_path: Path) -> None:
    wanted = current_id(releases)
    brought = tmp_path / "brought"
    shutil.copytree(releases / wanted, brought)
    (brought / "notes").symlink_to("/dev/zero")
    assert install_release(brought, tmp_path).release_id == wanted
    assert not (tmp_path / wanted / "notes").is_symlink()
    assert not (tmp_path / wanted / "notes").exists()
    assert install_release(releases / wanted, tmp_path).release_id == wanted
    (tmp_path / ("cd" * 32)).mkdir()
    for path in (releases / wanted).iterdir():
        (tmp_path / ("cd" * 32) / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ReleaseError, match="remove the folder"):
        fetch_release(Changed(releases, lambda f, c: c), tmp_path, "cd" * 32, BOUND)


def test_the_handler_serves_one_service_only(releases: Path) -> None:
    handler = release_handler(releases, lambda connection: "a")
    assert handler.service_name() == SERVICE


def test_the_router_gives_its_folders_releases_to_enrolled_sites(tmp_path: Path) -> None:
    place = Place(tmp_path)
    folder = place.folder.path / "releases"
    release = release_into(folder, 1)
    registry_in(folder).publish(release.release_id)
    with RouterThread(place.folder) as router:
        site, other = (place.network(name, router.port) for name in list(place.agreement.sites)[:2])
        source = GrpcReleases(lambda: open_channel(site))
        assert source.current() == read_current(folder)
        fetched = fetch_release(source, tmp_path / "fetched", release.release_id, BOUND)
        assert fetched.release_id == release.release_id
        shutil.rmtree(place.folder.sites / other.certificate.parent.name)
        router.server.members._checked = -10.0  # as a second later
        with pytest.raises(ProtocolError, match="permission_denied"):
            GrpcReleases(lambda: open_channel(other)).current()
