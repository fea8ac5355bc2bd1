"""What is asked and what is answered when sites search each other's archives.

Values and rules only: no store, no index and no network, so that router and askers can check and
merge answers without either. A site's side is in `fedhash.index`.
"""

from __future__ import annotations

from fedhash.search.hit import Hit, merge
from fedhash.search.query import (
    WEIGHT_SCALE,
    Query,
    abstains,
    make_query,
    radius_from_kappa,
)

__all__ = [
    "WEIGHT_SCALE",
    "Hit",
    "Query",
    "abstains",
    "make_query",
    "merge",
    "radius_from_kappa",
]
