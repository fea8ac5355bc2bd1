"""The site's audit log while the daemon runs, written by all of its parts.

>>> audit = SiteAudit(Path("state/audit.jsonl"), identity=identity)
>>> daemon.add(audit)                 # before the services that write to it
>>> audit.append({"kind": "withdrawal", ...})
"""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock
from typing import Any

from fedhash.audit_log import START, AuditEntry
from fedhash.audit_segments import SegmentedAuditLog
from fedhash.errors import AuditError, FedhashError, StorageError
from fedhash.secagg.identity import SiteIdentity
from fedhash_process.service import Status

__all__ = ["SiteAudit"]

_AGAIN_S = 5.0
# about 15,000 answers of 20 handles: what a start has to verify (2 s and 90 MB of memory)
_SEGMENT_BYTES = 16 << 20


class SiteAudit:
    """The service `audit`: opens the log and verifies its newest segment at its start.

    What cannot be written is not done: each part asks for its entry before it answers anybody.
    Where the system refused one, such as on a full disk, the log is opened and verified anew for
    the next that comes after `again_s`: verifying reads all of a segment.

    Args:
        path: The newest segment.
        identity: Signs the segments that are closed.
        segment_bytes: A longer segment is closed before the next entry.
        again_s: See above.
    """

    name = "audit"

    def __init__(
        self,
        path: Path,
        *,
        identity: SiteIdentity | None = None,
        segment_bytes: int = _SEGMENT_BYTES,
        again_s: float = _AGAIN_S,
    ) -> None:
        self._path = path
        self._identity = identity
        self._segment_bytes = segment_bytes
        self._again_s = again_s
        self._log: SegmentedAuditLog | None = None
        self._lock = Lock()
        self._head = START
        self._fault: str | None = None
        self._failed_at = 0.0

    def start(self) -> None:
        """Open the log.

        Raises:
            AuditError: It was altered, or another process writes it.
            StorageError: The operating system refuses it.
        """
        with self._lock:
            self._log = SegmentedAuditLog(self._path)
            self._head = self._log.head

    def stop(self) -> None:
        """Close the log."""
        with self._lock:
            if self._log is not None:
                self._log.close()
                self._log = None

    def status(self) -> Status:
        """See :class:`fedhash_process.service.Service`."""
        return {
            "healthy": self._log is not None and self._fault is None,
            "head": self._head if self._log is not None else None,
            "fault": self._fault,
        }

    def append(self, content: dict[str, Any]) -> AuditEntry:
        """Write an entry; see `AuditLog.append`.

        Raises:
            AuditError: The daemon does not run, or the log was altered.
            StorageError: The operating system refuses.
        """
        with self._lock:
            if self._log is None:
                raise AuditError(f"{self._path} is not open; the daemon is starting or ending")
            if self._fault is not None:
                self._log = self._opened_again(self._fault)
            try:
                if self._log.size_bytes > self._segment_bytes:
                    self._log.close_segment(self._identity)
                entry = self._log.append(content)
            except StorageError as error:
                self._head = self._log.head
                self._fault, self._failed_at = str(error), time.monotonic()
                raise
            self._head, self._fault = entry.hash, None
            return entry

    def _opened_again(self, fault: str) -> SegmentedAuditLog:
        """The log that closed itself when the system refused it."""
        if time.monotonic() - self._failed_at < self._again_s:
            raise AuditError(f"nothing can be written to the audit log: {fault}")
        if self._log is not None:
            self._log.close()
        try:
            return SegmentedAuditLog(self._path, noted=self._head)
        except FedhashError as error:
            self._fault, self._failed_at = str(error), time.monotonic()
            raise
