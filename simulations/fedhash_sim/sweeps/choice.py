"""What a search chooses: for each combination of the other axes its best values, on `val`.

>>> winners = choose(sweep, [point_figure(sweep, runs / point.name) for point in sweep.points])
>>> winners[0].test.name
'loss=csq,learning_rate=0.001,queries=test'
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from fedhash.errors import DataError
from fedhash_sim.results import Spread, final_round, spread
from fedhash_sim.settings import Direction
from fedhash_sim.sweeps.points import Point, Sweep

__all__ = ["Winner", "choose", "figure"]


@dataclass(frozen=True)
class Winner:
    """A chosen point.

    Attributes:
        search: As the search had it.
        figure: Why it was chosen.
        test: As it is asked on `test`.
    """

    search: Point
    figure: Spread
    test: Point


def figure(
    results: pd.DataFrame, metric: str, method: str, direction: Direction | None = None
) -> Spread:
    """A method's figure after its last round: mean over the directions, spread over the seeds.

    Args:
        results: Rows of `results.csv`.
        metric: map or macro_map.
        method: One of the study's.
        direction: Of this one alone.
    """
    rows = final_round(results)
    rows = rows[(rows["group"] == "all") & (rows["metric"] == metric) & (rows["method"] == method)]
    if direction is not None:
        rows = rows[(rows["query"] == direction.query) & (rows["target"] == direction.target)]
    return spread(rows.groupby("seed")["value"].mean())


def choose(sweep: Sweep, figures: Sequence[Spread | None]) -> tuple[Winner, ...]:
    """The winners, in the order of the grid.

    Args:
        sweep: With `select`.
        figures: Of each of its points, on `val`; None of one that cannot be trained, which is not
            chosen.

    Raises:
        DataError: A point has no such figure, or there is no point to choose.
    """
    select = sweep.settings.select
    if select is None:
        return ()
    groups: defaultdict[tuple[str, ...], list[Winner]] = defaultdict(list)
    for point, found, test in zip(sweep.points, figures, sweep.tests, strict=True):
        others = tuple(choice for axis, choice in point.choices.items() if axis not in select.over)
        group = groups[others]
        if found is None:
            continue
        if math.isnan(found.mean):
            raise DataError(
                f"{point.name} has no {select.metric} of {select.method} to choose by: none of "
                "its queries has anything relevant in the database"
            )
        group.append(Winner(point, found, test))
    if empty := [" and ".join(others) for others, group in groups.items() if not group]:
        raise DataError(
            f"{'; '.join(empty) or 'the sweep'}: no point can be trained, so none can be chosen; "
            f"give other values for {' and '.join(select.over)}"
        )
    # max keeps the first of equals
    return tuple(max(group, key=lambda each: each.figure.mean) for group in groups.values())
