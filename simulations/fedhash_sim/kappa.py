"""What a search radius finds: precision and recall of a finished run at each kappa.

Read off the figures by radius in `results.csv`, where they stand for every radius from 0 to the
code length. All are means over the queries:

1. An empty ball has precision 0; `empty` is the share of queries that find nothing, and
   `precision_of_found` the precision over the others alone, which are others at each kappa.
2. Recall is a mean over the queries with a relevant item.
3. `chance` is the precision of a ball that holds the whole database.

    >>> kappa_table(read_results(Path("runs/demo")))[3]
    KappaRow(query='image', target='image', method='local', kappa=0.0, radius_bits=16, ...)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from fedhash.search import radius_from_kappa
from fedhash_sim.results import Spread, final_round, spread

__all__ = ["KAPPAS", "KappaRow", "by_radius", "kappa_table"]

KAPPAS = (-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
_PRECISION, _RECALL, _EMPTY = "precision_in_radius", "recall_in_radius", "empty_in_radius"


@dataclass(frozen=True)
class KappaRow:
    """A method's figures in one direction at one kappa, mean and sd over seeds."""

    query: str
    target: str
    method: str
    kappa: float
    radius_bits: int
    precision: Spread
    precision_of_found: Spread
    recall: Spread
    empty: Spread
    chance: Spread

    def as_json(self) -> dict[str, Any]:
        """JSON-able form; what there is none of is null."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value.as_json() if isinstance(value, Spread) else value
            for name, value in values.items()
        }


def by_radius(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last round by radius, with a column `radius_bits` instead of `group`."""
    rows = final_round(results)
    rows = rows[rows["metric"].isin([_PRECISION, _RECALL, _EMPTY])]
    radii = rows["group"].str.removeprefix("radius=").astype(int)
    return rows.assign(radius_bits=radii).drop(columns="group")


def kappa_table(results: pd.DataFrame) -> list[KappaRow]:
    """Each direction and method at each of `KAPPAS`; no row without figures by radius."""
    rows = by_radius(results)
    table = []
    for (query, target, method), cell in rows.groupby(["query", "target", "method"], sort=False):
        code_bits = int(cell["radius_bits"].max())
        by_seed = cell.pivot(index="seed", columns=["metric", "radius_bits"], values="value")
        for kappa in KAPPAS:
            radius = radius_from_kappa(kappa, code_bits)
            precision, recall, empty, chance = (
                by_seed.get(column, pd.Series(dtype=float))
                for column in (
                    (_PRECISION, radius),
                    (_RECALL, radius),
                    (_EMPTY, radius),
                    (_PRECISION, code_bits),
                )
            )
            of_found = (precision / (1 - empty)).where(empty < 1)
            spreads = [
                spread(each.dropna()) for each in (precision, of_found, recall, empty, chance)
            ]
            table.append(KappaRow(str(query), str(target), str(method), kappa, radius, *spreads))
    return table
