"""In which order the daemon's services start and stop: nobody is answered by half of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from daemon_process import free_port
from site_folder import make_site
from small_federation import AGREEMENT

from fedhash.errors import ProtocolError
from fedhash_client.daemon import site_daemon as module
from fedhash_client.daemon.control import ask_daemon
from fedhash_client.daemon.paths import CONTROL_SOCKET
from fedhash_client.daemon.site_daemon import SiteDaemon
from fedhash_process.service import Status


class Looks:
    """A service that looks, at its start and at its end, whether the daemon answers commands."""

    name = "looks"

    def __init__(self, daemon: SiteDaemon) -> None:
        self._daemon = daemon
        self.answered: list[bool] = []

    def look(self) -> None:
        try:
            ask_daemon(self._daemon.state_folder / CONTROL_SOCKET, "status", timeout_s=20)
        except ProtocolError:
            self.answered.append(False)
        else:
            self.answered.append(True)

    def start(self) -> None:
        self.look()

    def stop(self) -> None:
        self.look()

    def status(self) -> Status:
        return {"healthy": True}


def test_commands_are_answered_while_all_services_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)  # they are those of pytest
    monkeypatch.setattr(module, "start_logging", lambda *_: None)
    monkeypatch.setattr(module.os, "umask", lambda _: 0)
    ports = {"health_port": free_port(), "supernode_port": free_port()}
    site = make_site(
        tmp_path,
        "site-0",
        AGREEMENT,
        training={"aggregations": ["plain"]},
        daemon=ports,
        network=None,
    )
    daemon = SiteDaemon(site)
    looks = Looks(daemon)
    daemon.add(looks)
    monkeypatch.setattr(
        module, "notify", lambda text, *_: text == "READY=1" and (looks.look(), daemon.stop())
    )
    daemon.run()
    assert looks.answered == [False, True, False]
