"""The daemon inside this process: pages, log, commands, and how it starts a SuperNode."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from daemon_process import free_port
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st
from site_folder import make_site
from small_federation import AGREEMENT
from typer.testing import CliRunner

from fedhash.configuration import read_settings
from fedhash.errors import ConfigurationError, DataError, ModelError
from fedhash_client.cli import app
from fedhash_client.daemon.assembly import site_daemon
from fedhash_client.daemon.logs import start_logging
from fedhash_client.daemon.supernode import _node_config
from fedhash_client.daemon.supervised import Supervised
from fedhash_client.settings import SiteSettings
from fedhash_process.service import Status


@pytest.fixture
def untouched() -> Iterator[None]:
    """Puts back what a daemon sets for its whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    mask = os.umask(0o022)
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)
    os.umask(mask)
    for number, handler in signals.items():
        signal.signal(number, handler)


def lone_site(folder: Path) -> Path:
    return make_site(
        folder,
        "site-0",
        AGREEMENT,
        network=None,
        training={"aggregations": ["plain"]},
        daemon={"health_port": free_port(), "supernode_port": free_port()},
    )


class Ailing:
    name = "ailing"
    stopped = False

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        self.stopped = True
        raise RuntimeError("it does not stop either")

    def status(self) -> Status:
        return {"healthy": False, "queries": 3}


def page(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_service_that_ails_is_told_everywhere_and_keeps_nobody_from_stopping(
    tmp_path: Path, untouched: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_file = lone_site(tmp_path)
    daemon = site_daemon(site_file)
    ailing = Ailing()
    daemon.add(ailing)
    daemon.control.register("twice", lambda arguments: 2 * arguments["number"])
    port = read_settings(site_file, SiteSettings).daemon.health_port
    found: dict[str, Any] = {}

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")

        def look() -> None:
            try:
                found["ready"] = manager.recv(1000)
                found["health"], found["metrics"] = page(port, "/health"), page(port, "/metrics")
                found["elsewhere"] = page(port, "/etc/passwd")[0]
                found["status"] = CliRunner().invoke(app, ["status", str(site_file)])
                found["json"] = CliRunner().invoke(app, ["status", str(site_file), "--json"])
                found["beat"] = manager.recv(1000)
            finally:
                daemon.stop()

        looking = threading.Thread(target=look)
        looking.start()
        daemon.run()
        looking.join()
    assert found["ready"] == b"READY=1\nSTATUS=serving"
    assert found["beat"] == b"WATCHDOG=1\nSTATUS=ailing: ailing"
    assert found["health"][0] == 503
    assert json.loads(found["health"][1])["services"]["ailing"] is False
    assert 'fedhash_service{fact="queries",service="ailing"} 3.0' in found["metrics"][1]
    assert found["elsewhere"] == 404
    assert (found["status"].exit_code, found["json"].exit_code) == (1, 1)
    assert "service ailing: healthy False, queries 3" in found["status"].stdout
    assert json.loads(found["json"].stdout)["services"]["relay"]["healthy"] is True
    assert ailing.stopped
    assert not (tmp_path / "state" / "site.sock").exists()


def test_run_ends_with_what_is_wrong(tmp_path: Path) -> None:
    site_file = lone_site(tmp_path)
    content = yaml.safe_load(site_file.read_text())
    del content["state"]
    site_file.write_text(yaml.safe_dump(content))
    for command in ("run", "status"):
        ended = CliRunner().invoke(app, [command, str(site_file)])
        assert (ended.exit_code, "add state: state" in ended.stderr) == (1, True)


def test_a_state_folder_that_others_may_open_is_refused(tmp_path: Path) -> None:
    site_file = lone_site(tmp_path)
    (tmp_path / "state").chmod(0o755)
    ended = CliRunner().invoke(app, ["run", str(site_file)])
    assert (ended.exit_code, "chmod 700" in ended.stderr) == (1, True)


def test_without_a_daemon_status_says_how_to_start_one(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["status", str(lone_site(tmp_path))])
    assert (told.exit_code, "fedhash-site run" in told.stderr) == (1, True)


def test_a_health_port_that_is_taken_is_told_with_the_remedy(
    tmp_path: Path, untouched: None
) -> None:
    site_file = lone_site(tmp_path)
    port = read_settings(site_file, SiteSettings).daemon.health_port
    with socket.create_server(("127.0.0.1", port)):
        ended = CliRunner().invoke(app, ["run", str(site_file)])
    assert (ended.exit_code, "another daemon.health_port" in ended.stderr) == (1, True)


def fail_with(error: Exception) -> NoReturn:
    raise error


def logged(error: Exception) -> dict[str, Any]:
    stream = io.StringIO()
    start_logging("hospital-a", stream)
    try:
        fail_with(error)
    except type(error):
        logging.getLogger("fedhash.test").exception("it\nfailed")
    line, end = stream.getvalue().split("\n")
    assert end == ""
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.parametrize("error", [DataError("patient-9"), KeyError("patient-9"), OSError("/p-9")])
def test_errors_about_data_are_logged_without_their_text(untouched: None, error: Exception) -> None:
    found = logged(error)
    assert (found["site"], found["level"], found["event"]) == ("hospital-a", "error", "it\nfailed")
    assert found["error"][0]["type"] == type(error).__name__
    assert "test_daemon_parts.py" in found["error"][0]["at"][0]
    assert "-9" not in json.dumps(found)


def test_other_errors_of_fedhash_are_logged_with_their_text(untouched: None) -> None:
    error = ModelError("no such tower")
    error.__cause__ = DataError("patient-9")
    found = logged(error)
    assert found["error"][0]["message"] == "no such tower"
    assert "message" not in found["error"][1]


@given(site=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
def test_flower_reads_every_sites_name_as_it_is(site: str) -> None:
    found = parse_config_args([_node_config(site, Path("/var/lib/my site's/state/site.sock"))])
    assert found == {"site": site, "site-socket": "/var/lib/my site's/state/site.sock"}


def test_a_site_of_a_network_starts_a_supernode_that_shows_its_certificate(tmp_path: Path) -> None:
    site_file = make_site(tmp_path, "site-0")
    daemon = site_daemon(site_file)
    service = {each.name: each for each in daemon._services}["supernode"]
    assert isinstance(service, Supervised)
    command = service.child.command
    assert service.child.environment is not None
    assert service.child.environment["PATH"] == str(tmp_path / "state" / "programs")
    assert command[1] == "-I"
    assert "fedhash_client.supernode" in command
    arguments = dict(pairwise(command))
    assert arguments["--site-certificate"] == str(tmp_path / "unused")
    assert arguments["--superlink"] == "127.0.0.1:1"
    assert arguments["--host"] == "127.0.0.1"
    assert service.status()["healthy"] is False


def test_secure_rounds_without_an_identity_are_told_at_once(tmp_path: Path) -> None:
    site_file = make_site(tmp_path, "site-0", network=None)
    with pytest.raises(ConfigurationError, match="add network"):
        site_daemon(site_file)
