"""The consortium's certificate authority and the certificates by which its members know each other.

1. X.509 v3 (RFC 5280). Who somebody is stands in one URI of the subject alternative name,
   ``fedhash://CONSORTIUM/ROLE/NAME``, each part percent-encoded (RFC 3986). The common name is for
   people and is never read.
2. One authority, path length 0: it signs members, and no member can sign another one.
3. Sites and the coordinator's own commands are TLS clients; gateway, SuperLink and router are TLS
   servers and carry the names and addresses of their machine as well. Neither can play the other.
4. A member makes its own key and sends a request that proves that it holds it. The authority takes
   the key from the request, and the name from whoever enrols.
5. The fingerprint is the SHA-256 of the certificate. A server takes the one that was enrolled and
   no other, so a certificate that was replaced or struck off is refused at once.

    >>> authority = Authority.generate("thorax")
    >>> key, certificate = authority.issue("site", "hospital-a")
    >>> check_certificate(certificate, authority.certificate_pem, datetime.now(UTC)).name
    'hospital-a'
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedhash.errors import CertificateError, StorageError
from fedhash.private_file import read_private_file, write_private_file
from fedhash.regular_file import read_regular_file

__all__ = [
    "Authority",
    "Peer",
    "Role",
    "check_certificate",
    "expiry",
    "new_request",
    "peer_of",
    "request_key",
    "serial_number",
]

Role = Literal["site", "coordinator", "gateway", "superlink", "router"]

_ROLES: tuple[Role, ...] = get_args(Role)
_SERVERS = frozenset({"gateway", "superlink", "router"})
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,200}")  # as fedhash.agreement.SiteName
_AUTHORITY_DAYS = 3650
_MEMBER_DAYS = 730
_SKEW = timedelta(hours=1)  # by so much a member's clock may be behind the authority's
_LONGEST_COMMON_NAME_BYTES = 64  # ub-common-name, RFC 5280 appendix A.1
_LARGEST_PEM_BYTES = 1 << 16


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


class Authority:
    """The certificate authority of one consortium.

    Attributes:
        consortium: Its name.
        certificate_pem: What every member trusts.
    """

    def __init__(
        self, consortium: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> None:
        self.consortium = consortium
        self._key = key
        self._certificate = certificate
        self.certificate_pem = certificate.public_bytes(Encoding.PEM)

    @classmethod
    def generate(cls, consortium: str, *, now: datetime | None = None) -> Authority:
        """A new authority from the operating system's randomness.

        Raises:
            CertificateError: The name is no name.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _common_name(consortium)
        start = now or datetime.now(UTC)
        builder = _builder(subject, subject, key.public_key(), start, _AUTHORITY_DAYS)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(_names([f"fedhash://{_quoted(consortium)}"], ()), critical=False)
            .sign(key, SHA256())
        )
        return cls(consortium, key, certificate)

    def save(self, key: Path, certificate: Path) -> None:
        """Write the key for its owner alone, and the certificate.

        Raises:
            ConfigurationError: There is a key already; both files stay as they are.
            StorageError: The operating system refuses to write.
        """
        write_private_file(key, _key_pem(self._key))
        try:
            certificate.write_bytes(self.certificate_pem)
        except OSError as error:
            raise StorageError(error, certificate) from error

    @classmethod
    def load(cls, key: Path, certificate: Path) -> Authority:
        """Read what `save` wrote.

        Raises:
            CertificateError: The files are damaged or do not belong together.
            ConfigurationError: Others may use the key.
            StorageError: The operating system refuses to read.
        """
        secret = read_private_file(key)
        try:
            found = _certificate(read_regular_file(certificate, _LARGEST_PEM_BYTES))
        except OSError as error:
            raise StorageError(error, certificate) from error
        try:
            private = load_pem_private_key(secret, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise CertificateError(
                f"{key} is no whole, unencrypted private key; restore it from a copy"
            ) from error
        if (
            not isinstance(private, ec.EllipticCurvePrivateKey)
            or found.public_key() != private.public_key()
        ):
            raise CertificateError(
                f"{key} is not the key of {certificate}; restore the pair from one copy"
            )
        return cls(_parts(found, 1)[0], private, found)

    def issue(
        self,
        role: Role,
        name: str,
        *,
        hosts: Sequence[str] = (),
        days: int = _MEMBER_DAYS,
        now: datetime | None = None,
    ) -> tuple[bytes, bytes]:
        """A new key and its certificate.

        Args:
            role: What the holder may do.
            name: Its name.
            hosts: DNS names and IP addresses of a server.
            days: The certificate's life, at most the authority's own.
            now: Its beginning; default: now.

        Returns:
            The private key (PKCS #8) and the certificate, both PEM.

        Raises:
            CertificateError: A name is no name, or a server has no host.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        return _key_pem(key), self._sign(key.public_key(), role, name, hosts, days, now)

    def sign(
        self, csr_pem: bytes, site: str, *, days: int = _MEMBER_DAYS, now: datetime | None = None
    ) -> bytes:
        """The certificate of a site whose key stays there.

        Args:
            csr_pem: The site's request (PKCS #10). Only its key is used.
            site: The name under which it is enrolled.
            days: The certificate's life, at most the authority's own.
            now: Its beginning; default: now.

        Raises:
            CertificateError: The request is none, or its sender does not hold the key, or the key
                is no ECDSA key on P-256.
        """
        return self._sign(request_key(csr_pem), "site", site, (), days, now)

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        role: Role,
        name: str,
        hosts: Sequence[str],
        days: int,
        now: datetime | None,
    ) -> bytes:
        server = role in _SERVERS
        if server != bool(hosts):
            raise CertificateError(
                f"a {role} {'needs the names or addresses' if server else 'has no names'} of its "
                "machine in the certificate"
            )
        uri = f"fedhash://{_quoted(self.consortium)}/{role}/{_quoted(name)}"
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        issuer, public = self._certificate.subject, self._key.public_key()
        start = now or datetime.now(UTC)
        last = self._certificate.not_valid_after_utc
        return (
            _builder(_common_name(name), issuer, key, start, days, last)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(_names([uri], hosts), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False
            )
            .sign(self._key, SHA256())
            .public_bytes(Encoding.PEM)
        )


def new_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The request (PKCS #10, PEM) for a certificate of `key`; whose it is the enrolment says."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
    )


def request_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a request, whose sender was shown to hold it.

    Raises:
        CertificateError: It is no request of an ECDSA key on P-256, or its signature is wrong.
    """
    if len(csr_pem) > _LARGEST_PEM_BYTES:
        raise CertificateError("the certificate request is too long; have the site make a new one")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"this is no certificate request (PKCS #10, PEM): {error}; have the site make a new one"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError(
            "the certificate request is not of an ECDSA key on P-256; 'fedhash-site init' makes one"
        )
    if not proven:
        raise CertificateError(
            "the certificate request is not signed by its own key, so its sender may not hold the "
            "key; have the site make a new one"
        )
    return key


def peer_of(certificate_pem: bytes) -> Peer:
    """Whom a certificate names; that it is genuine, the TLS handshake or `check_certificate` shows.

    Raises:
        CertificateError: It is no certificate, or names nobody of a consortium, or several.
    """
    certificate = _certificate(certificate_pem)
    consortium, role, name = _parts(certificate, 3)
    for known in _ROLES:
        if role == known:
            der = certificate.public_bytes(Encoding.DER)
            return Peer(consortium, known, name, hashlib.sha256(der).hexdigest())
    raise CertificateError(
        f"the certificate has the role {role!r}; the roles are {', '.join(_ROLES)}"
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
    peer, authority = peer_of(certificate_pem), _certificate(ca_pem)
    certificate = _certificate(certificate_pem)
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
    if _parts(authority, 1) != [peer.consortium]:
        raise CertificateError(
            f"the certificate is of the consortium {peer.consortium!r}, the authority of another; "
            "take both from the same coordinator"
        )
    policy = PolicyBuilder().store(Store([authority])).time(now)
    try:
        if peer.role in _SERVERS:
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
    digits = f"{_certificate(certificate_pem).serial_number:X}"
    return digits.zfill(len(digits) + len(digits) % 2)


def expiry(certificate_pem: bytes) -> datetime:
    """When a certificate stops being valid."""
    return _certificate(certificate_pem).not_valid_after_utc


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        (certificate,) = x509.load_pem_x509_certificates(pem[:_LARGEST_PEM_BYTES])
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"this is not one certificate in PEM form: {error}; take the file from the coordinator"
        ) from error
    return certificate


def _parts(certificate: x509.Certificate, count: int) -> list[str]:
    """The decoded parts of the certificate's fedhash URI: consortium, role and name."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise CertificateError(f"the certificate names nobody: {error}") from error
    if len(uris) != 1 or not uris[0].startswith("fedhash://"):
        raise CertificateError(
            "the certificate names nobody of a consortium: expected exactly one URI, "
            f"fedhash://CONSORTIUM/ROLE/NAME, found {uris[:3]}"
        )
    encoded = uris[0].removeprefix("fedhash://").split("/")
    parts = [unquote(part, errors="replace") for part in encoded]
    # one name has one spelling: whoever compares URIs and whoever compares names must agree
    if len(parts) != count or not all(
        _NAME.fullmatch(part) and _quoted(part) == raw
        for part, raw in zip(parts, encoded, strict=True)
    ):
        raise CertificateError(
            f"the certificate has the URI {uris[0][:300]!r}, which is not in the form of "
            "fedhash://CONSORTIUM/ROLE/NAME"
        )
    return parts


def _quoted(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise CertificateError(
            f"{name[:80]!r} is no name; write 1 to 200 characters without control characters"
        )
    try:
        return quote(name, safe="")
    except UnicodeEncodeError as error:
        raise CertificateError(f"{name[:80]!r} is no name: it is no whole text") from error


def _common_name(name: str) -> x509.Name:
    _quoted(name)
    shown = name.encode()[:_LONGEST_COMMON_NAME_BYTES].decode(errors="ignore")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, shown)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    start: datetime,
    days: int,
    last: datetime | None = None,
) -> x509.CertificateBuilder:
    end = start + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _SKEW)
        .not_valid_after(end if last is None else min(end, last))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(uris: Sequence[str], hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not re.fullmatch(r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", host):
                raise CertificateError(
                    f"{host[:80]!r} is neither a host name nor an IP address; name the machine as "
                    "the sites reach it, such as coordinator.example.org"
                ) from None
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _host(certificate: x509.Certificate) -> x509.DNSName | x509.IPAddress:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for name in names:
        if isinstance(name, x509.DNSName | x509.IPAddress):
            return name
    raise CertificateError("the certificate of a server names no machine; issue a new one")


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
