"""Walking the type annotations of settings along a key path.

An annotation is held as the list of its alternatives (`int | None` has two), so that unions and
discriminated unions need no special case.

    types = alternatives(Round)                  # [Round]
    types = entries(types, "towers")             # [dict[str, TowerSettings]]
    words(entries(types, "image"))               # "a mapping of keys to values"
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from fedhash.configuration.settings import Settings

__all__ = ["Types", "alternatives", "entries", "is_union", "keys", "labelled", "options", "words"]

Types: TypeAlias = list[Any]

_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    NoneType: "null",
}


def alternatives(annotation: Any) -> Types:
    """The members of a union, or the annotation alone; metadata is dropped."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in alternatives(member)]
    return [annotation]


def is_union(types: Types) -> bool:
    """Whether pydantic puts the member's label into the location of an error."""
    return sum(kind is not NoneType for kind in types) > 1


def labelled(types: Types, label: str | int) -> Types:
    """The members that a label may mean: a discriminator's tag, a class name, or "list[int]".

    Settings with a validator of their own have the label "function-after[check(), Settings]".
    """
    return [kind for kind in types if _has_label(kind, label)] or types


def _has_label(kind: Any, label: str | int) -> bool:
    name = (get_origin(kind) or kind).__name__
    text = str(label)
    if text == name or text.startswith(f"{name}[") or text.rstrip("]").endswith(f", {name}"):
        return True
    fields = kind.model_fields.values() if _is_settings(kind) else []
    return any(label in options(alternatives(field.annotation)) for field in fields)


def entries(types: Types, part: str | int) -> Types:
    """The annotation under a key or a list index."""
    return [kind for outer in types for kind in _entry(outer, part)]


def _entry(outer: Any, part: str | int) -> Types:
    if _is_settings(outer):
        return alternatives(outer.model_fields[part].annotation) if part in keys([outer]) else []
    origin, args = get_origin(outer), get_args(outer)
    if not isinstance(origin, type) or not args:
        return []
    if issubclass(origin, Mapping):
        return alternatives(args[1])
    if origin is tuple and args[-1] is not Ellipsis and isinstance(part, int):
        return alternatives(args[part]) if part < len(args) else []
    return alternatives(args[0])


def keys(types: Types) -> list[str]:
    """All keys that settings among the alternatives know."""
    return [name for kind in types if _is_settings(kind) for name in kind.model_fields]


def options(types: Types) -> list[Any]:
    """The values that literals and enumerations among the alternatives allow."""
    values: list[Any] = []
    for kind in types:
        origin: Any = get_origin(kind)
        if origin is Literal:
            values += get_args(kind)
        elif isinstance(kind, type) and issubclass(kind, Enum):
            values += [member.value for member in kind]
    return values


def words(types: Types) -> str:
    """What a value must be, in plain words; empty where an alternative has none."""
    parts = dict.fromkeys(map(_word, types))
    return " or ".join(parts) if all(parts) else ""


def _word(kind: Any) -> str:
    if allowed := options([kind]):
        return " or ".join(map(repr, allowed))
    origin = get_origin(kind) or kind
    if not isinstance(origin, type):
        return ""
    if issubclass(origin, Settings | Mapping):
        return "a mapping of keys to values"
    if issubclass(origin, list | tuple | set | frozenset):
        return "a list"
    return _WORDS.get(origin, "")


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)
