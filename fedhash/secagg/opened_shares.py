"""The coordinator's shares of one sum: as they were sealed, as they are opened, what they unlock.

Opened shares are checked against their owner's commitment and reconstructed secrets against what
the owner published, so a bad share is left out and never ends up in the sum.

    >>> opened = OpenedShares(set_up, survivors)
    >>> opened.take("hospital-b", reply)
    >>> add_masks(words, opened.masks(asked))
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedhash.errors import AggregationError, MessageError
from fedhash.secagg.graph import neighbours
from fedhash.secagg.key_agreement import pair_mask_key, self_mask_key
from fedhash.secagg.messages import UnmaskedReply
from fedhash.secagg.roster import KEY_BYTES, KeyRoster, SealedShares
from fedhash.secagg.round_secrets import mask_sign
from fedhash.secagg.shamir import combine

__all__ = ["OpenedShares", "SetUp"]


@dataclass(frozen=True, eq=False)
class SetUp:
    """Who can be summed in a round: their keys, and the shares that they sealed."""

    run_id: str
    round_number: int
    roster: KeyRoster
    shares: Mapping[str, SealedShares]

    @property
    def session(self) -> bytes:
        """`KeyRoster.session`."""
        return self.roster.session(self.run_id, self.round_number)

    @property
    def sharers(self) -> tuple[str, ...]:
        """The sites that shared, sorted."""
        return tuple(sorted(self.shares))


class OpenedShares:
    """Shares as they arrive, and the masks that they take off."""

    def __init__(self, set_up: SetUp, survivors: Sequence[str]) -> None:
        self._set_up = set_up
        self._survivors = frozenset(survivors)
        roster = set_up.roster
        self._neighbours = neighbours(roster.sites, roster.degree, set_up.session)
        self._shares: defaultdict[str, dict[int, np.ndarray]] = defaultdict(dict)

    def take(self, site: str, reply: UnmaskedReply) -> None:
        """Check and keep a site's shares.

        Raises:
            MessageError: A share is not the one that its owner committed to; the good ones of the
                same reply are kept.
        """
        bad = []
        for owner, share in zip(reply.owners, reply.shares, strict=True):
            around = self._neighbours.get(owner, ())
            if owner not in self._set_up.shares or site not in around:
                bad.append(owner)
                continue
            place = around.index(site)
            kind = 0 if owner in self._survivors else 1
            committed = self._set_up.shares[owner].commitments[place, kind].tobytes()
            if hashlib.sha256(share.tobytes()).digest() == committed:
                self._shares[owner][place + 1] = share
            else:
                bad.append(owner)
        if bad:
            raise MessageError(f"the shares of {', '.join(bad)[:200]} are not those committed to")

    def masks(self, asked: bytes) -> list[tuple[bytes, int]]:
        """Keys and signs that turn the masked sum into the sum.

        Args:
            asked: `Digests.asked` of the request to mask.

        Raises:
            AggregationError: Too few shares of a secret, or an owner shared something else than
                what it published.
        """
        roster, session = self._set_up.roster, self._set_up.session
        masks = []
        for owner in self._set_up.sharers:
            secret = self._secret(owner)
            if owner in self._survivors:
                committed = self._set_up.shares[owner].seed_commitment.tobytes()
                if hashlib.sha256(secret).digest() != committed:
                    raise _inconsistent(owner)
                masks.append((self_mask_key(secret, session, owner), -1))
                continue
            key = X25519PrivateKey.from_private_bytes(secret)
            if key.public_key().public_bytes_raw() != roster.keys_of(owner)[KEY_BYTES // 2 :]:
                raise _inconsistent(owner)
            for other in self._neighbours[owner]:
                if other in self._survivors:
                    public = roster.keys_of(other)[KEY_BYTES // 2 :]
                    mask = pair_mask_key(key, public, session, asked, owner, other)
                    masks.append((mask, -mask_sign(other, owner)))
        return masks

    def _secret(self, owner: str) -> bytes:
        shares, threshold = self._shares[owner], self._set_up.roster.threshold
        if len(shares) < threshold:
            raise AggregationError(
                f"{len(shares)} shares of {owner!r} were opened, {threshold} are needed, so the "
                "sum stays masked"
            )
        chosen = sorted(shares.items())[:threshold]
        return combine([place for place, _ in chosen], np.stack([share for _, share in chosen]))


def _inconsistent(owner: str) -> AggregationError:
    return AggregationError(
        f"{owner!r} shared another secret than it published, so the sum stays masked; "
        "look into that site before it takes part again"
    )
