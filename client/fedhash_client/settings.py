"""The site's own file: where its data is and which agreement it has signed.

>>> settings = read_settings(Path("site.yaml"), SiteSettings)
>>> settings.manifest
PosixPath('/srv/fedhash/manifest.csv')
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fedhash.configuration import Settings

__all__ = ["SiteSettings"]


class SiteSettings(Settings):
    """One site.

    Attributes:
        name: The site's name in the consortium.
        agreement: The agreement that the site has signed; its limits hold whatever is asked.
        manifest: Table of the site's studies (CSV or JSONL).
        archive: The binary index; made by `fedhash-site index`.
        handle_key: File with the 32 secret bytes that make study handles opaque; made at need,
            readable by its owner alone.
    """

    name: str = Field(min_length=1, max_length=200)
    agreement: Path
    manifest: Path
    archive: Path
    handle_key: Path
