"""Parsing of bytes that a peer sent, and the fields that several messages have."""

from __future__ import annotations

import re
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from fedhash.errors import MessageError

__all__ = ["NAME", "REASON", "RELEASE", "SITE", "check_text", "parse", "serialise"]

M = TypeVar("M", bound=Message)

NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")  # modalities and purposes, as the agreement has them
REASON = re.compile(r"[a-z][a-z0-9_]{0,63}|")
RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # a SHA-256; tests and benches use words
SITE = re.compile(r"[^\x00-\x1f\x7f]{1,200}")  # as fedhash.agreement.SiteName


def parse(kind: type[M], data: bytes, largest_bytes: int) -> M:
    """The message in `data`, in its one byte form.

    Raises:
        MessageError: It is too long, no message of this kind, or written in another form.
    """
    name = kind.DESCRIPTOR.name
    if len(data) > largest_bytes:
        raise MessageError(
            f"a message {name} of {len(data)} bytes came in, at most {largest_bytes} are allowed"
        )
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise MessageError(
            f"{len(data)} bytes are no message {name}; the peer runs another version or no fedhash"
        ) from error
    # the text of an unknown field would be signed, sent on and logged, and looked at by nobody
    message.DiscardUnknownFields()  # type: ignore[attr-defined] # the stubs lack it
    if message.SerializeToString(deterministic=True) != data:
        raise MessageError(
            f"the message {name} is not in its one byte form (fields in order, none unknown, none "
            "twice); the peer runs another version of fedhash"
        )
    return message


def serialise(message: Message, largest_bytes: int) -> bytes:
    """The one byte form.

    Raises:
        MessageError: It is longer than a peer would take.
    """
    data = message.SerializeToString(deterministic=True)
    if len(data) > largest_bytes:
        raise MessageError(
            f"the message {message.DESCRIPTOR.name} has {len(data)} bytes, at most {largest_bytes} "
            "are allowed; ask for fewer hits or by fewer filters"
        )
    return data


def check_text(what: str, text: str, pattern: re.Pattern[str]) -> str:
    """`text` if it is of the form.

    Raises:
        MessageError: It is not.
    """
    if not pattern.fullmatch(text):
        raise MessageError(f"the {what} {text[:80]!r} is not of the form {pattern.pattern}")
    return text
