"""The section `releases` of a site's file.

>>> read_settings(Path("site.yaml"), SiteSettings).releases.poll_s
30.0
"""

from __future__ import annotations

from pydantic import Field

from fedhash.configuration import Settings

__all__ = ["ReleaseSettings"]


class ReleaseSettings(Settings):
    """How the site follows the consortium's releases.

    Attributes:
        poll_s: Most seconds between two questions which release is current; half as many at least.
        smallest_number: No statement with a smaller number is taken. Set it after the state folder
            was lost: it kept the newest number (`fedhash.registry.seen`).
        largest_bytes: No larger release is downloaded.
    """

    poll_s: float = Field(default=30.0, ge=0.05, le=86_400)
    smallest_number: int = Field(default=1, ge=1)
    largest_bytes: int = Field(default=2 << 30, ge=1 << 20)
