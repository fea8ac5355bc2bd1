"""The site's audit log while the daemon runs: one file, written by all of its parts.

>>> audit = SiteAudit(Path("state/audit.jsonl"))
>>> daemon.add(audit)                 # before the services that write to it
>>> audit.append({"kind": "withdrawal", ...})
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedhash.audit_log import AuditEntry, AuditLog
from fedhash.errors import AuditError
from fedhash_client.daemon.service import Status

__all__ = ["SiteAudit"]


class SiteAudit:
    """The service `audit`: opens and verifies the log at its start.

    What cannot be written is not done: each part asks for its entry before it answers anybody.
    """

    name = "audit"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log: AuditLog | None = None

    def start(self) -> None:
        """Open the log.

        Raises:
            AuditError: It was altered, or another process writes it.
            StorageError: The operating system refuses it.
        """
        self._log = AuditLog(self._path)

    def stop(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def status(self) -> Status:
        """See :class:`fedhash_client.daemon.service.Service`."""
        return {"healthy": self._log is not None, "head": self._log.head if self._log else None}

    def append(self, content: dict[str, Any]) -> AuditEntry:
        """Write an entry; see `AuditLog.append`.

        Raises:
            AuditError: The daemon does not run, or the log was altered.
            StorageError: The operating system refuses.
        """
        if self._log is None:
            raise AuditError(f"{self._path} is not open; the daemon is starting or ending")
        return self._log.append(content)
