"""A search request, and the choices of the one who asks: how far to look, when to abstain.

Shape suffixes: b bits, K findings.

A query holds the code of the example and, per bit, an integer weight: the model's real-valued
output v times 4096. An archive orders equal Hamming distances by the asymmetric score
sum_j weight_j * h_j over the stored bits h in {-1, +1}. Integers make that sum exact, so that every
site computes the same order; 4096 keeps three digits of an output, and |v| <= 1 keeps every sum
below 2^21.

Orthogonal anchors are b/2 apart, which gives the radius of `radius_from_kappa`: halfway between two
anchors at kappa = 0, less for precision (kappa > 0), more for recall (kappa < 0).

    >>> query = make_query(v, release_id=release.release_id, modality="report", k=10)
    >>> abstains(v, anchors.matrix, abstention_margin=0.1)
    False
    >>> radius_from_kappa(0.0, code_bits=64)
    16
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int8, Int16

from fedhash.codes import CODE_BITS_RANGE, pack_signs
from fedhash.errors import QueryError

__all__ = [
    "WEIGHT_SCALE",
    "Query",
    "abstains",
    "make_query",
    "radius_from_kappa",
]

WEIGHT_SCALE = 4096
_LARGEST_FILTERS = 16  # a query narrows by a few attributes; more is no honest request


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What a site is asked; checked as far as the query alone tells.

    Attributes:
        release_id: The release whose model made the code.
        modality: The modality to search in, whatever the example's own.
        code: The example's code, b/8 bytes.
        weights: The example's outputs times `WEIGHT_SCALE`, each at most that in size.
        k: Hits wanted at most.
        radius: The largest Hamming distance of a hit in bits, or None for no limit.
        filters: Attribute name to the value that a hit must have.

    Raises:
        QueryError: A field is out of range or fields do not fit each other.
    """

    release_id: str
    modality: str
    code: bytes
    weights: Int16[np.ndarray, " b"]
    k: int
    radius: int | None = None
    filters: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bits = 8 * len(self.code)
        low, high = CODE_BITS_RANGE
        if not low <= bits <= high:
            raise QueryError(f"the query's code has {bits} bits; a code has {low} to {high}")
        if self.weights.dtype != np.int16 or self.weights.shape != (bits,):
            raise QueryError(
                f"the query's weights are {self.weights.dtype} of shape "
                f"{self.weights.shape}; a code of {bits} bits needs int16 of shape ({bits},)"
            )
        # In int32, for abs(-32768) is -32768 in int16.
        largest = int(np.abs(self.weights.astype(np.int32)).max())
        if largest > WEIGHT_SCALE:
            raise QueryError(
                f"a weight of the query is {largest} in size; at most {WEIGHT_SCALE} is possible, "
                "make queries with make_query"
            )
        if self.k < 1:
            raise QueryError(f"k is {self.k}; ask for at least 1 hit")
        if self.radius is not None and not 0 <= self.radius <= bits:
            raise QueryError(f"the radius is {self.radius}; expected 0 to {bits} bits, or none")
        if len(self.filters) > _LARGEST_FILTERS:
            raise QueryError(
                f"the query filters by {len(self.filters)} attributes; "
                f"at most {_LARGEST_FILTERS} are answered"
            )


def make_query(
    outputs_b: Float[np.ndarray, " b"],
    *,
    release_id: str,
    modality: str,
    k: int,
    radius: int | None = None,
    filters: Mapping[str, str] | None = None,
) -> Query:
    """The query for an example whose normalised model output is `outputs_b` (length at most 1).

    Args:
        outputs_b: One row of `fedhash.models.hash_model.encode_studies`.
        release_id: The release whose model gave the outputs.
        modality: The modality to search in.
        k: Hits wanted at most.
        radius: The largest Hamming distance of a hit in bits, or None for no limit.
        filters: Attribute name to the value that a hit must have.

    Raises:
        QueryError: The outputs are not finite, not normalised or of no valid width.
    """
    largest = float(np.abs(outputs_b).max(initial=0.0))
    # float32 rounding may carry a normalised output a little above 1; rint takes it back.
    if not largest <= 1 + 1e-4:  # "not <=" catches NaN as well
        raise QueryError(
            f"an output of the model is {largest} in size; "
            "queries are made from normalised outputs, between -1 and 1"
        )
    return Query(
        release_id,
        modality,
        pack_signs(outputs_b[None]).tobytes(),
        np.rint(outputs_b.astype(np.float64) * WEIGHT_SCALE).astype(np.int16),
        k,
        radius,
        dict(filters or {}),
    )


def radius_from_kappa(kappa: float, code_bits: int) -> int:
    """The search radius floor((1 - kappa) b / 4) in bits.

    Args:
        kappa: From -1 (everything up to the next anchor) over 0 to 1 (the very same code).
        code_bits: Length of the code.

    Raises:
        QueryError: `kappa` is outside -1..1.
    """
    if not -1 <= kappa <= 1:
        raise QueryError(
            f"kappa is {kappa}; expected -1 to 1: above 0 for precision, below 0 for recall"
        )
    return math.floor((1 - kappa) * code_bits / 4)


def abstains(
    outputs_b: Float[np.ndarray, " b"],
    anchors_Kb: Int8[np.ndarray, "K b"],
    abstention_margin: float,
) -> bool:
    """Whether the example lies too close between two findings to be searched for.

    True where the best anchor's cosine leads the second by less than `abstention_margin`.

    Raises:
        QueryError: The margin is outside 0..2, which no lead can be.
    """
    if not 0 <= abstention_margin <= 2:  # "not <=" catches NaN as well
        raise QueryError(
            f"the abstention margin is {abstention_margin}; expected 0 (always ask) to 2, "
            "the largest lead that one cosine can have over another"
        )
    cosines_K = anchors_Kb.astype(np.float64) @ outputs_b / math.sqrt(len(outputs_b))
    second, best = np.sort(cosines_K)[-2:]
    return bool(best - second < abstention_margin)
