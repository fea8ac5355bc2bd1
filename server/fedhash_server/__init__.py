"""The coordinator's programs: the Flower ServerApp and the command line.

Importing this package switches off what Flower would otherwise do by itself: report usage, look
for updates and install an app's dependencies. The switches are set here, before any module of
this package imports Flower.
"""

from __future__ import annotations

import os

__all__ = ["FLOWER_SWITCHES"]

FLOWER_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
os.environ.update(FLOWER_SWITCHES)
