"""Where in its state folder a daemon is reached; read by commands that start quickly."""

from __future__ import annotations

from pathlib import Path

from fedhash.configuration import problem_at
from fedhash.errors import ConfigurationError, Problem
from fedhash_client.settings import SiteSettings

__all__ = ["CONTROL_SOCKET", "RELAY_SOCKET", "WITHDRAWN_FILE", "state_folder", "state_folder_of"]

RELAY_SOCKET = "site.sock"
CONTROL_SOCKET = "control.sock"
WITHDRAWN_FILE = "withdrawn.sqlite"


def state_folder_of(site_file: Path, settings: SiteSettings) -> Path:
    """The state folder that a site's file names.

    Raises:
        ConfigurationError: It names none.
    """
    if settings.state is None:
        message = "the daemon needs a folder for what it keeps; add state: state"
        raise ConfigurationError([problem_at(site_file, (), message)])
    return state_folder(settings)


def state_folder(settings: SiteSettings) -> Path:
    """Where the site keeps what must outlast everything else; beside the archive by default.

    Raises:
        ConfigurationError: The file names a folder, and who withdrew before it did stands in the
            other: that list would be lost.
    """
    beside = settings.archive.parent
    if settings.state is None:
        return beside
    if settings.state.resolve() == beside.resolve():
        return settings.state
    left = beside / WITHDRAWN_FILE
    if left.exists():
        message = (
            f"patients withdrew before state: {settings.state} was set, and this list of them "
            "would no longer be read; stop all that runs here and move it there. If there is one "
            "already, withdraw these patients again, and remove this one"
        )
        raise ConfigurationError([Problem(left, None, message)])
    return settings.state
