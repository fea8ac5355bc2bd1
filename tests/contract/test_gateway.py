"""What a caller at the gateway's port gets, through a real nginx: sites their ten paths, all else
nothing. A server that notes paths stands in for the SuperLink.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from consortium_certificates import Consortium, Credentials
from hypothesis import given, settings
from hypothesis import strategies as st
from test_flower_network import free_port

from fedhash.enrolment import Role
from fedhash_server.coordinator import children_of
from fedhash_server.coordinator_folder import CoordinatorFolder, make_coordinator_folder
from fedhash_server.gateway import FLEET_METHODS, nginx_configuration
from fedhash_server.ports import serves_tls
from fedhash_server.roster import read_roster

pytestmark = pytest.mark.skipif(
    shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None,
    reason="nginx is not installed: apt-get install nginx-light",
)
PATHS = {f"/v1/fleet/{method}" for method in FLEET_METHODS}


@dataclass
class Gateway:
    """A running gateway, whoever may call it, and what came through."""

    folder: CoordinatorFolder
    port: int
    nginx: subprocess.Popen[bytes]
    upstream: ThreadingHTTPServer
    consortium: Consortium
    site: Credentials
    reached: list[str] = field(default_factory=list)

    def configure(self) -> None:
        text = nginx_configuration(self.folder, self.folder.settings(), read_roster(self.folder))
        self.folder.nginx_file.write_text(text)

    def connect(self, client: Credentials | None) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(self.folder.ca))
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        return http.client.HTTPSConnection("localhost", self.port, timeout=20, context=context)

    def post(self, client: Credentials | None, path: str, body: bytes = b"x") -> int | None:
        """The status of the answer, or None for no answer at all."""
        with closing(self.connect(client)) as connection:
            try:
                connection.request("POST", path, body)
                return connection.getresponse().status
            except (OSError, http.client.HTTPException):
                return None


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    tmp_path = tmp_path_factory.mktemp("gateway")
    folder = CoordinatorFolder(tmp_path / "thorax it's")  # a name that needs quoting
    make_coordinator_folder(folder, "thorax", ["localhost"])
    consortium = Consortium(tmp_path / "peers")
    consortium.authority, consortium.ca = folder.authority(), folder.ca
    site = enrolled(consortium, folder, "hospital-a")
    enrolled(consortium, folder, "hospital-b")
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = free_port()
    folder.settings_file.write_text(
        f"consortium: thorax\nhost: localhost\ngateway: {{listen: 127.0.0.1, port: {port}}}\n"
        f"superlink: {{port: {upstream.server_port}}}\n"
    )
    command = children_of(folder, folder.settings())[1].command
    (folder.state / "nginx").mkdir()
    with upstream:
        started = Gateway(folder, port, None, upstream, consortium, site)  # type: ignore[arg-type]
        serve(upstream, started.reached, folder.certificate("superlink"), folder.key("superlink"))
        started.configure()
        with subprocess.Popen(command) as started.nginx:
            wait_until(lambda: serves_tls("127.0.0.1", port, folder.ca))
            yield started
            started.nginx.terminate()
        upstream.shutdown()


def enrolled(consortium: Consortium, folder: CoordinatorFolder, name: str) -> Credentials:
    credentials = consortium.enrol(name, folder.path)
    (folder.sites / name / "supernode.pub").write_text("ecdsa-sha2-nistp384 AAAA\n")
    return credentials


def serve(server: ThreadingHTTPServer, reached: list[str], certificate: Path, key: Path) -> None:
    class Noting(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            reached.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET = do_PUT = answer  # noqa: N815 - the names of http.server

        def log_message(self, *_: object) -> None:
            pass

    server.RequestHandlerClass = Noting
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def wait_until(happened: object) -> None:
    deadline = time.monotonic() + 60
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_site_reaches_ten_paths(gateway: Gateway) -> None:
    del gateway.reached[:]
    assert {gateway.post(gateway.site, path) for path in PATHS} == {200}
    assert set(gateway.reached) == PATHS


@pytest.mark.parametrize("who", ["nobody", "foreign", "foreign-name", "expired", "router"])
def test_a_caller_without_a_good_certificate_gets_no_answer(
    gateway: Gateway, tmp_path: Path, who: str
) -> None:
    clients = {
        "nobody": lambda: None,
        "foreign": lambda: Consortium(tmp_path).site("hospital-a"),
        "foreign-name": lambda: Consortium(tmp_path, "abdomen").site("hospital-a"),
        "expired": lambda: gateway.consortium.site("hospital-a", expired=True),
        "router": lambda: gateway.consortium.server("router"),
    }
    del gateway.reached[:]
    assert gateway.post(clients[who](), "/v1/fleet/pull-messages") is None
    assert gateway.reached == []


@pytest.mark.parametrize(("role", "name"), [("coordinator", "anna"), ("site", "hospital-a")])
def test_a_good_certificate_that_is_not_an_enrolled_site_s_is_refused(
    gateway: Gateway, role: Role, name: str
) -> None:
    """Another role, and a second certificate of a site that is enrolled with its first."""
    del gateway.reached[:]
    other = gateway.consortium.issue(role, name)
    assert gateway.post(other, "/v1/fleet/pull-messages") == 403
    assert gateway.reached == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/",
        "/v1/fleet/pull-messages/",
        "/V1/fleet/pull-messages",
        "/v1/fleet/pull-messages;x",
        "/v1/fleet/pull-messages%00",
        "//v1/control/list-runs",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/v1/fleet/pull-messages/%2e%2e/%2e%2e/control/list-runs",
        "/v1/fleet/pull-messages/..%5c..%5ccontrol/list-runs",
        "https://localhost/v1/control/list-runs",
    ],
)
def test_control_and_runtime_are_out_of_a_site_s_reach(gateway: Gateway, path: str) -> None:
    del gateway.reached[:]
    assert gateway.post(gateway.site, path) in {400, 404, None}
    assert gateway.reached == []


WORDS = "v1 fleet control runtime pull-messages list-runs acquire-task"
TRICKS = ["..", ".", "", "%2e%2e", "%2F", "%2e", "..%2f", "%5c", "?", "#", "%00", "\\", "@x", ":80"]
SEGMENTS = st.sampled_from(WORDS.split()) | st.sampled_from(TRICKS)


@settings(max_examples=150)
@given(st.lists(SEGMENTS, max_size=8), st.sampled_from(["/", "//", "/v1/fleet/", "", "*"]))
def test_no_spelling_of_a_path_leads_elsewhere(
    gateway: Gateway, segments: list[str], start: str
) -> None:
    del gateway.reached[:]
    status = gateway.post(gateway.site, (start + "/".join(segments)).replace(" ", "") or "/")
    assert {path.split("?")[0] for path in gateway.reached} <= PATHS
    assert (status == 200) == bool(gateway.reached)


@pytest.mark.parametrize("method", ["GET", "PUT", "CONNECT", "POSTX"])
def test_only_post_is_passed_on(gateway: Gateway, method: str) -> None:
    del gateway.reached[:]
    with closing(gateway.connect(gateway.site)) as connection:
        try:
            connection.request(method, "/v1/fleet/pull-messages")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            status = 0
    assert status != 200
    assert gateway.reached == []


def test_a_request_within_a_request_is_refused(gateway: Gateway) -> None:
    """Two lengths: one server's body would be another's next request."""
    del gateway.reached[:]
    hidden = b"POST /v1/control/list-runs HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with closing(gateway.connect(gateway.site)) as connection:
        connection.putrequest("POST", "/v1/fleet/pull-messages")
        connection.putheader("Content-Length", str(len(hidden) + 5))
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders(b"0\r\n\r\n" + hidden)
        assert connection.getresponse().status == 400
    assert gateway.reached == []


def test_a_body_of_a_chunk_passes_and_a_huge_one_does_not(gateway: Gateway) -> None:
    assert gateway.post(gateway.site, "/v1/fleet/push-object", bytes(5_500_000)) == 200
    assert gateway.post(gateway.site, "/v1/fleet/push-object", bytes((16 << 20) + 1)) in {413, None}


def test_a_site_that_is_struck_off_is_out_after_a_reload(gateway: Gateway) -> None:
    guest = enrolled(gateway.consortium, gateway.folder, "hospital-c")
    gateway.configure()
    gateway.nginx.send_signal(signal.SIGHUP)
    wait_until(lambda: gateway.post(guest, "/v1/fleet/pull-messages") == 200)
    shutil.rmtree(gateway.folder.sites / "hospital-c")
    gateway.configure()
    gateway.nginx.send_signal(signal.SIGHUP)
    wait_until(lambda: gateway.post(guest, "/v1/fleet/pull-messages") == 403)
    assert gateway.post(gateway.site, "/v1/fleet/pull-messages") == 200


def test_who_takes_the_superlink_s_port_gets_no_message(gateway: Gateway, tmp_path: Path) -> None:
    """The gateway verifies its upstream: a site's own certificate is not the SuperLink's."""
    reached: list[str] = []
    impostor = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    with impostor:
        serve(impostor, reached, gateway.site.certificate, gateway.site.key)
        text = gateway.folder.nginx_file.read_text()
        port = gateway.upstream.server_port
        other = text.replace(f"127.0.0.1:{port};", f"127.0.0.1:{impostor.server_port};")
        assert other != text
        gateway.folder.nginx_file.write_text(other)
        gateway.nginx.send_signal(signal.SIGHUP)
        wait_until(lambda: gateway.post(gateway.site, "/v1/fleet/pull-messages") == 502)
        gateway.configure()
        gateway.nginx.send_signal(signal.SIGHUP)
        wait_until(lambda: gateway.post(gateway.site, "/v1/fleet/pull-messages") == 200)
        impostor.shutdown()
    assert reached == []
