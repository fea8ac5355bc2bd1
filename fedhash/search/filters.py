"""Filters as people type them.

>>> parse_filters(["sex=female", "scanner=B"])
{'sex': 'female', 'scanner': 'B'}
"""

from __future__ import annotations

from collections.abc import Sequence

from fedhash.errors import QueryError

__all__ = ["parse_filters"]


def parse_filters(where: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` texts as a mapping.

    Raises:
        QueryError: A text is not of that form, or a name stands twice.
    """
    filters: dict[str, str] = {}
    for text in where:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise QueryError(f"the filter {text!r} is not NAME=VALUE, such as sex=female")
        if name in filters:
            raise QueryError(f"the filter {name!r} is given twice; a hit has one value of it")
        filters[name] = value
    return filters
