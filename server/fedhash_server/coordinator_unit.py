"""The systemd unit of the coordinator; `server/deploy` has the one of /srv/fedhash.

>>> coordinator_unit(Path("/srv/fedhash"), "/opt/fedhash/bin/fedhash-coordinator", "fedhash")
"""

from __future__ import annotations

from pathlib import Path

from fedhash.systemd_unit import systemd_unit

__all__ = ["UNIT", "coordinator_unit"]

UNIT = "fedhash-coordinator"


def coordinator_unit(folder: Path, program: str, user: str) -> str:
    """The text of fedhash-coordinator.service.

    Raises:
        ConfigurationError: A path has a character that a unit cannot be told simply.
    """
    description = "fedhash coordinator: gateway, SuperLink and query router"
    return systemd_unit(UNIT, description, [program, "run", str(folder)], folder, user)
