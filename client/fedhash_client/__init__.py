"""A site's programs: the relay that Flower starts, and the command line.

Importing this package switches off what Flower would otherwise do by itself: report usage, look
for updates and install an app's dependencies. A hospital's network shall see no such connection,
so the switches are set here, before any module of this package imports Flower.
"""

from __future__ import annotations

import os

os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
)

__all__: list[str] = []
