"""Pydantic's validation errors as problems of the user's file, in plain words and with lines.

The words come from the annotation, so a union reads "a whole number or null" in one message.

    for problem in explain(error, document, Round):
        print(problem)    # round.yaml:3: "rounds" must be a whole number; found text '3'
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedhash.configuration._annotations import (
    Types,
    alternatives,
    entries,
    is_union,
    keys,
    labelled,
    options,
    words,
)
from fedhash.configuration._document import Document, KeyPath
from fedhash.configuration._words import did_you_mean, dotted, found, near_miss
from fedhash.configuration.settings import Settings
from fedhash.errors import Problem

__all__ = ["explain"]

_DISCRIMINATOR_ERRORS = {"union_tag_invalid": "literal_error", "union_tag_not_found": "missing"}
_TYPE_ERRORS = re.compile(r".*_type|literal_error|enum|is_instance_of|int_from_float|.*_parsing")


@dataclass(frozen=True)
class _Spot:
    """Where an error is: key path, annotation and value there, and the annotation around it."""

    path: KeyPath
    types: Types
    value: Any
    parent: Types


def explain(error: ValidationError, document: Document, kind: type[Settings]) -> list[Problem]:
    """One problem for each wrong key path of the document."""
    messages: dict[KeyPath, str] = {}
    vague: set[KeyPath] = set()
    for details in error.errors(include_url=False):
        spot = _find(details["loc"], document.data, kind)
        error_type = details["type"]
        if error_type in _DISCRIMINATOR_ERRORS:
            name = details["ctx"]["discriminator"].strip("'")
            types = entries(spot.types, name)
            spot = _Spot((*spot.path, name), types, _entry(spot.value, name), spot.types)
            error_type = _DISCRIMINATOR_ERRORS[error_type]
        is_type_error = _TYPE_ERRORS.fullmatch(error_type) is not None
        if is_type_error and spot.path in messages:
            continue  # another member of the same union: its words are in the message already
        messages[spot.path] = _message(error_type, details, spot)
        if is_type_error or error_type == "too_short":
            vague.add(spot.path)
    # Where an entry is wrong, the list seems too short (pydantic counts only valid entries), and
    # the members of a union that are no list complain too: the entry's own message says it all.
    for path in vague & {p[:depth] for p in messages for depth in range(len(p))}:
        del messages[path]
    return [Problem(*document.place(path), message) for path, message in messages.items()]


def _find(location: tuple[str | int, ...], data: Any, kind: type[Settings]) -> _Spot:
    """Follow an error's location: keys, list indices and, below a union, the member's label."""
    path: KeyPath = ()
    types, parent = alternatives(kind), alternatives(kind)
    for depth, part in enumerate(location, start=1):
        if part == "[key]":  # the key before it is wrong, not its value
            return _Spot(path, [], path[-1], parent)
        if not is_union(types):
            data = _entry(data, part)
            path, types, parent = (*path, part), entries(types, part), types
        elif depth < len(location):  # a last label leaves the words of the whole union
            types = labelled(types, part)
    return _Spot(path, types, data, parent)


def _entry(data: Any, part: str | int) -> Any:
    try:
        return data[part]
    except (KeyError, IndexError, TypeError):
        return None  # a missing key or entry


def _message(error_type: str, details: ErrorDetails, spot: _Spot) -> str:
    name = dotted(spot.path)
    if error_type == "extra_forbidden":
        return f'unknown key "{name}"; {did_you_mean(str(spot.path[-1]), keys(spot.parent))}'
    if error_type == "missing":
        entry = "entry" if isinstance(spot.path[-1], int) else "key"
        return f'missing {entry} "{name}"; add it, expected {words(spot.types) or "a value"}'
    if error_type == "value_error":  # a validator of ours: it says everything itself
        reason = str(details["ctx"]["error"])
        return f'"{name}": {reason}' if spot.path else reason
    if _TYPE_ERRORS.fullmatch(error_type) and words(spot.types):
        requirement = f"must be {words(spot.types)}"
    else:  # a constraint: "Input should be greater than 0"
        constraint = details["msg"].partition(" after validation")[0]
        requirement = re.sub(r"^\w+ should ", "must ", constraint)
    hint = near_miss(spot.value, options(spot.types))
    return f'"{name}" {requirement}; found {found(spot.value)}{hint}'
