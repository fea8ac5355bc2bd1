"""Releases and withdrawals as parts of the daemon: one function that adds them.

Commands of the control socket that it registers: `withdraw` (patient), `rebuild-index` and `search`
(`modality`, `example`, `target`, `k`, `kappa`, `filters`), for the site's own users.

    >>> served = add_releases(daemon, log.append)
    >>> served.current()
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from fedhash.errors import ArchiveError, QueryError, ReleaseError
from fedhash_client.daemon.site_daemon import SiteDaemon
from fedhash_client.own_search import OwnQuery, search_own, search_words
from fedhash_client.releases.follower import ReleaseFollower
from fedhash_client.releases.served import ServedReleases
from fedhash_client.releases.source import GrpcReleases, ReleaseSource, site_channel
from fedhash_client.withdrawal import complete_withdrawals, withdraw

__all__ = ["add_releases"]

_log = logging.getLogger(__name__)


def add_releases(
    daemon: SiteDaemon,
    note: Callable[[dict[str, Any]], object],
    source: ReleaseSource | None = None,
) -> ServedReleases:
    """Open the site's archives, complete withdrawals, and follow the consortium's releases.

    Args:
        daemon: Not running yet.
        note: Writes an entry of the site's audit log; called from several threads.
        source: Of releases; default: the router of the site's file. Without a network, or under an
            agreement without `release_key`, none is followed.

    Returns:
        What searches answer with; to be closed after the daemon has run.

    Raises:
        ArchiveError: Another process has the archives open.
        FedhashError: A withdrawal that was cut short cannot be completed: nothing may run before.
    """
    settings, agreement = daemon.settings, daemon.agreement
    served = ServedReleases(settings, agreement)
    try:
        complete_withdrawals(settings, agreement, served=served, note=note)
        follower = None
        network = settings.network
        if source is None and network is not None:
            source = GrpcReleases(lambda: site_channel(network))
        if agreement.release_key is None:
            _log.warning("the agreement names no release_key, so no release is followed")
        elif source is not None:
            follower = ReleaseFollower(settings, agreement, served, source, note)
            daemon.add(follower)
        try:
            served.open()
        except (ArchiveError, ReleaseError) as error:
            _log.warning("searches go by words until a release is there: %s", error)
    except BaseException:
        served.close()
        raise

    def rebuild(_: Mapping[str, Any]) -> dict[str, Any]:
        if follower is None:
            raise ReleaseError("this site follows no releases; use: fedhash-site index --release")
        follower.rebuild()
        return follower.status()

    def withdrawn(arguments: Mapping[str, Any]) -> dict[str, Any]:
        patient_id = arguments.get("patient")
        if not isinstance(patient_id, str):
            raise QueryError("withdraw needs the patient's id as text, under 'patient'")
        forget = [daemon.answers.forget_data]
        return asdict(
            withdraw(settings, agreement, patient_id, served=served, note=note, forget=forget)
        )

    def search(arguments: Mapping[str, Any]) -> dict[str, Any]:
        query = OwnQuery.of(arguments)
        now = served.current()
        if now is None:
            return search_words(settings, agreement, query, "this site has no release yet")
        return search_own(now, settings, agreement, query)

    daemon.control.register("search", search)
    daemon.control.register("withdraw", withdrawn)
    daemon.control.register("rebuild-index", rebuild)
    return served
