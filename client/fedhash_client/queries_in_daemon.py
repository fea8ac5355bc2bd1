"""The answering of other members' queries as a part of the daemon.

>>> add_queries(daemon, audit.append, served.archive)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from fedhash.audit_log import AuditEntry
from fedhash.errors import FedhashError
from fedhash.index import Archive, SiteSearcher
from fedhash.index.answering import QueryDesk
from fedhash.search.policy import QueryPolicy
from fedhash_client.daemon.site_daemon import SiteDaemon
from fedhash_client.query_stream import QueryStream

__all__ = ["add_queries"]

_log = logging.getLogger(__name__)


def add_queries(
    daemon: SiteDaemon,
    note: Callable[[dict[str, Any]], AuditEntry],
    current: Callable[[], Archive | None],
) -> QueryStream | None:
    """Attach the site to the query router; None where its file has no `queries` or no `network`.

    Args:
        daemon: Not running yet.
        note: Writes an entry into the site's audit log.
        current: Looks up the archive that answers now, if any; where it fails, none does.

    Raises:
        RefusedError: The agreement has no section `search`.
        QueryError: `smallest_kappa` is out of range.
    """
    settings, agreement = daemon.settings, daemon.agreement
    if settings.queries is None or settings.network is None:
        return None
    policy = QueryPolicy(agreement, settings.queries, started_ms=time.time_ns() // 1_000_000)

    def searcher() -> SiteSearcher | None:
        try:
            archive = current()
        except FedhashError as error:
            _log.warning("no query is answered: %s", error)
            return None
        if archive is None:
            return None
        return SiteSearcher(settings.name, archive, agreement, settings.smallest_kappa)

    desk = QueryDesk(policy, note)
    daemon.forgetting.append(desk.settle)
    stream = QueryStream(settings.network, desk.answer, searcher)
    daemon.add(stream)
    return stream
