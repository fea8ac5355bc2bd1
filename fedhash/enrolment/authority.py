"""The consortium's certificate authority, which issues the certificates of its members.

1. One authority, path length 0: it signs members, and no member can sign another one.
2. Sites and the coordinator's own commands are TLS clients; gateway, SuperLink and router are TLS
   servers and carry the names and addresses of their machine as well. Neither can play the other.
3. A site makes its own key and sends a request that proves that it holds it. The authority takes
   the key from the request, and the name from whoever enrols.

    >>> authority = Authority.generate("thorax")
    >>> key, certificate = authority.issue("site", "hospital-a")
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhash.enrolment.certificates import LARGEST_PEM_BYTES, read_certificate
from fedhash.enrolment.names import SERVERS, Role, member_uri, uri_parts
from fedhash.enrolment.signing_request import request_key
from fedhash.errors import CertificateError, StorageError
from fedhash.private_file import read_private_file, write_private_file
from fedhash.regular_file import read_regular_file

__all__ = ["Authority"]

_AUTHORITY_DAYS = 3650
_MEMBER_DAYS = 730
_SKEW = timedelta(hours=1)  # by so much a member's clock may be behind the authority's
_LONGEST_COMMON_NAME_BYTES = 64  # ub-common-name, RFC 5280 appendix A.1


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
        uri, subject = member_uri(consortium), _common_name(consortium)
        start = now or datetime.now(UTC)
        builder = _builder(subject, subject, key.public_key(), start, _AUTHORITY_DAYS)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(_names(uri, ()), critical=False)
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
            found = read_certificate(read_regular_file(certificate, LARGEST_PEM_BYTES))
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
        return cls(uri_parts(found, 1)[0], private, found)

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
        server = role in SERVERS
        if server != bool(hosts):
            raise CertificateError(
                f"a {role} {'needs the names or addresses' if server else 'has no names'} of its "
                "machine in the certificate"
            )
        uri = member_uri(self.consortium, role, name)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        issuer, public = self._certificate.subject, self._key.public_key()
        start = now or datetime.now(UTC)
        last = self._certificate.not_valid_after_utc
        return (
            _builder(_common_name(name), issuer, key, start, days, last)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(_names(uri, hosts), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False
            )
            .sign(self._key, SHA256())
            .public_bytes(Encoding.PEM)
        )


def _common_name(name: str) -> x509.Name:
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


def _names(uri: str, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
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


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
