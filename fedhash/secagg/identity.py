"""A site's enrolled identity: an Ed25519 key (RFC 8032) that signs its round keys.

The public half stands in the consortium's roster, so a coordinator that swaps keys is found out.
The private half is a PEM file (PKCS #8, not encrypted: the daemon starts without an operator)
that only its owner may read. A file is whole or absent, and a key is never overwritten.

    >>> identity = SiteIdentity.generate()
    >>> identity.save(Path("identity.pem"))
    >>> verify_signature(identity.public_hex, identity.sign(b"keys"), b"keys")
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedhash.errors import ConfigurationError, Problem, RefusedError
from fedhash.private_file import read_private_file, write_private_file

__all__ = ["SiteIdentity", "verify_signature"]


class SiteIdentity:
    """The private key of one site."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> SiteIdentity:
        """A new identity from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> SiteIdentity:
        """The identity of a 32-byte seed: for simulations only, where nothing is secret.

        Raises:
            ValueError: The seed has another length.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> SiteIdentity:
        """Read what `save` wrote.

        Raises:
            ConfigurationError: Others may read the file, or it holds no Ed25519 key.
            StorageError: The operating system refuses to read it.
        """
        content = read_private_file(path)
        try:
            key = load_pem_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise _wrong(
                path,
                "this is no whole, unencrypted PEM private key; restore the file from a copy "
                "or enrol a new key",
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise _wrong(
                path, f"this is a {type(key).__name__}, expected an Ed25519 key; enrol a new key"
            )
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key for its owner alone.

        Raises:
            ConfigurationError: There is a file already; it stays as it is.
            StorageError: The operating system refuses to write.
        """
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private_file(path, pem)

    @property
    def public_hex(self) -> str:
        """The public key for the roster, as 64 hex digits."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, 64 bytes; one message has one signature."""
        return self._key.sign(message)


def verify_signature(public_hex: str, signature: bytes, message: bytes) -> None:
    """Check that the holder of the identity `public_hex` signed the message.

    Raises:
        RefusedError: It did not ("bad_signature"), or `public_hex` is no key ("bad_identity").
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
    except ValueError as error:
        raise RefusedError(
            "bad_identity",
            f"{public_hex[:80]!r} is no Ed25519 public key of 64 hex digits; correct the roster",
        ) from error
    try:
        key.verify(signature, message)
    except InvalidSignature as error:
        raise RefusedError(
            "bad_signature",
            f"the signature is not that of the identity {public_hex}; someone changed the message "
            f"or the roster has another key of this site",
        ) from error


def _wrong(path: Path, message: str) -> ConfigurationError:
    return ConfigurationError([Problem(path, None, message)])
