"""Where a site beside a coordinator's folder finds the router and its own keys.

    FOLDER/coordinator/    the coordinator's folder
    FOLDER/SITE/           the site's certificate and keys

>>> member_network(folder, "hospital-a", 9444).router
'localhost:9444'
"""

from __future__ import annotations

from pathlib import Path

from fedhash_client.network_settings import NetworkSettings

__all__ = ["member_network"]


def member_network(folder: Path, site: str, port: int) -> NetworkSettings:
    """The site's `network` settings; it attaches to the router alone."""
    own = folder / site
    return NetworkSettings(
        superlink="localhost:1",
        router=f"localhost:{port}",
        ca=folder / "coordinator" / "certificates" / "ca.pem",
        certificate=own / "site.pem",
        key=own / "tls.key",
        identity=own / "identity.pem",
        supernode_key=own / "supernode.key",
    )
