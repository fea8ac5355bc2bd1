"""Switches that keep other people's code from talking to the internet at run time.

Flower would report usage, look for updates and install an app's dependencies; Ray and the Hugging
Face libraries under flwr-datasets would report usage or look for files. A hospital's network shall
see no such connection, so each command's package sets these before it imports anything of them.

    >>> os.environ.update(OFFLINE_SWITCHES)
"""

from __future__ import annotations

__all__ = ["FLOWER_SWITCHES", "OFFLINE_SWITCHES"]

FLOWER_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
OFFLINE_SWITCHES = FLOWER_SWITCHES | {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
