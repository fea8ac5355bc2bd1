"""The site's side of releases: asks what is current, and brings the site to it, in the background.

1. A statement is verified and its number noted before anything else is done about it
   (`fedhash.registry.statement`, `fedhash.registry.seen`). A release is used when every byte of it
   verifies and it was trained under the agreement that this site signed.
2. The release before answers until the new archive is whole (`served`).
3. Whatever fails is logged, told by `status` and tried again after a pause, from where it was. A
   coordinator that cannot be reached keeps no site from finishing with what it has, and is not the
   site's ill health: it is told as `fault`. What was refused, or failed here, is told as `error`.
4. Pauses double from `releases.poll_s` on. A coordinator that was away is asked within a minute of
   its return, at a random time, so that not all sites come at once; what failed here may be a
   download of gigabytes, and is begun anew less often.
5. `stop` ends downloads and encoding at the next piece, and waits for that.

    >>> follower = ReleaseFollower(settings, agreement, served, source, log.append)
    >>> follower.start()
    >>> follower.status()["phase"]
    'encoding'
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Any

from fedhash.agreement import Agreement
from fedhash.errors import FedhashError, ProtocolError, ReleaseError
from fedhash.registry.seen import NewestSeen
from fedhash.registry.statement import read_statement
from fedhash_client.releases.download import fetch_release
from fedhash_client.releases.served import ServedReleases
from fedhash_client.releases.source import ReleaseSource
from fedhash_client.settings import SiteSettings
from fedhash_process.service import Status

__all__ = ["ReleaseFollower"]

_LONGEST_OUTAGE_PAUSE_S = 60.0  # to ask costs both ends 11 ms of a processor, TLS included
_LONGEST_PAUSE_S = 600.0
_STOP_TIMEOUT_S = 60.0

_log = logging.getLogger(__name__)


class _Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """The service is to end."""


class ReleaseFollower:
    """The service `releases` of the daemon.

    Args:
        settings: The site's file.
        agreement: What it signed.
        served: Open; the follower switches it.
        source: The coordinator's releases.
        note: Writes an entry of the site's audit log.

    Raises:
        ReleaseError: The agreement names no `release_key`, or the memory of numbers is damaged.
        StorageError: The operating system refuses that memory.
    """

    name = "releases"

    def __init__(
        self,
        settings: SiteSettings,
        agreement: Agreement,
        served: ServedReleases,
        source: ReleaseSource,
        note: Callable[[dict[str, Any]], object],
    ) -> None:
        if agreement.release_key is None:
            raise ReleaseError(
                "the agreement names no release_key, so no release of the network could be "
                "verified; have the coordinator add it, and all sites sign the new agreement"
            )
        self._release_key = agreement.release_key
        self._settings = settings
        self._agreement = agreement
        self._served = served
        self._source = source
        self._note = note
        self._seen = NewestSeen(served.releases / "newest.json", settings.releases.smallest_number)
        self._one_at_a_time = Lock()
        self._stop = Event()
        self._thread: Thread | None = None
        self._phase, self._done, self._total = "starting", 0, 0
        self._error: str | None = None
        self._fault: str | None = None

    def start(self) -> None:
        """Begin to follow, in a thread of its own."""
        self._thread = Thread(target=self._run, name="releases", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, at the next piece of work."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_S)

    def status(self) -> Status:
        """See :class:`fedhash_process.service.Service`; a share, and no number of studies."""
        served = self._served.current()
        return {
            "healthy": self._error is None,
            "phase": self._phase,
            "percent": 100 * self._done // self._total if self._total else 0,
            "release": None if served is None else served.release.release_id,
            "wanted": self._seen.release_id,
            "statement": self._seen.number,
            "error": self._error,
            "fault": self._fault,
        }

    def step(self) -> None:
        """Ask once, and bring the site to what is current.

        Raises:
            FedhashError: Something of it failed; the next call goes on.
        """
        with self._one_at_a_time:
            try:
                self._ask()
            except FedhashError:  # what was begun is finished, also when nobody answers
                with suppress(ProtocolError):  # the first error is the one to tell
                    self._arrive()
                raise
            self._arrive()

    def rebuild(self) -> None:
        """Encode the archive of the present release anew.

        Raises:
            ReleaseError: The site has no release, or the service was told to stop.
            FedhashError: The data cannot be encoded; the old archive stays.
        """
        with self._one_at_a_time:
            served = self._served.current()
            if served is None:
                raise ReleaseError("this site has no release yet; there is no index to rebuild")
            try:
                self._served.adopt(served.release, self._progress("encoding"), anew=True)
            except _Stopped as error:
                raise ReleaseError(
                    "the daemon ends, and the old index stays; start it and rebuild again"
                ) from error
            finally:
                self._at("idle")

    def _run(self) -> None:
        poll_s = self._settings.releases.poll_s
        pause_s = poll_s
        while not self._stop.is_set():
            try:
                self.step()
                self._error, self._fault, pause_s = None, None, poll_s
            except _Stopped:
                return
            except ProtocolError as error:  # what failed before it stays told until all is well
                self._fault = str(error)
                _log.warning("releases: %s", error)
                pause_s = _longer(pause_s, poll_s, _LONGEST_OUTAGE_PAUSE_S)
            except (FedhashError, OSError, ArithmeticError, RuntimeError, ValueError) as error:
                # searches go on with what the site has
                known = isinstance(error, FedhashError)
                self._error = str(error) if known else "it is not foreseen; see the site's log"
                self._fault = None
                _log.warning("releases: %s", self._error, exc_info=not known)
                pause_s = _longer(pause_s, poll_s, _LONGEST_PAUSE_S)
            self._stop.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    def _ask(self) -> None:
        data = self._source.current()
        if data:
            statement = read_statement(data, self._release_key, self._agreement.name)
            self._seen.accept(statement)

    def _arrive(self) -> None:
        wanted, served = self._seen.release_id, self._served.current()
        if wanted is None or (served is not None and served.release.release_id == wanted):
            self._at("idle")
            return
        release = fetch_release(
            self._source,
            self._served.releases,
            wanted,
            self._settings.releases.largest_bytes,
            self._progress("downloading"),
            self._agreement,
            self._settings.training.largest_model_parameters,
        )
        now = self._served.adopt(release, self._progress("encoding"))
        self._note(
            {
                "kind": "release",
                "release": wanted,
                "statement": self._seen.number,
                "entries": now.archive.count(),
            }
        )
        _log.info("release %s answers, with %d entries", wanted[:12], now.archive.count())
        self._at("idle")

    def _progress(self, phase: str) -> Callable[[int, int], None]:
        def told(done: int, total: int) -> None:
            self._at(phase, done, total)
            if self._stop.is_set():
                raise _Stopped

        return told

    def _at(self, phase: str, done: int = 0, total: int = 0) -> None:
        self._phase, self._done, self._total = phase, done, total


def _longer(pause_s: float, poll_s: float, longest_s: float) -> float:
    return max(poll_s, min(2 * pause_s, longest_s))
