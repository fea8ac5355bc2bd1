"""Keys and certificates of a site: whose they are, until when, and who else may read them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
)

from fedhash.enrolment.certificates import check_certificate, expiry, peer_of
from fedhash.private_file import read_private_file
from fedhash.regular_file import read_regular_file
from fedhash.secagg.identity import SiteIdentity
from fedhash_client.archive_index import read_handle_key
from fedhash_client.checks.findings import CheckedSite, Findings
from fedhash_client.network_settings import NetworkSettings
from fedhash_client.site_identity import site_identity

__all__ = ["TAKE_WELCOME", "check_credentials"]

_LARGEST_PEM_BYTES = 1 << 16
_SOON = timedelta(days=30)
_NO_KEY = (
    "there is no such key; restore it from a copy, or make one with 'fedhash-site init' and be "
    "enrolled anew"
)
TAKE_WELCOME = "take what the coordinator sent (ca.pem, site.pem, agreement.yaml)"


def check_credentials(site: CheckedSite, found: Findings) -> None:
    """Look at every secret and every certificate that the site's file names."""
    handle_key = site.settings.handle_key
    if handle_key.exists():  # else it is made at first need
        with found.gathered(handle_key):
            read_handle_key(handle_key)
    network = site.settings.network
    secure = "secure" in site.settings.training.aggregations
    if network is None:
        if secure and site.settings.state is not None:
            found.add_at(
                site.file,
                ("training",),
                "training.aggregations has secure, and without a section network there is no "
                "identity to sign with, so 'fedhash-site run' does not start; the other commands "
                "work. Add network, as 'fedhash-site init' writes it",
                "warning",
            )
        return
    with found.gathered(network.identity):
        if not network.identity.exists():
            found.add(network.identity, _NO_KEY)
        elif site.agreement is not None:  # it signs queries, where no secure round is allowed
            site_identity(site.file, site.settings, site.agreement)
        else:
            SiteIdentity.load(network.identity)
    key = _private_key(network.key, found, load_pem_private_key)
    _private_key(network.supernode_key, found, load_ssh_private_key)
    _check_certificate(site, network, key, found)


def _private_key(
    path: Path, found: Findings, load: Callable[..., Any]
) -> ec.EllipticCurvePrivateKey | None:
    if not path.exists():
        found.add(path, _NO_KEY)
        return None
    with found.gathered(path):
        content = read_private_file(path)
        try:
            key = load(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            found.add(
                path,
                f"this is no whole, unencrypted private key ({error}); restore it from a copy, or "
                "move it away, make another with 'fedhash-site init' and be enrolled anew",
            )
            return None
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key
        found.add(path, "this is no ECDSA key; move it away and make one with 'fedhash-site init'")
    return None


def _check_certificate(
    site: CheckedSite,
    network: NetworkSettings,
    key: ec.EllipticCurvePrivateKey | None,
    found: Findings,
) -> None:
    path, now = network.certificate, datetime.now(UTC)
    missing = [each for each in (path, network.ca) if not each.exists()]
    for each in missing:
        found.add(each, f"there is no such file; {TAKE_WELCOME}")
    if missing:
        return
    with found.gathered(path):
        certificate = read_regular_file(path, _LARGEST_PEM_BYTES)
        authority = read_regular_file(network.ca, _LARGEST_PEM_BYTES)
        with found.gathered(path):
            check_certificate(certificate, authority, now)
            if expiry(certificate) < now + _SOON:
                end = f"{expiry(certificate):%Y-%m-%d}"
                message = f"the certificate expires on {end}; ask the coordinator for a new one"
                found.add(path, message, "warning")
        # more than one of these may be wrong, and an expired one may be of another site as well
        peer = peer_of(certificate)
        if (peer.role, peer.name) != ("site", site.settings.name):
            found.add(
                path,
                f"the certificate is of the {peer.role} {peer.name!r}, this site's name is "
                f"{site.settings.name!r}; {TAKE_WELCOME} for this site, or correct its name in "
                f"{site.file}",
            )
        if site.agreement is not None and peer.consortium != site.agreement.name:
            found.add(
                path,
                f"the certificate is of the consortium {peer.consortium!r}, the agreement "
                f"{site.settings.agreement} is of {site.agreement.name!r}; {TAKE_WELCOME} of one "
                "consortium",
            )
        (parsed,) = x509.load_pem_x509_certificates(certificate)
        if key is not None and parsed.public_key() != key.public_key():
            found.add(
                path,
                f"the certificate is not of the key {network.key}; restore the key that was "
                "enrolled, or send request.json again and be enrolled anew with --replace",
            )
