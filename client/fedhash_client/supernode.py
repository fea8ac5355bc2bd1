r"""Flower's SuperNode, showing the site's certificate to the coordinator's gateway.

    python -m fedhash_client.supernode --site-certificate site.pem --site-key tls.key \
        --superlink coordinator.example.org:9443 --root-certificates ca.pem ...

Flower 1.41 has no way to name a client certificate. This program exchanges the class of its one
client that goes to the SuperLink, and hands everything else to Flower. Rules:

1. Another version of Flower is refused: its client may be made elsewhere, and would then connect
   without a certificate, or trust whom it should not.
2. The gateway is verified by the consortium's authority alone, whatever Flower's own arguments say.
   A start without `--root-certificates`, for which Flower would trust the system's, is refused.
3. Only the connection to the SuperLink shows the certificate, not those to the node's own programs.
"""

from __future__ import annotations

import argparse
import os
import ssl
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fedhash.errors import CertificateError, FedhashError
from fedhash.flower_version import check_flower_version
from fedhash.offline import exempt_loopback
from fedhash.private_file import read_private_file
from fedhash_client.prompt_pulls import pull_promptly
from fedhash_client.prompt_return import return_promptly

if TYPE_CHECKING:
    from flwr.supercore.protobuf.client import ProtobufClientInterceptor
    from flwr.supercore.retry import RetryInvoker

__all__ = ["main", "show_certificate", "tls_context"]


def tls_context(certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """TLS 1.3 to a server of the consortium, with the site's certificate.

    Raises:
        CertificateError: A file is missing or damaged, or the key is not the certificate's.
        ConfigurationError: Others may use the key.
        StorageError: The operating system refuses to read the key.
    """
    read_private_file(key)  # refuses one that others may read
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise CertificateError(
            f"{certificate}, {key} and {ca} cannot be used together ({error}); take certificate "
            "and authority from the coordinator, for this key"
        ) from error
    return context


def show_certificate(certificate: Path, key: Path, ca: Path) -> None:
    """Make this process' SuperNode show the certificate, and trust `ca` alone.

    Raises:
        ProtocolError: This is not the Flower that the exchange was tried with.
    """
    check_flower_version()
    from flwr.supernode import fleet_http_connection
    from flwr.supernode.fleet_http_client import FleetHttpClient

    class SiteFleetClient(FleetHttpClient):
        """Flower's client with a context of ours."""

        @classmethod
        def from_server_address(
            cls,
            server_address: str,
            insecure: bool,
            root_certificates: bytes | str | None,
            interceptors: Sequence[ProtobufClientInterceptor],
            *,
            retry_invoker: RetryInvoker | None = None,
        ) -> SiteFleetClient:
            if insecure or root_certificates is None:
                raise CertificateError("the SuperLink is reached by TLS with --root-certificates")
            return cls(
                f"https://{server_address}",
                interceptors=interceptors,
                verify=tls_context(certificate, key, ca),
                retry_invoker=retry_invoker,
            )

    fleet_http_connection.FleetHttpClient = SiteFleetClient  # type: ignore[attr-defined]


def main(
    arguments: Sequence[str] | None = None, start: Callable[[], None] | None = None
) -> NoReturn:
    """Check the arguments and become the SuperNode.

    Args:
        arguments: Default: those of the process.
        start: Default: Flower's own program.
    """
    parser = argparse.ArgumentParser(
        prog="fedhash-supernode", allow_abbrev=False, description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--site-certificate", type=Path, required=True)
    parser.add_argument("--site-key", type=Path, required=True)
    parser.add_argument("--root-certificates", type=Path, required=True)
    parser.add_argument("--node-file", type=Path, help="keeps the node's number while it is online")
    ours, rest = parser.parse_known_args(arguments)
    ca = ours.root_certificates
    try:
        tls_context(ours.site_certificate, ours.site_key, ca)
        show_certificate(ours.site_certificate, ours.site_key, ca)
        pull_promptly()
        if ours.node_file is not None:
            return_promptly(ours.node_file)
    except FedhashError as error:
        parser.exit(1, f"error: {error}\n")
    if start is None:
        from flwr.supernode.cli.flower_supernode import flower_supernode

        start = flower_supernode
    exempt_loopback(os.environ)  # the node's own programs
    sys.argv = ["flower-supernode", "--root-certificates", str(ca), *rest]
    start()
    raise SystemExit(0)


if __name__ == "__main__":
    main()
