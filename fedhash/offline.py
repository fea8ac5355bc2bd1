"""Switches that keep other people's code from talking to the internet at run time.

Flower would report usage, look for updates and install an app's dependencies; Ray and the Hugging
Face libraries under flwr-datasets would report usage or look for files. A hospital's network shall
see no such connection, so each command's package sets these before it imports anything of them.

    >>> os.environ.update(OFFLINE_SWITCHES)
    >>> exempt_loopback(os.environ)    # or a proxy would carry what stays on this machine
"""

from __future__ import annotations

from collections.abc import MutableMapping

__all__ = ["FLOWER_SWITCHES", "OFFLINE_SWITCHES", "exempt_loopback"]

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


def exempt_loopback(environment: MutableMapping[str, str]) -> None:
    """Keep connections to this machine away from a proxy that the environment names.

    A hospital's proxy is for the way out. Flower's programs talk to each other over loopback by an
    HTTP library that would send that to the proxy as well.
    """
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in environment.get(name, "").split(",") if host]
        hosts += [host for host in ("127.0.0.1", "localhost") if host not in hosts]
        environment[name] = ",".join(hosts)
