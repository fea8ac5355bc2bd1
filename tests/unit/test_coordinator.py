"""The coordinator's servers: what keeps them from starting is told first; the roster is kept."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from datetime import UTC, datetime
from fcntl import LOCK_EX, flock
from pathlib import Path
from types import SimpleNamespace

import pytest
from consortium_certificates import Consortium
from typer.testing import CliRunner

from fedhash.errors import CertificateError, ConfigurationError, ProtocolError
from fedhash_client.cli import app as site_app
from fedhash_client.site_unit import site_unit
from fedhash_server import coordinator, coordinator_status
from fedhash_server.cli import app as coordinator_app
from fedhash_server.coordinator import children_of, run_coordinator
from fedhash_server.coordinator_folder import CoordinatorFolder, make_coordinator_folder
from fedhash_server.coordinator_status import read_status
from fedhash_server.coordinator_unit import coordinator_unit
from fedhash_server.gateway import nginx_configuration
from fedhash_server.ports import check_port_free, serves_health, serves_tls
from fedhash_server.superlink import NodeChanges

ROOT = Path(__file__).parents[2]


def never() -> bool:
    pytest.fail("the servers were started")


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    place = CoordinatorFolder(tmp_path / "thorax")
    make_coordinator_folder(place, "thorax", ["localhost"])
    nginx = tmp_path / "nginx"  # stands in where nginx is not installed
    nginx.write_text("#!/bin/sh\nexit 0\n")
    nginx.chmod(0o755)
    ports = []
    with socket.socket() as a, socket.socket() as b, socket.socket() as c, socket.socket() as d:
        for each in (a, b, c, d):
            each.bind(("127.0.0.1", 0))
            ports.append(each.getsockname()[1])
    place.settings_file.write_text(
        f"consortium: thorax\nhost: localhost\nnginx: {nginx}\n"
        f"gateway: {{listen: 127.0.0.1, port: {ports[0]}}}\n"
        f"router: {{listen: 127.0.0.1, port: {ports[1]}, health_port: {ports[2]}}}\n"
        f"superlink: {{port: {ports[3]}}}\n"
    )
    return place


def test_a_missing_nginx_is_told_with_its_remedy(folder: CoordinatorFolder) -> None:
    text = folder.settings_file.read_text()
    folder.settings_file.write_text(text.replace("nginx: /", "nginx: /nowhere/"))
    with pytest.raises(ProtocolError, match="apt-get install nginx-light"):
        run_coordinator(folder, never)


@pytest.mark.parametrize("name", ["gateway", "router", "superlink"])
def test_a_port_that_is_taken_is_told_with_its_remedy(folder: CoordinatorFolder, name: str) -> None:
    port = getattr(folder.settings(), name).port
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(ProtocolError, match=rf"the {name} cannot listen.*sport = :{port}"),
    ):
        run_coordinator(folder, never)
    check_port_free(name, "127.0.0.1", port)


def test_one_process_runs_a_folder(folder: CoordinatorFolder) -> None:
    with (folder.state / "run.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        with pytest.raises(ProtocolError, match="run by another process"):
            run_coordinator(folder, never)


def test_a_configuration_that_nginx_refuses_is_told(folder: CoordinatorFolder) -> None:
    nginx = Path(folder.settings().nginx)
    nginx.write_text("#!/bin/sh\necho 'unknown directive' >&2\nexit 1\n")
    with pytest.raises(ProtocolError, match=r"nginx refuses .*nginx\.conf: unknown directive"):
        run_coordinator(folder, never)


def test_an_expired_certificate_of_a_server_is_told(folder: CoordinatorFolder) -> None:
    consortium = Consortium(folder.path / "peers")
    consortium.authority = folder.authority()
    expired = consortium.issue("router", "router", expired=True)
    folder.certificate("router").write_bytes(expired.certificate.read_bytes())
    with pytest.raises(CertificateError, match="certificate of the router router expired"):
        run_coordinator(folder, never)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gateway: {port: 9444}", "1: one port for gateway.port and router.port"),
        ("gateway: {listen: example.org}", "3: .*no IP address"),
        ("router: {port: 70000}", "3: .*router.port"),
        ("superlink: {listen: 0.0.0.0}", "3: .*listen"),
    ],
)
def test_settings_that_cannot_work_are_told(
    folder: CoordinatorFolder, text: str, message: str
) -> None:
    folder.settings_file.write_text(f"consortium: thorax\nhost: localhost\n{text}\n")
    with pytest.raises(ConfigurationError, match=rf"coordinator\.yaml:{message}"):
        folder.settings()


def test_nginx_is_not_told_a_name_that_it_would_misread(tmp_path: Path) -> None:
    place = CoordinatorFolder(tmp_path / 'a"; include /etc/passwd; #')
    make_coordinator_folder(place, "thorax", ["localhost"])
    with pytest.raises(CertificateError, match="nginx cannot be told the name"):
        nginx_configuration(place, place.settings(), {})


class Flower:
    """A SuperLink that notes which sites it was told of."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []

    def __call__(self, *_: object) -> Flower:
        return self

    def __enter__(self) -> Flower:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def keep_nodes(self, roster: dict[str, object]) -> NodeChanges:
        self.told.append(list(roster))
        return NodeChanges(registered=tuple(roster), refused=("b",) if "b" in roster else ())

    def nodes(self) -> dict[str, str]:
        return {"a": "online"}


