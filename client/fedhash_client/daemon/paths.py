"""Where in its state folder a daemon is reached; read by commands that start quickly."""

from __future__ import annotations

from pathlib import Path

from fedhash.configuration import problem_at
from fedhash.errors import ConfigurationError
from fedhash_client.settings import SiteSettings

__all__ = ["CONTROL_SOCKET", "RELAY_SOCKET", "state_folder_of"]

RELAY_SOCKET = "site.sock"
CONTROL_SOCKET = "control.sock"


def state_folder_of(site_file: Path, settings: SiteSettings) -> Path:
    """The state folder that a site's file names.

    Raises:
        ConfigurationError: It names none.
    """
    if settings.state is None:
        message = "the daemon needs a folder for what it keeps; add state: state"
        raise ConfigurationError([problem_at(site_file, (), message)])
    return settings.state
