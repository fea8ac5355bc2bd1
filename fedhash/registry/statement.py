"""Which release is current: a statement that the coordinator signs, numbered without end.

1. A statement names the consortium, a number and a release. Numbers only grow, and one number has
   one statement: whoever holds two of them, signed, has proof against the coordinator.
2. To roll back is to state an older release again, under a new number. So an old statement that
   is sent again is no way back: a site that saw number 7 refuses 6 (`fedhash.registry.seen`).
3. What is signed is a text that says what it is for, and the canonical JSON of the statement: no
   signature of another kind, or of another consortium, passes for one (domain separation).
4. The signature is Ed25519 (RFC 8032), the key that the agreement names as `release_key`.

    >>> data = signed(Statement(consortium="lungs", number=7, ...), key)
    >>> read_statement(data, agreement.release_key, "lungs").number
    7
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError

from fedhash.configuration import Settings
from fedhash.errors import MessageError, RefusedError, ReleaseError
from fedhash.rounds.messages import canonical_json
from fedhash.secagg.identity import SiteIdentity, verify_signature

__all__ = [
    "LARGEST_STATEMENT_BYTES",
    "ReleaseId",
    "Statement",
    "claimed_release_id",
    "read_statement",
    "signed",
]

LARGEST_STATEMENT_BYTES = 1 << 14
_DOMAIN = b"fedhash release statement 1\n"

ReleaseId = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Statement(Settings):
    """One statement.

    Attributes:
        consortium: Name of the agreement.
        number: From 1; each statement of a consortium has a larger one.
        kind: release: a new one; rollback: an older one is current again.
        release_id: The release that is current from now on.
        issued: When, in UTC, as people want to know it; nothing is decided by it.
    """

    format: Literal[1] = 1
    consortium: str = Field(min_length=1, max_length=1000)
    number: int = Field(ge=1, lt=1 << 53)
    kind: Literal["release", "rollback"]
    release_id: ReleaseId
    issued: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")


class _Signed(Settings):
    statement: Statement
    signature: str = Field(pattern="^[0-9a-f]{128}$")

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json")).encode()


def signed(statement: Statement, key: SiteIdentity) -> bytes:
    """The statement with its signature: what `current.json` holds and sites are sent."""
    return _Signed(
        statement=statement, signature=key.sign(_signed_text(statement)).hex()
    ).to_bytes()


def claimed_release_id(data: bytes) -> str:
    """The release that a statement names, unverified: for whoever only hands it on.

    Raises:
        ReleaseError: It is no statement.
    """
    return _parsed(data).statement.release_id


def read_statement(data: bytes, release_key: str, consortium: str) -> Statement:
    """Read and verify a statement; `data` may come from anyone.

    Args:
        data: What `signed` gave.
        release_key: The public key of the consortium's releases, 64 hex digits.
        consortium: Name of the agreement.

    Raises:
        ReleaseError: It is no statement, not signed with this key, or of another consortium.
    """
    content = _parsed(data)
    statement = content.statement
    try:
        verify_signature(release_key, bytes.fromhex(content.signature), _signed_text(statement))
    except RefusedError as error:
        raise ReleaseError(
            f"statement {statement.number} is not signed with the agreement's release_key "
            f"{release_key}: someone else made it, or the coordinator has another key; compare "
            "release_key in both agreements"
        ) from error
    if statement.consortium != consortium:
        raise ReleaseError(
            f"statement {statement.number} is of the consortium {statement.consortium!r}, this is "
            f"{consortium!r}"
        )
    return statement


def _parsed(data: bytes) -> _Signed:
    try:
        if len(data) > LARGEST_STATEMENT_BYTES:
            raise ReleaseError(
                f"a statement of {len(data):,} bytes was sent, at most "
                f"{LARGEST_STATEMENT_BYTES:,} are read; this is no release service of fedhash"
            )
        content = _Signed.model_validate_json(data)
        if content.to_bytes() != data:
            raise ReleaseError("a release statement is not in its canonical form; ask for it again")
    except (ValidationError, MessageError, ValueError, RecursionError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ReleaseError(f"this is no release statement ({first}); ask for it again") from error
    return content


def _signed_text(statement: Statement) -> bytes:
    return _DOMAIN + canonical_json(statement.model_dump(mode="json")).encode()
