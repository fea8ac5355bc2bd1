"""The messages of secure aggregation, validated field by field.

| stage     | request of the coordinator, the same for every site | reply of a site               |
|-----------|-----------------------------------------------------|-------------------------------|
| advertise | run and round                                       | its signed round keys         |
| share     | the key roster                                      | sealed shares, commitments    |
| mask      | training request, who shared, all sealed shares     | masked vector (+ next keys)   |
| unmask    | who survived (+ the next key roster)                | opened shares (+ next shares) |

The parts in parentheses carry the next round's first two stages, so a round in steady state has
two exchanges. Sealed shares go to every site and open only at the one they are addressed to.

Shape suffixes: n sites of the roster, k neighbours of a site, m sites that shared.

    >>> AdvertiseRequest("run-7", 12).to_message().kind
    'advertise'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from fedhash.agreement import SiteName
from fedhash.configuration import Settings
from fedhash.errors import MessageError
from fedhash.rounds.messages import Message
from fedhash.rounds.training_messages import RunId, TrainRequest, read_header
from fedhash.secagg.roster import (
    SEALED_BYTES,
    SECRET_BYTES,
    KeyRoster,
    RosterHeader,
    RoundKeys,
    SealedShares,
    bytes_of,
)

__all__ = [
    "AdvertiseRequest",
    "KeysReply",
    "MaskRequest",
    "MaskedReply",
    "ShareRequest",
    "SharesReply",
    "UnmaskRequest",
    "UnmaskedReply",
]

_FINGERPRINT_BYTES = 16
_Session = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Header(Settings):
    run_id: RunId
    round_number: int = Field(ge=1)


class _ShareHeader(_Header):
    roster: RosterHeader


class _MaskHeader(Settings):
    train: dict[str, Any]
    session: _Session
    sharers: tuple[SiteName, ...]
    encoding_digest: _Session


class _SessionHeader(_Header):
    session: _Session


class _UnmaskHeader(_SessionHeader):
    survivors: tuple[SiteName, ...]
    following: RosterHeader | None


class _UnmaskedHeader(_SessionHeader):
    owners: tuple[SiteName, ...]
    refusal: str | None = Field(pattern=r"^[^\x00-\x1f\x7f]{0,500}$")


@dataclass(frozen=True, slots=True)
class AdvertiseRequest:
    """Asks for round keys."""

    run_id: str
    round_number: int

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        return _message("advertise", _Header(run_id=self.run_id, round_number=self.round_number))

    @classmethod
    def from_message(cls, message: Message) -> AdvertiseRequest:
        """Validate and type a message.

        Raises:
            MessageError: It is not a well-formed request.
        """
        header = read_header(message, "advertise", _Header)
        _expect_arrays(message, set())
        return cls(header.run_id, header.round_number)


@dataclass(frozen=True, slots=True, eq=False)
class KeysReply:
    """A site's round keys."""

    run_id: str
    round_number: int
    keys: RoundKeys

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        header = _Header(run_id=self.run_id, round_number=self.round_number)
        return _message("keys", header, self.keys.arrays())

    @classmethod
    def from_message(cls, message: Message) -> KeysReply:
        """Validate and type a message.

        Raises:
            MessageError: It is not a well-formed reply.
        """
        header = read_header(message, "keys", _Header)
        _expect_arrays(message, {"keys", "signature"})
        return cls(header.run_id, header.round_number, RoundKeys.from_arrays(message.arrays))


@dataclass(frozen=True, slots=True, eq=False)
class ShareRequest:
    """Shows the sites each other's keys and asks for shares."""

    run_id: str
    round_number: int
    roster: KeyRoster

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        header = _ShareHeader(
            run_id=self.run_id, round_number=self.round_number, roster=self.roster.header()
        )
        return _message("share", header, self.roster.arrays())

    @classmethod
    def from_message(cls, message: Message) -> ShareRequest:
        """Validate and type a message.

        Raises:
            MessageError: It is not a well-formed request.
        """
        header = read_header(message, "share", _ShareHeader)
        _expect_arrays(message, _ROSTER)
        roster = KeyRoster.from_parts(header.roster, message.arrays)
        return cls(header.run_id, header.round_number, roster)


