"""What commands of a site begin with: its files, and the daemon if one runs."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from fedhash.agreement import Agreement
from fedhash.configuration import read_settings
from fedhash_client.daemon.control import ask_daemon
from fedhash_client.daemon.paths import CONTROL_SOCKET
from fedhash_client.daemon.unix_server import LONGEST_PATH_BYTES
from fedhash_client.settings import SiteSettings

__all__ = ["ask_running_daemon", "daemon_runs", "read_site"]


def read_site(site: Path) -> tuple[SiteSettings, Agreement]:
    """The site's file and the agreement that it names.

    Raises:
        ConfigurationError: One of them is wrong.
    """
    settings = read_settings(site, SiteSettings)
    return settings, read_settings(settings.agreement, Agreement)


def ask_running_daemon(settings: SiteSettings, command: str, **arguments: Any) -> Any | None:
    """The running daemon's answer, or None where no daemon runs.

    Raises:
        ProtocolError: A daemon runs, and cannot do it.
    """
    if settings.state is None or not daemon_runs(settings):
        return None
    return ask_daemon(settings.state / CONTROL_SOCKET, command, **arguments)


def daemon_runs(settings: SiteSettings) -> bool:
    """Whether somebody listens on the control socket of the site's state folder."""
    if settings.state is None:
        return False
    path = str(settings.state / CONTROL_SOCKET)
    if len(path.encode()) > LONGEST_PATH_BYTES:
        return False  # no daemon can have made it
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        # none, or that of a killed daemon, or a state that is no folder
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return False
    return True
