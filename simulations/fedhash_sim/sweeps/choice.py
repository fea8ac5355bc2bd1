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
from fedhash_sim.sweeps.settings import Select

__all__ = ["Winner", "choose", "figure", "others"]


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


def others(point: Point, select: Select) -> tuple[str, ...]:
    """A point's choices on the axes that are not searched: among points of equal ones is chosen."""
    return tuple(choice for axis, choice in point.choices.items() if axis not in select.over)


def choose(sweep: Sweep, figures: Sequence[Spread | None]) -> tuple[Winner, ...]:
    """The winners, in the order of the grid; none where all points to choose from diverged.

    Args:
        sweep: With `select`.
        figures: Of each of its points, on `val`; None of one that diverged, which is not chosen.

    Raises:
        DataError: A point has no such figure.
    """
    select = sweep.settings.select
    if select is None:
        return ()
    groups: defaultdict[tuple[str, ...], list[Winner]] = defaultdict(list)
    for point, found, test in zip(sweep.points, figures, sweep.tests, strict=True):
        if found is None:
            continue
        if math.isnan(found.mean):
            raise DataError(
                f"{point.name} has no {select.metric} of {select.method} to choose by: none of "
                "its queries has anything relevant in the database"
            )
        groups[others(point, select)].append(Winner(point, found, test))
    # max keeps the first of equals
    return tuple(max(group, key=lambda each: each.figure.mean) for group in groups.values())
