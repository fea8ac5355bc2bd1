"""A site's archive of codes: stored in one SQLite file, searched exactly in memory."""

from __future__ import annotations

from fedhash.index._store import archive_release, replace_archive
from fedhash.index.archive import Archive, Match
from fedhash.index.entry import Entry, site_handle
from fedhash.index.searcher import SiteAnswer, SiteSearcher, check_limits

__all__ = [
    "Archive",
    "Entry",
    "Match",
    "SiteAnswer",
    "SiteSearcher",
    "archive_release",
    "check_limits",
    "replace_archive",
    "site_handle",
]
