"""What the sites of a sum show each other: round keys, the roster, sealed shares.

These stand in several messages (`fedhash.secagg.messages`), each as arrays of bytes whose type and
shape are checked.

Shape suffixes: n sites of the roster, k neighbours of a site.

    >>> roster = KeyRoster.from_parts(header, message.arrays)
    >>> roster.session("run-7", 12).hex()
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from fedhash.agreement import SiteName
from fedhash.configuration import Settings
from fedhash.errors import MessageError
from fedhash.rounds.messages import canonical_json

__all__ = [
    "KEY_BYTES",
    "PROTOCOL",
    "SEALED_BYTES",
    "SECRET_BYTES",
    "KeyRoster",
    "RosterHeader",
    "RoundKeys",
    "SealedShares",
    "bytes_of",
]

PROTOCOL = "fedhash secure aggregation 1"
SECRET_BYTES = 32  # a self-mask seed and an X25519 private key (RFC 7748) have this size
KEY_BYTES = 64  # two X25519 public keys: sealing key, then masking key
_SIGNATURE_BYTES = 64  # Ed25519, RFC 8032
_DIGEST_BYTES = 32
# nonce (12), two shares, tag (16) of ChaCha20-Poly1305, RFC 8439
SEALED_BYTES = 12 + 2 * SECRET_BYTES + 16


class RosterHeader(Settings):
    """The part of a key roster that travels in a header."""

    sites: tuple[SiteName, ...] = Field(min_length=1, max_length=1000)
    degree: int = Field(ge=1)
    threshold: int = Field(ge=1)


@dataclass(frozen=True, slots=True, eq=False)
class RoundKeys:
    """A site's public keys of one round, with the signature of its identity.

    Attributes:
        keys: Sealing key and masking key, X25519.
        signature: Ed25519 over `signed_text`.
    """

    keys: UInt8[np.ndarray, " 64"]
    signature: UInt8[np.ndarray, " 64"]

    @staticmethod
    def signed_text(run_id: str, round_number: int, site: str, keys: bytes) -> bytes:
        """What a site signs, so that its keys serve no other run, round or site."""
        return canonical_json([PROTOCOL, run_id, round_number, site, keys.hex()]).encode()

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays of a message."""
        return {"keys": self.keys, "signature": self.signature}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> RoundKeys:
        """Inverse of `arrays`.

        Raises:
            MessageError: An array has another type or shape.
        """
        return cls(
            bytes_of(arrays, "keys", (KEY_BYTES,)),
            bytes_of(arrays, "signature", (_SIGNATURE_BYTES,)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class KeyRoster:
    """Who takes part in a round's secure sum, with their keys, and the graph that they form.

    Attributes:
        sites: Sorted.
        degree: Neighbours of each site, k.
        threshold: Shares that open a secret, t.
        keys: `RoundKeys.keys` in the order of the sites.
        signatures: `RoundKeys.signature` in the order of the sites.
    """

    sites: tuple[str, ...]
    degree: int
    threshold: int
    keys: UInt8[np.ndarray, "n 64"]
    signatures: UInt8[np.ndarray, "n 64"]

    def keys_of(self, site: str) -> bytes:
        """Both public keys of a site."""
        return bytes(self.keys[self.sites.index(site)])

    def session(self, run_id: str, round_number: int) -> bytes:
        """SHA-256 over everything that the sites of this sum must agree on.

        Every secret is derived under it and every share is sealed under it: whoever was shown
        other keys, or keys of an earlier attempt, shares no session with the others.
        """
        text = canonical_json(
            [PROTOCOL, run_id, round_number, list(self.sites), self.keys.tobytes().hex()]
        )
        return hashlib.sha256(text.encode()).digest()

    def header(self) -> RosterHeader:
        """The part that travels in the header."""
        return RosterHeader(sites=self.sites, degree=self.degree, threshold=self.threshold)

    def arrays(self) -> dict[str, np.ndarray]:
        """The part that travels as arrays."""
        return {"roster_keys": self.keys, "roster_signatures": self.signatures}

    @classmethod
    def from_parts(cls, header: RosterHeader, arrays: Mapping[str, np.ndarray]) -> KeyRoster:
        """Inverse of `header` and `arrays`.

        Raises:
            MessageError: The parts do not fit each other.
        """
        sites = header.sites
        if list(sites) != sorted(set(sites)):
            raise MessageError("the sites of a key roster must be sorted and each named once")
        return cls(
            sites,
            header.degree,
            header.threshold,
            bytes_of(arrays, "roster_keys", (len(sites), KEY_BYTES)),
            bytes_of(arrays, "roster_signatures", (len(sites), _SIGNATURE_BYTES)),
        )


@dataclass(frozen=True, slots=True, eq=False)
class SealedShares:
    """A site's shares of its two secrets, one row a neighbour, and how to check them.

    Attributes:
        sealed: Rows that only the neighbour can open, neighbours in the order of their names.
        commitments: SHA-256 of the self-mask share and of the key share of each row.
        seed_commitment: SHA-256 of the self-mask seed.
    """

    sealed: UInt8[np.ndarray, "k 92"]
    commitments: UInt8[np.ndarray, "k 2 32"]
    seed_commitment: UInt8[np.ndarray, " 32"]

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays of a message."""
        return {
            "sealed": self.sealed,
            "commitments": self.commitments,
            "seed_commitment": self.seed_commitment,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], degree: int) -> SealedShares:
        """Inverse of `arrays`.

        Raises:
            MessageError: An array has another type or shape.
        """
        return cls(
            bytes_of(arrays, "sealed", (degree, SEALED_BYTES)),
            bytes_of(arrays, "commitments", (degree, 2, _DIGEST_BYTES)),
            bytes_of(arrays, "seed_commitment", (_DIGEST_BYTES,)),
        )


def bytes_of(
    arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> UInt8[np.ndarray, "..."]:
    """The named array.

    Raises:
        MessageError: There is none, or it is not of bytes in this shape.
    """
    array = arrays.get(name)
    if array is None or array.dtype != np.uint8 or array.shape != shape:
        found = "nothing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise MessageError(f"the array {name!r} must be uint8 of shape {shape}, found {found}")
    return array
