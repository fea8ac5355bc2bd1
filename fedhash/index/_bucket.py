"""Whether an answer rests on enough patients (the rules a and b of `fedhash.search.policy`).

Counting stops as soon as there are enough: the hits themselves nearly always settle it, so a search
without filters costs no second pass.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int64

from fedhash.index._shelf import Shelf
from fedhash.search.query import Query

__all__ = ["rests_on_enough"]

_GROWTH = 8


def rests_on_enough(
    shelf: Shelf,
    query: Query,
    radius: int,
    smallest_bucket: int,
    matching: dict[str, Bool[np.ndarray, " N"]],
    hits: Int64[np.ndarray, " k"],
) -> bool:
    """Whether the query may be answered with anything.

    Args:
        shelf: The entries of the modality.
        query: The query.
        radius: In bits.
        smallest_bucket: Patients wanted at least.
        matching: For each filter, which entries have its value.
        hits: Positions of the answer.
    """
    groups = _groups(matching)
    if len(np.unique(shelf.patients[hits])) >= smallest_bucket:
        next(groups)  # those who match are enough
    for group, may_be_empty in groups:
        patients = _patients(shelf, query, radius, group, smallest_bucket)
        if patients < smallest_bucket and not (may_be_empty and patients == 0):
            return False
    return True


def _groups(
    matching: dict[str, Bool[np.ndarray, " N"]],
) -> Iterator[tuple[Bool[np.ndarray, " N"] | None, bool]]:
    """Who matches all filters; and for each filter who matches all of them but that one."""
    masks = list(matching.values())
    yield (np.logical_and.reduce(masks) if masks else None), False
    for left_out, mask in enumerate(masks):
        others = masks[:left_out] + masks[left_out + 1 :]
        yield np.logical_and.reduce([~mask, *others]), True


def _patients(
    shelf: Shelf,
    query: Query,
    radius: int,
    allowed: Bool[np.ndarray, " N"] | None,
    up_to: int,
) -> int:
    """Patients with an entry within the radius; exact below `up_to`."""
    count = up_to * _GROWTH
    while True:
        positions, _, _ = shelf.nearest(query.code, query.weights, count, radius, allowed)
        patients = len(np.unique(shelf.patients[positions]))
        if patients >= up_to or len(positions) < count:
            return patients
        count *= _GROWTH
