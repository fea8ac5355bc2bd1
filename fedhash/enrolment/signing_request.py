"""A request for a certificate (PKCS #10, RFC 2986), which proves that its sender holds the key.

>>> request_key(new_request(key)) == key.public_key()
True
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from fedhash.enrolment.certificates import LARGEST_PEM_BYTES
from fedhash.errors import CertificateError

__all__ = ["new_request", "request_key"]


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
    if len(csr_pem) > LARGEST_PEM_BYTES:
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
