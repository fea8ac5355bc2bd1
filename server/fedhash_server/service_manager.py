"""Telling systemd that the service is ready (sd_notify(3)); without systemd nothing happens.

>>> notify("READY=1")
"""

from __future__ import annotations

import logging
import os
import socket

__all__ = ["notify"]

_log = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Send one state to the socket that systemd named, if it named one.

    A manager that cannot be reached must not end the servers: it will act on the silence.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.settimeout(1)
        try:
            end.sendto(state.encode(), address)
        except OSError as error:
            _log.warning("the service manager cannot be told %r: %s", state, error)
