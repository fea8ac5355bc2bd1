"""The site's mutual TLS connection to the query router.

>>> with open_channel(settings.network) as channel: ...
"""

from __future__ import annotations

import grpc

from fedhash.errors import ProtocolError, StorageError
from fedhash.private_file import read_private_file
from fedhash.regular_file import read_regular_file
from fedhash.search.wire.methods import CHANNEL_OPTIONS
from fedhash_client.network_settings import NetworkSettings

__all__ = ["explained", "open_channel"]

_LARGEST_PEM_BYTES = 1 << 16
_OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),  # no connection is shared with another identity's
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


def open_channel(network: NetworkSettings) -> grpc.Channel:
    """A channel; it connects at the first call and must be closed.

    Raises:
        ConfigurationError: Others may use the key.
        StorageError: A file cannot be read.
    """
    key = read_private_file(network.key)
    try:
        ca = read_regular_file(network.ca, _LARGEST_PEM_BYTES)
        certificate = read_regular_file(network.certificate, _LARGEST_PEM_BYTES)
    except OSError as error:
        raise StorageError(error) from error
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.secure_channel(network.router, credentials, options=_OPTIONS)


def explained(error: grpc.RpcError, address: str) -> ProtocolError:
    """What a failed call means, and what to do."""
    code, details = error.code(), str(error.details())[:500]
    remedy = {
        grpc.StatusCode.UNAVAILABLE: "check that the router runs, the address and the firewall, "
        "and that the certificate is of this consortium and valid (fedhash-site check)",
        grpc.StatusCode.PERMISSION_DENIED: "ask the coordinator to enrol this site",
        grpc.StatusCode.DEADLINE_EXCEEDED: "the router is overloaded or cut off; ask again",
    }.get(code, "the router may run another version of fedhash")
    return ProtocolError(f"the router {address} failed ({code.name}: {details}); {remedy}")