@dataclass(frozen=True, slots=True, eq=False)
class SharesReply:
    """A site's sealed shares."""

    run_id: str
    round_number: int
    session: str
    shares: SealedShares

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        header = _SessionHeader(
            run_id=self.run_id, round_number=self.round_number, session=self.session
        )
        return _message("shares", header, self.shares.arrays())

    @classmethod
    def from_message(cls, message: Message, degree: int) -> SharesReply:
        """Validate and type a message.

        Raises:
            MessageError: It is not a well-formed reply.
        """
        header = read_header(message, "shares", _SessionHeader)
        _expect_arrays(message, _SHARES)
        shares = SealedShares.from_arrays(message.arrays, degree)
        return cls(header.run_id, header.round_number, header.session, shares)


@dataclass(frozen=True, slots=True, eq=False)
class MaskRequest:
    """Asks for training and for the masked result.

    Attributes:
        train: What to train.
        session: `KeyRoster.session`, as 64 hex digits.
        sharers: The sites that shared, sorted; pairs among them mask each other.
        encoding_digest: `FixedPoint.digest()`.
        sealed: `SealedShares.sealed` of each sharer.
    """

    train: TrainRequest
    session: str
    sharers: tuple[str, ...]
    encoding_digest: str
    sealed: UInt8[np.ndarray, "m k 92"]

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        train = self.train.to_message()
        header = _MaskHeader(
            train=train.header,
            session=self.session,
            sharers=self.sharers,
            encoding_digest=self.encoding_digest,
        )
        return _message("mask", header, {**train.arrays, "sealed": self.sealed})

    @classmethod
    def from_message(cls, message: Message) -> MaskRequest:
        """Validate and type a message.

        Raises:
            MessageError: It is not a well-formed request.
        """
        header = read_header(message, "mask", _MaskHeader)
        arrays = dict(message.arrays)
        sealed = arrays.pop("sealed", np.empty(0))
        train = TrainRequest.from_message(Message("train", header.train, arrays))
        sharers = header.sharers
        if list(sharers) != sorted(set(sharers)):
            raise MessageError("the sites that shared must be sorted and each named once")
        if sealed.ndim != 3 or sealed.shape[0] != len(sharers):
            raise MessageError(
                f"'sealed' has the shape {sealed.shape}, expected one row for each of the "
                f"{len(sharers)} sites that shared"
            )
        shape = (len(sharers), sealed.shape[1], SEALED_BYTES)
        return cls(
            train,
            header.session,
            sharers,
            header.encoding_digest,
            bytes_of({"sealed": sealed}, "sealed", shape),
        )


