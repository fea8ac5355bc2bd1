"""The section `network` of a site's file: where the consortium is, and who this site is there.

>>> read_settings(Path("site.yaml"), SiteSettings).network.superlink
'coordinator.example.org:9443'
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedhash.configuration import Settings

__all__ = ["NetworkSettings"]

_Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:_\[\]-]{1,255}:[0-9]{1,5}$")]


class NetworkSettings(Settings):
    """The network of a consortium.

    Attributes:
        superlink: Host and port of the coordinator's gateway.
        router: Host and port of its query router.
        ca: The consortium's certificate authority.
        certificate: The site's certificate, signed by it.
        key: The certificate's private key.
        identity: The site's Ed25519 key, which signs its round keys.
        supernode_key: The key by which the SuperLink knows this site's SuperNode.
    """

    superlink: _Address
    router: _Address
    ca: Path
    certificate: Path
    key: Path
    identity: Path
    supernode_key: Path
