"""The systemd unit of a daemon: one folder that it may write, and little else that it may do.

Both daemons say when they are ready (`Type=notify`), listen on ports above 1023 if at all, and
need no right beyond those of their own user. Memory that is written and executed is not forbidden,
because torch compiles kernels.

>>> text = systemd_unit("fedhash-site", "fedhash site", command, Path("/srv/fedhash"), "fedhash")
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fedhash.errors import ConfigurationError, Problem

__all__ = ["systemd_unit"]

_TEMPLATE = """\
# {folder}: copy this to /etc/systemd/system, then: systemctl enable --now {name}
[Unit]
Description={description}
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
User={user}
ExecStart={command}
Restart=on-failure
RestartSec=5
{watchdog}TimeoutStartSec=300
TimeoutStopSec=90
KillMode=mixed
UMask=0077
LimitCORE=0

NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths={folder}
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def systemd_unit(
    name: str,
    description: str,
    command: Sequence[str],
    folder: Path,
    user: str,
    *,
    watchdog_s: int | None = None,
) -> str:
    """The text of a unit.

    Args:
        name: Of the unit, without ".service".
        description: In a few words.
        command: Program, by its whole path, and arguments.
        folder: The only one that it may write.
        user: Whose rights it has.
        watchdog_s: A daemon that has not said for so long that it lives is started again.

    Raises:
        ConfigurationError: A path has a character that a unit cannot be told simply, or the user
            is none.
    """
    if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", user):
        raise ConfigurationError(
            [Problem(Path("--user"), None, f"{user[:80]!r} is no name of a user of this machine")]
        )
    for text in (*command, str(folder)):
        if not all(each.isalnum() or each in "/._-+@" for each in text):
            message = (
                "a systemd unit with this path would need quoting; use one of letters, digits, "
                "'/', '.', '_' and '-'"
            )
            raise ConfigurationError([Problem(Path(text), None, message)])
    return _TEMPLATE.format(
        name=name,
        description=description,
        command=" ".join(command),
        folder=folder,
        user=user,
        watchdog="" if watchdog_s is None else f"WatchdogSec={watchdog_s}\n",
    )
