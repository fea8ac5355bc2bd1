"""`fedhash-site check --connect` against a gateway and a router on loopback."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedhash.errors import CertificateError
from tests.checked_site import CheckedSite, free_ports
from tests.consortium_certificates import Consortium
from tests.release_server import release_server


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CheckedSite:
    return CheckedSite.make(tmp_path_factory.mktemp("sound"))


@contextmanager
def gateway(consortium: Consortium, *, ahead_s: float = 0, status: int = 404) -> Iterator[str]:
    """Answers every path as nginx answers an unknown one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            there = datetime.now(UTC) + timedelta(seconds=ahead_s)
            self.send_header("Date", format_datetime(there, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

    class Server(HTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A peer that ends the handshake is what some of these tests are about."""

    shown = consortium.server("gateway")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown.certificate, shown.key)
    context.load_verify_locations(consortium.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def router(consortium: Consortium, folder: Path, *, enrolled: bool = True) -> Iterator[str]:
    def admit(_: object) -> None:
        if not enrolled:
            raise CertificateError("this certificate is not enrolled")

    shown = consortium.server("router")
    credentials = grpc.ssl_server_credentials(
        [(shown.key.read_bytes(), shown.certificate.read_bytes())],
        consortium.ca.read_bytes(),
        require_client_auth=True,
    )
    with release_server(folder, admit, credentials) as address:
        yield address


def test_a_coordinator_that_answers_is_told_nothing(made: CheckedSite, tmp_path: Path) -> None:
    with gateway(made.consortium) as at, router(made.consortium, tmp_path) as by:
        made.change(network={"superlink": at, "router": by})
        assert made.check("--connect") == []


@pytest.mark.parametrize(("ahead_s", "words"), [(90, "behind"), (-90, "ahead of")])
def test_a_clock_that_is_off(ahead_s: float, words: str, made: CheckedSite, tmp_path: Path) -> None:
    with gateway(made.consortium, ahead_s=ahead_s) as at, router(made.consortium, tmp_path) as by:
        made.change(network={"superlink": at, "router": by})
        (problem,) = made.check("--connect")
    assert f"s {words} the coordinator's" in problem["message"]
    assert "run a time service" in problem["message"]


@pytest.mark.parametrize("ahead_s", [3, -3])
def test_a_clock_within_what_is_tolerated(
    ahead_s: float, made: CheckedSite, tmp_path: Path
) -> None:
    with gateway(made.consortium, ahead_s=ahead_s) as at, router(made.consortium, tmp_path) as by:
        made.change(network={"superlink": at, "router": by})
        assert made.check("--connect") == []


def test_a_certificate_that_neither_door_knows(made: CheckedSite, tmp_path: Path) -> None:
    with (
        gateway(made.consortium, status=403) as at,
        router(made.consortium, tmp_path, enrolled=False) as by,
    ):
        made.change(network={"superlink": at, "router": by})
        first, second = made.check("--connect")
    assert first["line"] == made.line_of("superlink:")
    assert "ask the coordinator to enrol this site" in first["message"]
    assert second["line"] == made.line_of("router:")
    assert "not enrolled" in second["message"]
    assert "ask the coordinator to enrol this site" in second["message"]


def test_nobody_listens(made: CheckedSite) -> None:
    one, two = free_ports(2)
    made.change(network={"superlink": f"127.0.0.1:{one}", "router": f"127.0.0.1:{two}"})
    first, second = made.check("--connect")
    assert "the gateway runs, and that the firewall" in first["message"]
    assert "the router runs, and that the firewall" in second["message"]


def test_a_gateway_of_another_authority(made: CheckedSite, tmp_path: Path) -> None:
    foreign = Consortium(tmp_path / "foreign", "phantom")
    with gateway(foreign) as at, router(made.consortium, tmp_path) as by:
        made.change(network={"superlink": at, "router": by})
        (problem,) = made.check("--connect")
    assert "did not show a certificate of the consortium" in problem["message"]


def test_a_gateway_behind_a_proxy(
    made: CheckedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "")
    with router(made.consortium, tmp_path) as by:
        made.change(network={"superlink": "gateway.hospital:9443", "router": by})
        first, *_ = made.check("--connect")
    assert "gateway.hospital:9443 cannot be reached" in first["message"]
    assert f"by the proxy 127.0.0.1:{port}" in first["message"]
    assert "secret" not in first["message"]


def test_a_name_that_is_not_known(made: CheckedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    made.change(network={"superlink": "gateway.hospital:9443", "router": "router.hospital:9444"})
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    first, second = made.check("--connect")
    assert "gateway.hospital:9443 is not known here" in first["message"]
    assert "router.hospital:9444 is not known here" in second["message"]
