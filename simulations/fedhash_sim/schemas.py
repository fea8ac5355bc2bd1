"""Writes the JSON Schemas of all configuration files: `python -m fedhash_sim.schemas [FOLDER]`.

Editors complete and check a file that names its schema on the first line. A test holds the
committed schemas against the settings classes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedhash.agreement import Agreement
from fedhash.configuration import Settings
from fedhash.configuration.schemas import write_schemas
from fedhash.rounds.settings import RoundSettings
from fedhash_client.settings import SiteSettings
from fedhash_server.coordinator_settings import CoordinatorSettings
from fedhash_server.settings import RunSettings
from fedhash_sim.settings import StudySettings
from fedhash_sim.sweeps.settings import SweepSettings

__all__ = ["CONFIGURATION_KINDS"]

CONFIGURATION_KINDS: dict[str, type[Settings]] = {
    "agreement": Agreement,
    "coordinator": CoordinatorSettings,
    "round": RoundSettings,
    "run": RunSettings,
    "site": SiteSettings,
    "study": StudySettings,
    "sweep": SweepSettings,
}

if __name__ == "__main__":
    write_schemas(Path(*sys.argv[1:] or ("configs/schemas",)), CONFIGURATION_KINDS)
