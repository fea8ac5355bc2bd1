"""What systemd is told of a unit with `Type=notify` (sd_notify(3)).

Without systemd (no NOTIFY_SOCKET in the environment) nothing is sent.

    >>> notify("READY=1", "STATUS=hospital-a: answering")
"""

from __future__ import annotations

import logging
import os
import socket

__all__ = ["notify", "watchdog_interval_s"]

_log = logging.getLogger(__name__)


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` to the service manager.

    A manager that cannot be reached ends no daemon: it will act on the silence.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # a name without a file
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(1)
        try:
            sender.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            _log.warning("the service manager cannot be told %s: %s", assignments, error)


def watchdog_interval_s() -> float | None:
    """How often WATCHDOG=1 is due, at half of what the manager allows; None where it asks none."""
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(allowed_us) / 2e6 if meant and allowed_us.isdecimal() else None
