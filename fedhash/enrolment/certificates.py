"""The certificates by which the members of a consortium know each other.

1. X.509 v3 (RFC 5280). Who somebody is stands in one URI (`fedhash.enrolment.names`). The common
   name is for people and is never read.
2. A certificate counts when the consortium's authority issued it, for the use that the member's
   role has, and it is valid now.
3. The fingerprint is the SHA-256 of the certificate. A server takes the one that was enrolled and
   no other, so a certificate that was replaced or struck off is refused at once.

    >>> check_certificate(certificate, authority.certificate_pem, datetime.now(UTC)).name
    'hospital-a'
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedhash.enrolment.names import ROLES, SERVERS, Role, uri_parts
from fedhash.errors import CertificateError

__all__ = [
    "LARGEST_PEM_BYTES",
    "Peer",
    "check_certificate",
    "expiry",
    "peer_of",
    "read_certificate",
    "serial_number",
]

LARGEST_PEM_BYTES = 1 << 16


@dataclass(frozen=True)
class Peer:
    """Whom a certificate names.

    Attributes:
        consortium: Its name.
        role: What the peer may do.
        name: The site's name, or that of the machine or the person.
        fingerprint: SHA-256 of the certificate's DER form, 64 hex digits.
    """

    consortium: str
    role: Role
    name: str
    fingerprint: str


def peer_of(certificate_pem: bytes) -> Peer:
    """Whom a certificate names; that it is genuine, the TLS handshake or `check_certificate` shows.

    Raises:
        CertificateError: It is no certificate, or names nobody of a consortium, or several.
    """
    certificate = read_certificate(certificate_pem)
    consortium, role, name = uri_parts(certificate, 3)
    for known in ROLES:
        if role == known:
            der = certificate.public_bytes(Encoding.DER)
            return Peer(consortium, known, name, hashlib.sha256(der).hexdigest())
    raise CertificateError(
        f"the certificate has the role {role!r}; the roles are {', '.join(ROLES)}"
    )


def check_certificate(certificate_pem: bytes, ca_pem: bytes, now: datetime) -> Peer:
    """Whom a certificate names, once chain, dates and usage have been checked.

    Args:
        certificate_pem: The member's.
        ca_pem: The authority's.
        now: An aware date.

    Raises:
        CertificateError: Anything of it is wrong.
    """
    peer, authority = peer_of(certificate_pem), read_certificate(ca_pem)
    certificate = read_certificate(certificate_pem)
    for whose, each in (("authority", authority), (f"{peer.role} {peer.name}", certificate)):
        begin, end = each.not_valid_before_utc, each.not_valid_after_utc
        if now < begin:
            raise CertificateError(
                f"the certificate of the {whose} is valid from {begin:%Y-%m-%d %H:%M} UTC, and "
                f"here it is {now.astimezone(UTC):%Y-%m-%d %H:%M} UTC; correct this machine's clock"
            )
        if now > end:
            raise CertificateError(
                f"the certificate of the {whose} expired on {end:%Y-%m-%d %H:%M} UTC; "
                "ask the coordinator for a new one, or correct this machine's clock"
            )
    if uri_parts(authority, 1) != [peer.consortium]:
        raise CertificateError(
            f"the certificate is of the consortium {peer.consortium!r}, the authority of another; "
            "take both from the same coordinator"
        )
    policy = PolicyBuilder().store(Store([authority])).time(now)
    try:
        if peer.role in SERVERS:
            policy.build_server_verifier(_host(certificate)).verify(certificate, [])
        else:
            policy.build_client_verifier().verify(certificate, [])
    except (VerificationError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"the certificate of the {peer.role} {peer.name} was not issued by this authority, or "
            f"not for this use ({error}); take both from the same coordinator"
        ) from error
    return peer


def serial_number(certificate_pem: bytes) -> str:
    """The serial number as nginx writes it: upper-case hex digits, an even number of them."""
    digits = f"{read_certificate(certificate_pem).serial_number:X}"
    return digits.zfill(len(digits) + len(digits) % 2)


def expiry(certificate_pem: bytes) -> datetime:
    """When a certificate stops being valid."""
    return read_certificate(certificate_pem).not_valid_after_utc


def read_certificate(pem: bytes) -> x509.Certificate:
    """The one certificate of a PEM file.

    Raises:
        CertificateError: It holds none, or several.
    """
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem[:LARGEST_PEM_BYTES])
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"this is not one certificate in PEM form: {error}; take the file from the coordinator"
        ) from error
    return certificate


def _host(certificate: x509.Certificate) -> x509.DNSName | x509.IPAddress:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for name in names:
        if isinstance(name, x509.DNSName | x509.IPAddress):
            return name
    raise CertificateError("the certificate of a server names no machine; issue a new one")
