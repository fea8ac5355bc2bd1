"""The SuperNode's program shows the site's certificate, to the consortium's gateway alone."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from consortium_certificates import Consortium, Credentials

from fedhash import flower_version
from fedhash.enrolment import peer_of
from fedhash.errors import CertificateError, ConfigurationError, ProtocolError
from fedhash_client.supernode import main, show_certificate, tls_context


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path)


@pytest.fixture
def fleet_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Flower's module of the connection to the SuperLink, as it was before and is afterwards."""
    from flwr.supernode import fleet_http_connection

    monkeypatch.setattr(
        fleet_http_connection, "FleetHttpClient", fleet_http_connection.FleetHttpClient
    )
    return fleet_http_connection


@contextlib.contextmanager
def server(credentials: Credentials, seen: list[bytes]) -> Iterator[int]:
    """A TLS server that asks for a certificate and notes whose it saw."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(credentials.certificate, credentials.key)
    context.load_verify_locations(credentials.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            end, _ = listener.accept()
            end.settimeout(10)
            with (
                contextlib.suppress(ssl.SSLError, ConnectionError),
                context.wrap_socket(end, server_side=True) as connection,
            ):
                connection.recv(1 << 16)
                der = connection.getpeercert(binary_form=True)
                seen.append(ssl.DER_cert_to_PEM_cert(der or b"").encode())
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            end.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def ask(module: object, port: int, ca: bytes) -> None:
    client = module.FleetHttpClient.from_server_address(  # type: ignore[attr-defined]
        f"localhost:{port}", False, ca, interceptors=[]
    )
    with client:
        client._client.post(f"https://localhost:{port}/")


def test_the_gateway_sees_the_site(consortium: Consortium, fleet_client: object) -> None:
    site, seen = consortium.site("hospital-a"), []
    show_certificate(site.certificate, site.key, site.ca)
    with server(consortium.server("gateway"), seen) as port:
        ask(fleet_client, port, b"Flower's own argument is not asked")
    assert peer_of(seen[0]).name == "hospital-a"


def test_a_foreign_gateway_sees_nothing(
    consortium: Consortium, fleet_client: object, tmp_path: Path
) -> None:
    site, seen = consortium.site("hospital-a"), []
    foreign = Consortium(tmp_path / "foreign")
    show_certificate(site.certificate, site.key, site.ca)
    with server(foreign.server("gateway"), seen) as port, pytest.raises(httpx.ConnectError):
        ask(fleet_client, port, foreign.ca.read_bytes())
    assert seen == []


@pytest.mark.parametrize(("insecure", "ca"), [(True, b""), (False, None)])
def test_no_way_round_tls(
    consortium: Consortium, fleet_client: object, insecure: bool, ca: bytes | None
) -> None:
    site = consortium.site("a")
    show_certificate(site.certificate, site.key, site.ca)
    with pytest.raises(CertificateError, match="by TLS"):
        fleet_client.FleetHttpClient.from_server_address(  # type: ignore[attr-defined]
            "localhost:1", insecure, ca, interceptors=[]
        )


@pytest.mark.parametrize("found", ["1.40.9", "1.42.0", "2.0.0", "1.410.0"])
def test_another_flower_is_refused(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    site = consortium.site("a")
    monkeypatch.setattr(flower_version, "version", lambda _: found)
    with pytest.raises(ProtocolError, match=f"Flower {found} is installed"):
        show_certificate(site.certificate, site.key, site.ca)


def test_files_that_do_not_belong_together_are_told(consortium: Consortium) -> None:
    site, other = consortium.site("a"), consortium.site("b")
    with pytest.raises(CertificateError, match="cannot be used together"):
        tls_context(site.certificate, other.key, site.ca)
    site.key.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        tls_context(site.certificate, site.key, site.ca)


def test_the_program_hands_the_rest_to_flower(
    consortium: Consortium, fleet_client: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(sys, "argv", [])
    site, started = consortium.site("a"), []
    arguments = [
        *("--site-certificate", str(site.certificate), "--site-key", str(site.key)),
        *("--root-certificates", str(site.ca), "--superlink", "c:1", "--node-config", "a=1"),
    ]
    with pytest.raises(SystemExit) as ended:
        main(arguments, lambda: started.append(list(sys.argv)))
    assert ended.value.code == 0
    assert started == [
        ["flower-supernode", "--root-certificates", str(site.ca), *arguments[6:]],
    ]
    assert os.environ["NO_PROXY"] == "intranet,127.0.0.1,localhost"


@pytest.mark.parametrize("missing", ["--site-certificate", "--site-key", "--root-certificates"])
def test_the_program_needs_all_three_files(
    consortium: Consortium, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    site = consortium.site("a")
    named = {
        "--site-certificate": site.certificate,
        "--site-key": site.key,
        "--root-certificates": site.ca,
    }
    arguments = [str(part) for item in named.items() if item[0] != missing for part in item]
    with pytest.raises(SystemExit):
        main(arguments, lambda: pytest.fail("it started"))
    assert missing in capsys.readouterr().err
