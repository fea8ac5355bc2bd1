"""What a site sends to be enrolled: its public keys, signed by its identity.

1. A request holds no secret. Whoever carries it can read it, and cannot change it: the signature of
   the identity covers all of it.
2. It does not say who sent it. The coordinator compares its digest with the one that the site reads
   out, over the telephone for instance, before enrolling it.
3. The name is a folder's name at the coordinator and is kept narrow for that.

    >>> request = read_request(Path("request.json"))
    >>> request.name, request.digest()
    ('hospital-a', '6b1f...')
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from pydantic import Field, ValidationError

from fedhash.configuration import Settings
from fedhash.enrolment.signing_request import new_request, request_key
from fedhash.errors import CertificateError, RefusedError, StorageError
from fedhash.regular_file import read_regular_file
from fedhash.rounds.messages import canonical_json
from fedhash.secagg.ed25519 import key_fault
from fedhash.secagg.identity import SiteIdentity, verify_signature

__all__ = ["ENROLLED_NAME", "SiteRequest", "make_request", "read_request"]

ENROLLED_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_LARGEST_BYTES = 1 << 14  # a request has about one kilobyte
_PURPOSE = b"fedhash site request 1\n"  # the identity signs other things as well


class SiteRequest(Settings):
    """A site's request.

    Attributes:
        version: Of this form.
        name: The name that the site wants.
        certificate_request: For its TLS certificate: PKCS #10, PEM, ECDSA on P-256.
        supernode_key: Of its Flower SuperNode: ECDSA on P-384, one line of OpenSSH.
        identity: Its Ed25519 key for secure aggregation, 64 hex digits.
        signature: By the identity over everything else, 128 hex digits.
    """

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=ENROLLED_NAME)]
    certificate_request: Annotated[str, Field(max_length=4096)]
    supernode_key: Annotated[str, Field(pattern=r"^ecdsa-sha2-nistp384 [A-Za-z0-9+/=]{1,400}$")]
    identity: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    def digest(self) -> str:
        """SHA-256 of the request, 64 hex digits, for two people to compare."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()

    def verify(self) -> None:
        """Check that the keys are keys of the right kind and that the identity signed them.

        Raises:
            CertificateError: They are not, or it did not.
        """
        request_key(self.certificate_request.encode())
        try:
            supernode = load_ssh_public_key(self.supernode_key.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise CertificateError(
                f"the SuperNode's key of {self.name} is none: {error}; have the site run "
                "'fedhash-site init' again"
            ) from error
        if not isinstance(supernode, ec.EllipticCurvePublicKey):
            raise CertificateError(f"the SuperNode's key of {self.name} is no ECDSA key")
        # one key has one spelling, or a key of another site or a struck one would pass as new
        if supernode.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() != (
            self.supernode_key
        ):
            raise CertificateError(
                f"the SuperNode's key of {self.name} is not written as OpenSSH writes it; have the "
                "site run 'fedhash-site init' again"
            )
        if fault := key_fault(bytes.fromhex(self.identity)):
            raise CertificateError(f"the identity of {self.name} {fault}")
        try:
            verify_signature(self.identity, bytes.fromhex(self.signature), _signed(self))
        except RefusedError as error:
            raise CertificateError(
                f"the request of {self.name} is not signed by its own identity: it was changed on "
                "the way; have the site send request.json again"
            ) from error


def make_request(
    name: str, tls_key: ec.EllipticCurvePrivateKey, supernode_key: str, identity: SiteIdentity
) -> SiteRequest:
    """The signed request of a site; `supernode_key` is the public one.

    Raises:
        CertificateError: The name is none that a site can be enrolled under.
    """
    csr = new_request(tls_key).decode()
    try:
        unsigned = SiteRequest(
            name=name,
            certificate_request=csr,
            supernode_key=supernode_key,
            identity=identity.public_hex,
            signature=128 * "0",
        )
    except ValidationError as error:
        raise CertificateError(
            f"{name[:80]!r} cannot be enrolled; write a name of letters, digits, '.', '_' and '-', "
            "starting with a letter or digit, at most 63, such as 'hospital-a'"
        ) from error
    return unsigned.model_copy(update={"signature": identity.sign(_signed(unsigned)).hex()})


def read_request(path: Path) -> SiteRequest:
    """Read and verify a request.

    Raises:
        CertificateError: It is no request, or one that does not verify.
        StorageError: The operating system refuses to read it.
    """
    try:
        content = read_regular_file(path, _LARGEST_BYTES)
    except OSError as error:
        raise StorageError(error, path) from error
    try:
        request = SiteRequest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CertificateError(
            f"{path} is no site's request ({place + ': ' if place else ''}{first['msg']}); "
            "take the request.json that 'fedhash-site init' wrote"
        ) from error
    request.verify()
    return request


def _signed(request: SiteRequest) -> bytes:
    fields = request.model_dump(mode="json", exclude={"signature"})
    return _PURPOSE + canonical_json(fields).encode()
