"""The studies of the manifest whose patient does not consent, looked up again when it changes.

1. A row counts here that says no, or says nothing legible under `consent`, be it usable or not: its
   image may be gone already. Rows that are no longer there say nothing.
2. A manifest that cannot be read takes nobody's consent away: what was known stays, and it is told.

    >>> refused = RefusedStudies(settings.manifest, settings.handle_key)
    >>> if refused.changed():
    ...     refused.read()
    ...     archive.remove_studies(refused.handles)
    ...     refused.heeded()
"""

from __future__ import annotations

import logging
from pathlib import Path

from fedhash.data.manifest import studies_without_consent
from fedhash.errors import ManifestError
from fedhash.index.entry import site_handle
from fedhash_client.archive_index import read_handle_key

__all__ = ["RefusedStudies"]

_log = logging.getLogger(__name__)


class RefusedStudies:
    """What the manifest said when it was read last.

    Attributes:
        handles: Of the studies.
    """

    def __init__(self, manifest: Path, handle_key: Path) -> None:
        self._manifest = manifest
        self._handle_key = handle_key
        self._read: tuple[int, ...] | None = None
        self._heeded: tuple[int, ...] | None = None
        self.handles: frozenset[str] = frozenset()

    def changed(self) -> bool:
        """Whether the file is another one than that which was heeded."""
        return _mark(self._manifest) != self._heeded

    def read(self) -> None:
        """Read the manifest.

        Raises:
            ArchiveError: The handle key is none.
            StorageError: It cannot be read.
        """
        self._read = _mark(self._manifest)  # before: a change meanwhile is seen next time
        try:
            studies = studies_without_consent(self._manifest)
        except ManifestError as error:
            _log.warning("nobody can say who consents: %s", error)
            return
        key = read_handle_key(self._handle_key)
        self.handles = frozenset(site_handle(key, study_id) for study_id in studies)

    def heeded(self) -> None:
        """What was read is acted upon."""
        self._heeded = self._read


def _mark(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
