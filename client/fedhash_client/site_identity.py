"""The identity of a site, once the agreement is known to list it.

>>> site_identity(Path("site.yaml"), settings, agreement).public_hex
'3b6a...'
"""

from __future__ import annotations

from pathlib import Path

from fedhash.agreement import Agreement
from fedhash.configuration import problem_at
from fedhash.errors import ConfigurationError
from fedhash.secagg.identity import SiteIdentity
from fedhash_client.settings import SiteSettings

__all__ = ["site_identity"]


def site_identity(site_file: Path, settings: SiteSettings, agreement: Agreement) -> SiteIdentity:
    """The key that signs the site's round keys.

    Raises:
        ConfigurationError: The site has none, others may use it, or the agreement lists another.
        StorageError: The operating system refuses the file.
    """
    if settings.network is None:
        message = (
            "training.aggregations has secure, and without a section network the site has no "
            "identity to sign with; add network, as fedhash-site init writes it"
        )
        raise ConfigurationError([problem_at(site_file, ("training",), message)])
    identity = SiteIdentity.load(settings.network.identity)
    listed = agreement.sites.get(settings.name)
    if listed != identity.public_hex:
        found = f"lists {listed}" if listed else f"does not list this site, {settings.name!r}"
        message = (
            f"the agreement {settings.agreement} {found}, the key in network.identity is "
            f"{identity.public_hex}; fetch the agreement that names this key, or use the key that "
            "was enrolled"
        )
        raise ConfigurationError([problem_at(site_file, ("network", "identity"), message)])
    return identity
