"""Masks: uniform words that hide a site's vector and cancel in the sum.

1. A mask is the keystream of AES-256 in counter mode as GCM defines it (NIST SP 800-38D: counter
   blocks 2, 3, ... behind a nonce of zeros), read as little-endian words, so it is uniform over the
   ring as far as anyone can tell. GCM and not bare CTR, since OpenSSL makes its keystream a quarter
   faster where the processor has VAES; its tag is never asked for.
2. A key masks one vector. It comes from a secret by HKDF-SHA256 (RFC 5869) whose info names the
   session and the pair; two masks under one key would cancel and show a difference of two vectors.
3. The keystream is never stored whole: each chunk is added to the vector while both are in the
   processor's cache, so extra memory stays below 2 MiB however long the vector is.

    >>> add_masks(words, [(mask_key(shared_secret, b"session, pair"), +1)])   # at one site
    >>> add_masks(words, [(mask_key(shared_secret, b"session, pair"), -1)])   # at the other
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedhash.secagg.packing import Words

__all__ = ["KEY_BYTES", "add_masks", "keystream", "mask_key"]

KEY_BYTES = 32
_NONCE = bytes(12)  # a key makes one keystream
_CHUNK_BYTES = 1 << 18  # vector, zeros and keystream of a chunk fit the second-level cache


def mask_key(secret: bytes, info: bytes) -> bytes:
    """The 32-byte key of one mask, by HKDF-SHA256 without salt.

    Args:
        secret: An X25519 shared secret or 32 random bytes.
        info: Names the one use of the key.
    """
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def keystream(key: bytes) -> CipherContext:
    """The key's stream from its beginning: what the context encrypts zeros to.

    Raises:
        ValueError: The key is not 32 bytes.
    """
    return Cipher(AES256(key), GCM(_NONCE)).encryptor()


def add_masks(accumulator: Words, masks: Sequence[tuple[bytes, int]]) -> None:
    """Add masks to the accumulator in place, modulo the words' size.

    Args:
        accumulator: Words of the ring.
        masks: For each mask its 32-byte key, and +1 to add or -1 to subtract it.

    Raises:
        ValueError: A key is not 32 bytes; nothing was added.
    """
    streams = [(keystream(key), sign) for key, sign in masks]
    zeros = memoryview(bytes(_CHUNK_BYTES))
    chunk = np.empty(_CHUNK_BYTES // accumulator.itemsize, accumulator.dtype)
    for start in range(0, len(accumulator), len(chunk)):
        part = accumulator[start : start + len(chunk)]
        mask = chunk[: len(part)]
        for stream, sign in streams:
            stream.update_into(zeros[: mask.nbytes], mask.view(np.uint8).data)
            (np.add if sign > 0 else np.subtract)(part, mask, out=part)
