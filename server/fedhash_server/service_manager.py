"""Telling systemd that the service is ready (sd_notify(3)); without systemd nothing happens.

>>> notify("READY=1")
"""

from __future__ import annotations

import os
import socket

__all__ = ["notify"]


def notify(state: str) -> None:
    """Send one state to the socket that systemd named, if it named one.

    Raises:
        OSError: The socket does not take it.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract name
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.sendto(state.encode(), address)