@dataclass(frozen=True, slots=True, eq=False)
class MaskedReply:
    """A site's masked vector, and its keys for the next round unless this one is the last.

    Attributes:
        run_id: The run that was asked for.
        round_number: The round that was asked for.
        session: `KeyRoster.session`, as 64 hex digits.
        masked: The ring vector, packed.
        fingerprint: `key_agreement.fingerprint` of it and of the request.
        following: The next round's keys.
    """

    run_id: str
    round_number: int
    session: str
    masked: UInt8[np.ndarray, " bytes"]
    fingerprint: UInt8[np.ndarray, " 16"]
    following: RoundKeys | None

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        header = _SessionHeader(
            run_id=self.run_id, round_number=self.round_number, session=self.session
        )
        following = self.following.arrays() if self.following else {}
        own = {"masked": self.masked, "fingerprint": self.fingerprint}
        return _message("masked", header, own | following)

    @classmethod
    def from_message(cls, message: Message, masked_bytes: int) -> MaskedReply:
        """Validate and type a message.

        Raises:
            MessageError: It is not a well-formed reply.
        """
        header = read_header(message, "masked", _SessionHeader)
        following = "keys" in message.arrays
        own = {"masked", "fingerprint"}
        _expect_arrays(message, own | ({"keys", "signature"} if following else set()))
        return cls(
            header.run_id,
            header.round_number,
            header.session,
            bytes_of(message.arrays, "masked", (masked_bytes,)),
            bytes_of(message.arrays, "fingerprint", (_FINGERPRINT_BYTES,)),
            RoundKeys.from_arrays(message.arrays) if following else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class UnmaskRequest:
    """Says whose vectors arrived, asks for what opens their sum, and shows the next roster."""

    run_id: str
    round_number: int
    session: str
    survivors: tuple[str, ...]
    following: KeyRoster | None

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        header = _UnmaskHeader(
            run_id=self.run_id,
            round_number=self.round_number,
            session=self.session,
            survivors=self.survivors,
            following=self.following.header() if self.following else None,
        )
        return _message("unmask", header, self.following.arrays() if self.following else {})

    @classmethod
    def from_message(cls, message: Message) -> UnmaskRequest:
        """Validate and type a message.

        Raises:
            MessageError: It is not a well-formed request.
        """
        header = read_header(message, "unmask", _UnmaskHeader)
        _expect_arrays(message, _ROSTER if header.following else set())
        if list(header.survivors) != sorted(set(header.survivors)):
            raise MessageError("the survivors must be sorted and each named once")
        return cls(
            header.run_id,
            header.round_number,
            header.session,
            header.survivors,
            KeyRoster.from_parts(header.following, message.arrays) if header.following else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class UnmaskedReply:
    """Shares that open the sum, and the site's sealed shares of the next round.

    Attributes:
        run_id: The run that was asked for.
        round_number: The round that was asked for.
        session: `KeyRoster.session`, as 64 hex digits.
        owners: The neighbours whose share is opened.
        shares: One row an owner: of its self-mask seed if it survived, else of its masking key.
        following: None where no next roster was shown, or where the site refuses it.
        refusal: Why the site refuses the next roster.
    """

    run_id: str
    round_number: int
    session: str
    owners: tuple[str, ...]
    shares: UInt8[np.ndarray, "m 32"]
    following: SealedShares | None
    refusal: str | None = None

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        header = _UnmaskedHeader(
            run_id=self.run_id,
            round_number=self.round_number,
            session=self.session,
            owners=self.owners,
            refusal=self.refusal,
        )
        following = self.following.arrays() if self.following else {}
        return _message("unmasked", header, {"shares": self.shares, **following})

    @classmethod
    def from_message(cls, message: Message, following_degree: int) -> UnmaskedReply:
        """Validate and type a message.

        Raises:
            MessageError: It is not a well-formed reply.
        """
        header = read_header(message, "unmasked", _UnmaskedHeader)
        following = "sealed" in message.arrays
        _expect_arrays(message, {"shares"} | (_SHARES if following else set()))
        return cls(
            header.run_id,
            header.round_number,
            header.session,
            header.owners,
            bytes_of(message.arrays, "shares", (len(header.owners), SECRET_BYTES)),
            SealedShares.from_arrays(message.arrays, following_degree) if following else None,
            header.refusal,
        )


_ROSTER = {"roster_keys", "roster_signatures"}
_SHARES = {"sealed", "commitments", "seed_commitment"}


def _message(
    kind: str, header: Settings, arrays: Mapping[str, np.ndarray] | None = None
) -> Message:
    return Message(kind, header.model_dump(mode="json"), dict(arrays or {}))


def _expect_arrays(message: Message, names: set[str]) -> None:
    if set(message.arrays) != names:
        raise MessageError(
            f"a {message.kind!r} message must have the arrays {sorted(names)}, "
            f"it has {len(message.arrays)} others or too few"
        )
