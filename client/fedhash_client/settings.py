"""The site's own file: where its data is and which agreement it has signed.

>>> settings = read_settings(Path("site.yaml"), SiteSettings)
>>> settings.manifest
PosixPath('/srv/fedhash/manifest.csv')
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fedhash.configuration import Settings
from fedhash.privacy.settings import PrivateMode
from fedhash.privacy.terms import PrivacyTerms
from fedhash.search.terms import QueryLimits
from fedhash_client.daemon.settings import DaemonSettings, TrainingSettings
from fedhash_client.network_settings import NetworkSettings
from fedhash_client.releases.settings import ReleaseSettings

__all__ = ["SitePrivacy", "SiteSettings"]


class SitePrivacy(PrivacyTerms):
    """The site's own cap, which binds beside the agreement's, and its ledger.

    Attributes:
        ledger: The privacy ledger, one for all runs and data sets of the site; made before the
            first private step. Move it and its `.anchor` file together, and never restore it from
            an older copy.
        modes: The `privacy.mode` of rounds that the site takes part in. In distributed rounds the
            sites add their noise together, so their figures hold under a trust in other sites that
            site rounds do not need.
    """

    ledger: Path
    modes: tuple[PrivateMode, ...] = Field(default=("site",), min_length=1)


class SiteSettings(Settings):
    """One site.

    Attributes:
        name: The site's name in the consortium.
        agreement: The agreement that the site has signed; its limits hold whatever is asked.
        manifest: Table of the site's studies (CSV or JSONL).
        archive: The binary index; made by `fedhash-site index`.
        handle_key: File with the 32 secret bytes that make study handles opaque; made at need,
            readable by its owner alone.
        smallest_kappa: No answer reaches farther than the radius of this kappa, whatever a query
            asks; from -1 (broad) to 1 (the very same code alone). Null: no bound.
        privacy: The cap on what may leak of one patient; without it nothing private is trained.
        queries: What the site answers to other members; without it nothing.
        state: Folder of everything that the daemon keeps; null for a site that runs none.
        network: Where the consortium is; without it the site works alone.
        training: What the site trains, beside the agreement's limits.
        daemon: What the daemon listens on.
        releases: How the site follows the consortium's releases.
    """

    name: str = Field(min_length=1, max_length=200)
    agreement: Path
    manifest: Path
    archive: Path
    handle_key: Path
    smallest_kappa: float | None = Field(default=None, ge=-1, le=1)
    privacy: SitePrivacy | None = None
    queries: QueryLimits | None = None
    state: Path | None = None
    network: NetworkSettings | None = None
    training: TrainingSettings = TrainingSettings()
    daemon: DaemonSettings = DaemonSettings()
    releases: ReleaseSettings = ReleaseSettings()
