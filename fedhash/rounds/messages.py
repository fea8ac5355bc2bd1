"""A message: a kind, a JSON header and named arrays, with one byte form for every engine.

Rules that `encode` and `decode` both keep, so nothing is sent that a peer would refuse:

1. The container is safetensors (https://github.com/huggingface/safetensors#format), never pickle;
   its metadata holds one entry with kind and header as canonical JSON.
2. Canonical JSON has sorted keys, no white space, finite numbers and no duplicate names; text that
   does not re-encode to itself is refused, so two peers never read one header differently.
3. Kind and array names are short lower-case names; arrays are integers, float32 or float64.
4. Sizes are bounded before anything is parsed, nesting right after it.

The bytes come from a peer that nobody trusts: every fault is a MessageError. What a message of a
given kind must hold is checked one layer up (fedhash.rounds.training_messages).

    >>> message = Message("greeting", {"round": 1}, {"vector": np.ones(3, np.float32)})
    >>> Message.decode(message.encode(), max_bytes=10_000).header
    {'round': 1}
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedhash.errors import MessageError

__all__ = ["Json", "Message", "canonical_json"]

Json: TypeAlias = Any  # None, bool, int, float, str, list and dict[str, Json]; `encode` checks it

_METADATA_KEY = "fedhash"
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_DTYPES = frozenset(
    ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
)
_LENGTH_BYTES = 8  # safetensors: the header's length stands first, little-endian
_LARGEST_HEADER_BYTES = 1 << 20  # headers carry plans and names; vectors belong in arrays
_LARGEST_DEPTH = 16
_LARGEST_DIMENSIONS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """What peers send each other.

    Attributes:
        kind: Which message this is, such as ``train``.
        header: JSON-able values, small.
        arrays: Named arrays; a decoded message owns its arrays and shares them with nobody.
    """

    kind: str
    header: dict[str, Json]
    arrays: dict[str, np.ndarray]

    def encode(self) -> bytes:
        """The byte form of this message.

        Raises:
            MessageError: Kind, header or arrays break a rule of this module.
        """
        _check_name("kind", self.kind)
        _check_depth(self.header)
        text = canonical_json({"header": self.header, "kind": self.kind})
        for name, array in self.arrays.items():
            _check_array(name, array)
        # order="C": safetensors copies raw memory and would send a strided view's neighbours
        arrays = {name: np.asarray(array, order="C") for name, array in self.arrays.items()}
        data = save(arrays, {_METADATA_KEY: text})
        _header_text(data)
        return data

    def digest(self) -> bytes:
        """SHA-256 over kind, header and arrays: equal for equal messages only."""
        state = hashlib.sha256(canonical_json({"header": self.header, "kind": self.kind}).encode())
        for name, array in sorted(self.arrays.items()):
            about = canonical_json([name, array.dtype.str, list(array.shape)])
            state.update(hashlib.sha256(about.encode()).digest())
            state.update(np.ascontiguousarray(array).data)
        return state.digest()

    @staticmethod
    def decode(data: bytes, *, max_bytes: int) -> Message:
        """Read a message from bytes that a peer sent.

        Args:
            data: The bytes.
            max_bytes: Longer messages are refused unread.

        Raises:
            MessageError: The bytes are not a message of this protocol.
        """
        if len(data) > max_bytes:
            raise MessageError(
                f"the message has {len(data)} bytes, the limit is {max_bytes}; "
                f"raise the limit only if the agreed model is that large"
            )
        container = _parse_json(_header_text(data), "container header")
        metadata = container.get("__metadata__") if isinstance(container, dict) else None
        if not isinstance(metadata, dict) or set(metadata) != {_METADATA_KEY}:
            raise MessageError(
                f"the container's metadata must hold exactly the entry {_METADATA_KEY!r}; "
                f"these bytes were not written by fedhash"
            )
        text = metadata[_METADATA_KEY]
        envelope = _parse_json(text, "message header") if isinstance(text, str) else None
        if not isinstance(envelope, dict) or set(envelope) != {"header", "kind"}:
            raise MessageError("the message header must be an object with 'header' and 'kind'")
        kind, header = envelope["kind"], envelope["header"]
        _check_name("kind", kind)
        if not isinstance(header, dict):
            raise MessageError(f"the header must be a JSON object, found {type(header).__name__}")
        _check_depth(header)
        if canonical_json(envelope) != text:
            raise MessageError(
                "the message header is not canonical JSON (sorted keys, no white space, finite "
                "numbers, no duplicate names); encode it with Message.encode"
            )
        try:
            arrays = load(data)
        except (SafetensorError, ValueError, KeyError, OverflowError) as error:
            raise MessageError(f"the arrays cannot be read ({error!r}); send them again") from error
        for name, array in arrays.items():
            _check_array(name, array)
        return Message(kind, header, arrays)


def canonical_json(value: Json) -> str:
    """The one JSON text of `value`: sorted keys, no white space, finite numbers.

    Raises:
        MessageError: `value` holds something that JSON cannot say.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        text.encode()  # a lone surrogate is a Python string but no Unicode text
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(f"a header must be plain finite JSON: {error}") from error
    return text


def _header_text(data: bytes) -> str:
    """The container's JSON header, its length checked before its content is looked at."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or length > len(data) - _LENGTH_BYTES:
        raise MessageError(
            f"{len(data)} bytes are not a whole safetensors container; the message was cut short "
            f"or is of another protocol"
        )
    if length > _LARGEST_HEADER_BYTES:
        raise MessageError(
            f"the header has {length} bytes, at most {_LARGEST_HEADER_BYTES} are allowed; "
            f"send large values as arrays"
        )
    try:
        return data[_LENGTH_BYTES : _LENGTH_BYTES + length].decode()
    except UnicodeDecodeError as error:
        raise MessageError("the container header is not UTF-8 text") from error


def _parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"the {what} is not valid JSON: {error}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise MessageError("the header holds one name twice; each name may stand once")
    return names


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise MessageError(
            f"the {what} {str(name)[:80]!r} must match {_NAME.pattern} (lower case, 64 at most)"
        )


def _check_depth(value: object, depth: int = 0) -> None:
    """Only JSON's own types (a tuple would come back as a list), and not nested deeply."""
    if depth > _LARGEST_DEPTH:
        raise MessageError(f"the header is nested deeper than {_LARGEST_DEPTH} levels")
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise MessageError("the names in a header must be strings")
        for inner in value.values():
            _check_depth(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_depth(inner, depth + 1)
    elif not (value is None or isinstance(value, str | int | float)):
        raise MessageError(f"a header cannot hold a {type(value).__name__}; use JSON types only")


def _check_array(name: str, array: np.ndarray) -> None:
    _check_name("array name", name)
    if array.dtype.name not in _DTYPES or array.ndim > _LARGEST_DIMENSIONS:
        raise MessageError(
            f"the array {name!r} is {array.dtype.name} with {array.ndim} dimensions; expected one "
            f"of {', '.join(sorted(_DTYPES))} and at most {_LARGEST_DIMENSIONS} dimensions"
        )
