"""Keys that two sites share and nobody else has, and what they are used for.

Every key is derived by HKDF-SHA256 (RFC 5869) from an X25519 secret (RFC 7748) or from a random
seed, with the purpose, the session and the names of the two sites in its info, so no key serves
two purposes, two rounds or two directions. Shares are sealed with ChaCha20-Poly1305 (RFC 8439).

    >>> key = pair_mask_key(own_private, their_public, session, "hospital-a", "hospital-b")
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from jaxtyping import UInt8

from fedhash.errors import RefusedError
from fedhash.rounds.messages import canonical_json
from fedhash.secagg.masks import mask_key
from fedhash.secagg.roster import PROTOCOL

__all__ = ["exchange", "fingerprint", "pair_mask_key", "seal", "self_mask_key", "unseal"]

_NONCE_BYTES = 12


def pair_mask_key(
    own: X25519PrivateKey, other: bytes, session: bytes, asked: bytes, one: str, two: str
) -> bytes:
    """The 32-byte key of the mask between two sites; the same at both, in any order of names.

    The masks of two sites cancel only if both were asked for the same thing: a coordinator that
    shows them other models, other cohorts or other sharers gets noise. Different models would
    otherwise single out one site's update (Pasquini et al. 2022, "Eluding secure aggregation in
    federated learning via model inconsistency", CCS).

    Args:
        own: Masking key of one of the two.
        other: Public masking key of the other.
        session: `KeyRoster.session`.
        asked: `Digests.asked` of the request to mask.
        one: Name of a site.
        two: Name of the other.

    Raises:
        RefusedError: The public key is of low order.
    """
    info = _info("pair mask", session, asked.hex(), *sorted((one, two)))
    return mask_key(exchange(own, other), info)


def self_mask_key(seed: bytes, session: bytes, site: str) -> bytes:
    """The 32-byte key of the mask that a site adds on its own."""
    return mask_key(seed, _info("self mask", session, site))


def seal(content: bytes, shared: bytes, session: bytes, sender: str, receiver: str) -> bytes:
    """Encrypt what only `receiver` may read, in this session, from this sender.

    Args:
        content: The shares.
        shared: `exchange` of the two sites' sealing keys.
        session: `KeyRoster.session`.
        sender: Name of the site that seals.
        receiver: Name of the site that opens.
    """
    nonce = os.urandom(_NONCE_BYTES)
    info = _info("shares", session, sender, receiver)
    return nonce + ChaCha20Poly1305(mask_key(shared, info)).encrypt(nonce, content, info)


def unseal(
    sealed: bytes, shared: bytes, session: bytes, sender: str, receiver: str
) -> bytes | None:
    """Inverse of `seal`; None for bytes that this sender did not seal in this session."""
    info = _info("shares", session, sender, receiver)
    try:
        return ChaCha20Poly1305(mask_key(shared, info)).decrypt(
            sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], info
        )
    except InvalidTag:
        return None


def fingerprint(
    content: np.ndarray, session: bytes, asked: bytes, site: str
) -> UInt8[np.ndarray, " 16"]:
    """An AES-GCM tag (NIST SP 800-38D) that finds damage on the way, ten times as fast as SHA-256.

    It also finds a vector that was made for another request than `asked`, whose masks would not
    come off. Everyone in the session can compute it: it does not find malice, which is TLS's
    business.

    Args:
        content: The masked vector, packed.
        session: `KeyRoster.session`.
        asked: `Digests.asked` of the request to mask.
        site: Name of the site that masked it.
    """
    key = mask_key(session, _info("fingerprint", session, asked.hex(), site))
    return np.frombuffer(AESGCM(key).encrypt(bytes(_NONCE_BYTES), b"", content.data), np.uint8)


def exchange(own: X25519PrivateKey, other: bytes) -> bytes:
    """The X25519 secret of two keys.

    Raises:
        RefusedError: The public key is of low order.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:  # RFC 7748, section 6.1: the all-zero secret is refused
        raise RefusedError("bad_key", "a site's round key is of low order") from error


def _info(purpose: str, session: bytes, *sites: str) -> bytes:
    return canonical_json([PROTOCOL, purpose, session.hex(), *sites]).encode()
