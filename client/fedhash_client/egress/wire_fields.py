"""Names and forms of the fields that travel, read from the classes that the wire is made of.

1. Of a round's message: the fields of its dataclass, those of keys and sealed shares in their
   place. A test encodes each message and finds the same names in its header and arrays.
2. Of protobuf: the fields of its descriptor, of every message that it holds. Flower's
   ``RecordDict`` is not gone into: its SuperNode empties it and sends the parts as bytes.
3. What a field means, people write (`meanings`); a field that nobody described is shown as such,
   and a test fails.

    >>> fields_of_reply(KeysReply)[2]
    WireField(name='keys', form='uint8 [64]', meaning='two X25519 public keys of this round')
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fedhash.secagg.roster import RoundKeys, SealedShares

__all__ = ["NOT_DESCRIBED", "WireField", "fields_of_protobuf", "fields_of_reply"]

NOT_DESCRIBED = "not described here; report it, and read the code before this site sends it"
_Descriptor: TypeAlias = Any  # Python's or the one of protobuf's C library
_PARTS: dict[str, type] = {"RoundKeys": RoundKeys, "SealedShares": SealedShares}
_ARRAY = re.compile(r"""(\w+)\[np\.ndarray, ["']\s*(.*?)\s*["']\]""")
_EMPTY = frozenset({"RecordDict"})
_FORMS = {
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_DOUBLE: "float64",
    FieldDescriptor.TYPE_BOOL: "yes or no",
}


@dataclass(frozen=True)
class WireField:
    """One field of a message.

    Attributes:
        name: As it stands on the wire, behind the name of its part where it has one.
        form: Type and shape.
        meaning: What it tells.
    """

    name: str
    form: str
    meaning: str


def fields_of_reply(reply: type, meanings: Mapping[str, str]) -> tuple[WireField, ...]:
    """The fields of a message of a round, by its dataclass."""
    return tuple(
        WireField(name, form, meanings.get(name, NOT_DESCRIBED)) for name, form in _leaves(reply)
    )


def _leaves(kind: type) -> Iterator[tuple[str, str]]:
    for each in fields(kind):
        annotation = str(each.type)
        part = _PARTS.get(annotation.partition(" ")[0])
        if part is not None:
            yield from _leaves(part)
        else:
            array = _ARRAY.fullmatch(annotation)
            form = annotation if array is None else f"{array[1].lower()} [{array[2]}]"
            yield each.name, form


def fields_of_protobuf(
    message: type[Message], meanings: Mapping[str, str]
) -> tuple[WireField, ...]:
    """The fields of a protobuf message and of all that it holds; `meanings` by Message.field."""
    return tuple(
        WireField(name, form, meanings.get(name, NOT_DESCRIBED))
        for each in _within(message.DESCRIPTOR)
        for name, form in _own_fields(each)
    )


def _within(message: _Descriptor) -> list[_Descriptor]:
    """The message and those that it holds, each once."""
    found = [message]
    for each in found:  # it grows meanwhile
        inner = (field.message_type for field in each.fields if field.message_type is not None)
        found += [part for part in inner if part not in found and part.name not in _EMPTY]
    return found


def _own_fields(message: _Descriptor) -> Iterator[tuple[str, str]]:
    for field in message.fields:
        if field.message_type is not None:
            form = field.message_type.name
        else:
            form = _FORMS.get(field.type, "whole number")
        several = " ..." if field.label == FieldDescriptor.LABEL_REPEATED else ""
        yield f"{message.name}.{field.name}", form + several
