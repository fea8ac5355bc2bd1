"""What a site alone knows in one round: two private keys, the seed of its own mask, shares.

1. Made from the operating system's randomness, kept in memory only, for one round.
2. The masking key and the seed are shared among the neighbours; a share of the seed opens when
   the site's vector arrived, a share of the key when it did not, and never both.

    >>> secrets = RoundSecrets("hospital-a", identity, "run-7", 12)
    >>> secrets.public.keys.shape
    (64,)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedhash.secagg.graph import neighbours
from fedhash.secagg.identity import SiteIdentity
from fedhash.secagg.key_agreement import exchange, pair_mask_key, seal, self_mask_key, unseal
from fedhash.secagg.roster import SECRET_BYTES, KeyRoster, RoundKeys, SealedShares
from fedhash.secagg.shamir import split

__all__ = ["RoundSecrets", "mask_sign"]

_PUBLIC_BYTES = 32


class RoundSecrets:
    """The secrets of one site in one round.

    Attributes:
        public: The signed public keys.
        run_id: The run.
        round_number: The round.
    """

    def __init__(self, site: str, identity: SiteIdentity, run_id: str, round_number: int) -> None:
        self.run_id = run_id
        self.round_number = round_number
        self._site = site
        self._sealing_key = X25519PrivateKey.generate()
        self._masking_key = X25519PrivateKey.generate()
        self._seed = os.urandom(SECRET_BYTES)
        keys = b"".join(
            key.public_key().public_bytes_raw() for key in (self._sealing_key, self._masking_key)
        )
        signature = identity.sign(RoundKeys.signed_text(run_id, round_number, site, keys))
        self.public = RoundKeys(_array(keys), _array(signature))
        self._received: dict[str, bytes] = {}
        self.session = b""
        self.neighbours: tuple[str, ...] = ()
        self._channels: dict[str, bytes] = {}

    def share(self, roster: KeyRoster) -> SealedShares:
        """Join the roster's session: split both secrets among the neighbours.

        Raises:
            RefusedError: A key of the roster is of low order.
        """
        self.session = roster.session(self.run_id, self.round_number)
        self.roster = roster
        around = neighbours(roster.sites, roster.degree, self.session)
        self.neighbours = around[self._site]
        # of the whole graph, n x k names, this is all that is needed later
        self.rows = {other: around[other].index(self._site) for other in self.neighbours}
        seed_shares = split(self._seed, roster.threshold, roster.degree)
        key_shares = split(self._masking_key.private_bytes_raw(), roster.threshold, roster.degree)
        self._channels = {
            neighbour: exchange(self._sealing_key, roster.keys_of(neighbour)[:_PUBLIC_BYTES])
            for neighbour in self.neighbours
        }
        sealed, commitments = [], []
        for (neighbour, channel), of_seed, of_key in zip(
            self._channels.items(), seed_shares, key_shares, strict=True
        ):
            content = of_seed.tobytes() + of_key.tobytes()
            sealed.append(_array(seal(content, channel, self.session, self._site, neighbour)))
            commitments.append([_digest(of_seed.tobytes()), _digest(of_key.tobytes())])
        return SealedShares(np.stack(sealed), np.array(commitments), _digest(self._seed))

    def receive(self, sealed: Mapping[str, np.ndarray]) -> None:
        """Open and keep what the neighbours have sealed for this site.

        Args:
            sealed: Neighbour to the bytes that it addressed to this site. Bytes that do not open
                are dropped: that neighbour counts as one that did not share with this site.
        """
        for sender, content in sealed.items():
            channel = self._channels[sender]
            shares = unseal(content.tobytes(), channel, self.session, sender, self._site)
            if shares is not None and len(shares) == 2 * SECRET_BYTES:
                self._received[sender] = shares

    @property
    def readable(self) -> frozenset[str]:
        """The neighbours whose shares this site holds."""
        return frozenset(self._received)

    def masks(self, sharers: Sequence[str], asked: bytes) -> list[tuple[bytes, int]]:
        """Keys and signs of the masks on this site's vector: its own, and one a sharing neighbour.

        Args:
            sharers: The sites that shared.
            asked: `Digests.asked` of the request to mask.

        Raises:
            RefusedError: A key of the roster is of low order.
        """
        masks = [(self_mask_key(self._seed, self.session, self._site), 1)]
        for other in set(self.neighbours) & set(sharers):
            public = self.roster.keys_of(other)[_PUBLIC_BYTES:]
            key = pair_mask_key(self._masking_key, public, self.session, asked, self._site, other)
            masks.append((key, mask_sign(self._site, other)))
        return masks

    def open(self, survivors: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
        """The owners whose shares this site holds, and of each one share: of seed or of key."""
        owners = tuple(sorted(self._received))
        rows = [
            self._received[owner][:SECRET_BYTES]
            if owner in survivors
            else self._received[owner][SECRET_BYTES:]
            for owner in owners
        ]
        return owners, _array(b"".join(rows)).reshape(len(owners), SECRET_BYTES)


def mask_sign(site: str, other: str) -> int:
    """The sign with which `site` adds the mask that it shares with `other`."""
    return 1 if site < other else -1


def _array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8)


def _digest(content: bytes) -> np.ndarray:
    return _array(hashlib.sha256(content).digest())
