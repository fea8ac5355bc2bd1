"""The daemon with all of its parts: each adds its services and commands here.

>>> site_daemon(Path("site.yaml")).run()
"""

from __future__ import annotations

from pathlib import Path

from fedhash.secagg.identity import SiteIdentity
from fedhash_client.daemon.audit import SiteAudit
from fedhash_client.daemon.site_daemon import SiteDaemon
from fedhash_client.daemon.supernode import supernode_service
from fedhash_client.queries_in_daemon import add_queries
from fedhash_client.releases.in_daemon import add_releases
from fedhash_client.withdrawal import audit_file

__all__ = ["site_daemon"]


def site_daemon(site_file: Path) -> SiteDaemon:
    """The daemon of a site's file; it serves when its `run` is called.

    Raises:
        FedhashError: A file is wrong, or a part cannot be had.
    """
    daemon = SiteDaemon(site_file)
    settings = daemon.settings
    network = settings.network
    identity = None if network is None else SiteIdentity.load(network.identity)
    audit = SiteAudit(audit_file(settings), identity=identity)
    daemon.add(audit)
    served = add_releases(daemon, audit)
    add_queries(daemon, audit.append, served.archive)
    if network is not None:
        daemon.add(supernode_service(settings, network, daemon.state_folder))
    return daemon
