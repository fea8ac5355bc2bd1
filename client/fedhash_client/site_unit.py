"""The systemd unit of a site's daemon; `client/deploy` has the one of /srv/fedhash.

>>> site_unit(Path("/srv/fedhash"), "/opt/fedhash/bin/fedhash-site", "fedhash")
"""

from __future__ import annotations

from pathlib import Path

from fedhash.systemd_unit import systemd_unit

__all__ = ["UNIT", "site_unit"]

UNIT = "fedhash-site"
_WATCHDOG_S = 60  # the daemon tells each five seconds that its sockets are served


def site_unit(folder: Path, program: str, user: str) -> str:
    """The text of fedhash-site.service.

    Raises:
        ConfigurationError: A path has a character that a unit cannot be told simply.
    """
    command = [program, "run", str(folder / "site.yaml")]
    about = "fedhash site: training, index and answers"
    return systemd_unit(UNIT, about, command, folder, user, watchdog_s=_WATCHDOG_S)
