"""Releases, searches of the site's own users, and withdrawals as parts of the daemon.

Commands of the control socket: `withdraw` (`patient`), `rebuild-index`, and `search` (`modality`,
`example`, `target`, `k`, `kappa`, `filters`).

    >>> audit = SiteAudit(audit_file(settings))
    >>> daemon.add(audit)
    >>> served = add_releases(daemon, audit)
    >>> served.current()            # once the daemon runs
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedhash.errors import ArchiveError, QueryError, ReleaseError
from fedhash_client.daemon.audit import SiteAudit
from fedhash_client.daemon.site_daemon import SiteDaemon
from fedhash_client.own_search import OwnQuery, search_own, search_words
from fedhash_client.releases.follower import ReleaseFollower
from fedhash_client.releases.served import ServedReleases
from fedhash_client.releases.source import GrpcReleases, ReleaseSource
from fedhash_client.router_channel import open_channel
from fedhash_client.withdrawal import complete_withdrawals, withdraw
from fedhash_process.service import Status

__all__ = ["add_releases"]

_log = logging.getLogger(__name__)


def add_releases(
    daemon: SiteDaemon, audit: SiteAudit, source: ReleaseSource | None = None
) -> ServedReleases:
    """Add the services `archives` and `releases` and three commands.

    Args:
        daemon: Not running yet.
        audit: Added to it already.
        source: Of releases; default: the router of the site's file. Without a network, or under an
            agreement without `release_key`, none is followed.

    Returns:
        What searches answer with, once the daemon runs.

    Raises:
        ReleaseError: The site's memory of release numbers is damaged.
        StorageError: The operating system refuses it.
    """
    settings, agreement = daemon.settings, daemon.agreement
    served = ServedReleases(settings, agreement)
    daemon.add(_Archives(daemon, served, audit))
    follower: ReleaseFollower | None = None
    network = settings.network
    if source is None and network is not None:
        source = GrpcReleases(lambda: open_channel(network))
    if source is not None and agreement.release_key is None:
        _log.warning("the agreement names no release_key, so no release is followed")
    elif source is not None:
        follower = ReleaseFollower(settings, agreement, served, source, audit.append)
        daemon.add(follower)

    def rebuild(_: Mapping[str, Any]) -> dict[str, Any]:
        if follower is None:
            raise ReleaseError(
                "this site follows no releases; stop the daemon and use: fedhash-site index"
            )
        follower.rebuild()
        return dict(follower.status())

    def search(arguments: Mapping[str, Any]) -> dict[str, Any]:
        query = OwnQuery.of(arguments)
        served.heed_consent()
        now = served.current()
        if now is None:
            return search_words(settings, agreement, query, "this site has no release yet")
        return search_own(now, settings, agreement, query)

    def withdrawn(arguments: Mapping[str, Any]) -> dict[str, Any]:
        patient_id = arguments.get("patient")
        if not isinstance(patient_id, str):
            raise QueryError("withdraw needs the patient's id as text, under 'patient'")
        receipt = withdraw(
            settings,
            agreement,
            patient_id,
            served=served,
            note=audit.append,
            forget=daemon.forgetting,
        )
        return asdict(receipt)

    daemon.control.register("rebuild-index", rebuild)
    daemon.control.register("search", search)
    daemon.control.register("withdraw", withdrawn)
    return served


class _Archives:
    """The service `archives`: holds the site's archives while the daemon runs."""

    name = "archives"

    def __init__(self, daemon: SiteDaemon, served: ServedReleases, audit: SiteAudit) -> None:
        self._daemon = daemon
        self._served = served
        self._audit = audit

    def start(self) -> None:
        """Complete withdrawals that were cut short, then open what answered last.

        Raises:
            FedhashError: A withdrawal cannot be completed, or another process has the archives.
        """
        settings, agreement = self._daemon.settings, self._daemon.agreement
        self._served.acquire()
        complete_withdrawals(settings, agreement, served=self._served, note=self._audit.append)
        try:
            self._served.open()
        except (ArchiveError, ReleaseError) as error:
            _log.warning("searches go by words until a release is there: %s", error)

    def stop(self) -> None:
        """Close them; services that use them have stopped."""
        self._served.close()

    def status(self) -> Status:
        """See :class:`fedhash_process.service.Service`; a site without a release is well."""
        now = self._served.current()
        return {"healthy": True, "release": None if now is None else now.release.release_id}