def test_the_roster_reaches_superlink_and_gateway(
    folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    flower, signals = Flower(), []
    monkeypatch.setattr(coordinator, "SuperLink", flower)
    keeper = coordinator._Keeper(folder, folder.settings(), [])
    status = SimpleNamespace(well=False, starts=1)
    keeper._supervisor = SimpleNamespace(  # type: ignore[assignment]
        status=lambda: {"superlink": status}, signal=lambda *each: signals.append(each)
    )
    keeper.start()
    consortium = Consortium(folder.path / "peers")
    consortium.authority = folder.authority()
    for site in "ab":
        consortium.enrol(site, folder.path)
        (folder.sites / site / "supernode.pub").write_text("key\n")
    keeper._keep_roster()
    assert flower.told == []
    assert not keeper._keys_are_known(), "the gateway stays closed"
    status.well = True
    keeper._keep_roster()
    keeper._keep_roster()
    assert flower.told == [["a", "b"]]
    assert keeper._keys_are_known()
    assert len(signals) == 1
    assert "have b delete" in caplog.text
    assert folder.nginx_file.read_text().count('" 1; #') == 2
    status.starts = 2  # a SuperLink that was started again is told again
    keeper._keep_roster()
    assert len(flower.told) == 2
    shutil.rmtree(folder.sites / "b")
    status.well = False
    keeper._keep_roster()
    assert len(signals) == 2, "whoever was struck off is out though the SuperLink is down"
    assert folder.nginx_file.read_text().count('" 1; #') == 1


def test_status_tells_what_needs_a_person(
    folder: CoordinatorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_status, "SuperLink", Flower())
    consortium = Consortium(folder.path / "peers")
    consortium.authority = folder.authority()
    consortium.enrol("a", folder.path)
    (folder.sites / "a" / "supernode.pub").write_text("key\n")
    result = CliRunner().invoke(coordinator_app, ["status", str(folder.path), "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["servers"]["gateway"] == {"pid": None, "starts": 0, "well": False}
    assert "nothing runs this folder; start 'fedhash-coordinator run'" in found["warnings"]
    assert any("certificate of the site a ends on" in each for each in found["warnings"])
    shown = CliRunner().invoke(coordinator_app, ["status", str(folder.path)])
    assert shown.exit_code == 1
    assert "the gateway does not serve" in shown.stderr
    coordinator.children_file(folder).write_text(
        json.dumps({"pid": 1, "children": {"gateway": {"pid": 2, "starts": 3}}, "fault": "oh"})
    )
    serving = [SimpleNamespace(name=name, probe=lambda: True) for name in ("superlink", "gateway")]
    monkeypatch.setattr(coordinator_status, "children_of", lambda *_: serving)
    found = read_status(folder, datetime(2026, 1, 1, tzinfo=UTC))
    assert found["sites"]["a"]["node"] == "online"
    assert found["servers"]["gateway"] == {"pid": 2, "starts": 3, "well": True}
    assert "the roster cannot be kept: oh" in found["warnings"]


def test_children_are_probed_where_they_listen(folder: CoordinatorFolder) -> None:
    children = {child.name: child for child in children_of(folder, folder.settings())}
    assert list(children) == ["superlink", "gateway", "router"]
    assert not any(child.probe() for child in children.values())
    assert "127.0.0.1" in children["superlink"].command
    assert children["superlink"].environment["FLWR_TELEMETRY_ENABLED"] == "0"


def test_what_only_accepts_connections_does_not_serve(folder: CoordinatorFolder) -> None:
    """A process with a dead main thread: the kernel accepts, nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedhash_server.ports._TIMEOUT_S", 0.2)
        port = deaf.getsockname()[1]
        assert not serves_tls("0.0.0.0", port, folder.ca)  # noqa: S104 - it is asked, not opened
        assert not serves_health(port)


def test_the_committed_units_are_those_that_the_commands_print() -> None:
    place, bin_folder = Path("/srv/fedhash"), "/opt/fedhash/bin"
    units = {
        ROOT / "server" / "deploy" / "fedhash-coordinator.service": coordinator_unit(
            place, f"{bin_folder}/fedhash-coordinator", "fedhash"
        ),
        ROOT / "client" / "deploy" / "fedhash-site.service": site_unit(
            place, f"{bin_folder}/fedhash-site", "fedhash"
        ),
    }
    for path, text in units.items():
        assert path.read_text() == text
    told_by = {path.name: "\nWatchdogSec=" in text for path, text in units.items()}
    assert told_by == {"fedhash-coordinator.service": False, "fedhash-site.service": True}, (
        "the site's daemon alone tells that it lives"
    )
    for app in (site_app, coordinator_app):
        result = CliRunner().invoke(app, ["unit", "/srv/x", "--user", "anna"])
        assert "\nUser=anna\n" in result.stdout
        assert "\nReadWritePaths=/srv/x\n" in result.stdout
        for user in ("", "a b", "root\nExecStartPre=/bin/true"):
            result = CliRunner().invoke(app, ["unit", "/srv/x", "--user", user])
            assert (result.exit_code, result.stdout) == (1, "")
    assert CliRunner().invoke(site_app, ["unit", "/srv/a b"]).exit_code == 1


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize(
    "path", ["server/deploy/fedhash-coordinator", "client/deploy/fedhash-site"]
)
def test_the_units_are_hardened(path: str, tmp_path: Path) -> None:
    unit = ROOT / f"{path}.service"
    here = tmp_path / unit.name  # systemd looks for the program
    here.write_text(unit.read_text().replace("/opt/fedhash/bin/fedhash-", "/bin/true fedhash-"))
    program = str(shutil.which("systemd-analyze"))
    verified = subprocess.run(
        [program, "verify", here], check=False, capture_output=True, text=True
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    security = ["security", "--offline=true", "--threshold=20", here]
    graded = subprocess.run([program, *security], check=False, capture_output=True, text=True)
    assert graded.returncode == 0, graded.stdout
