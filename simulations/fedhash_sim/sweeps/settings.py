"""What a researcher writes to vary a study: one YAML file with a grid of settings.

An axis of the grid is a list of values under the key that `--set` knows, or, where settings belong
together, a mapping of names to settings:

    grid:
      round.learning.learning_rate: [1.0e-4, 5.0e-4]
      loss:
        csq: {round.loss: {name: csq}}
        orthohash: {round.loss: {name: orthohash, margin: 0.3}}

>>> settings = read_settings(Path("configs/sweep/losses.yaml"), SweepSettings)
>>> settings.choices("loss")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue

from fedhash.configuration import KeyPath, Settings
from fedhash_sim.settings import Direction, Method, Seed

__all__ = ["Metric", "Select", "SweepSettings", "written"]

Metric = Literal["map", "macro_map"]


def _each_once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("holds a seed twice; name each once")
    return seeds


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_each_once)]


class Select(Settings):
    """Search on `val`, then ask `test` once: the same search for every combination of other axes.

    The search trains `method` alone. For each combination of the axes that are not in `over`, the
    point with the largest mean over the seeds wins, the earlier one of equals. All methods of the
    study then run on `test` as the winners have it.

    Attributes:
        metric: What is largest.
        method: Whose figure counts.
        direction: In which it is read; null: the mean over all directions.
        over: Axes of the grid that are searched.
        seeds: Of the search, where fewer do; null: the same as of the test.
        queries: Who asks in the search; never the patients of the test.
    """

    metric: Metric = "macro_map"
    method: Method = "federated"
    direction: Direction | None = None
    over: tuple[str, ...] = Field(min_length=1)
    seeds: Seeds | None = None
    queries: Literal["val"] = "val"


Values = Annotated[tuple[JsonValue, ...], Field(min_length=1)]
Bundles = Annotated[dict[str, dict[str, JsonValue]], Field(min_length=1)]


class SweepSettings(Settings):
    """One sweep.

    Attributes:
        name: Also the folder's, in runs/.
        study: The study file that is varied.
        set: What every point changes of the study, by the keys of `--set`; the grid may go further.
        grid: Axis to its choices; every combination of one choice an axis is a point.
        seeds: In place of the study's.
        select: Choose on val; null: every point runs as the study says.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    study: Path
    set: dict[str, JsonValue] = Field(default={})
    grid: dict[str, Values | Bundles] = Field(min_length=1)
    seeds: Seeds | None = None
    select: Select | None = None

    @property
    def asked_axes(self) -> tuple[str, ...]:
        """Axes that are not searched; the last one where all are."""
        searched = () if self.select is None else self.select.over
        return tuple(axis for axis in self.grid if axis not in searched) or tuple(self.grid)[-1:]

    def choices(self, axis: str) -> list[tuple[str, Mapping[str, JsonValue]]]:
        """Each choice of an axis as the tables write it, with the settings that it changes."""
        values = self.grid[axis]
        if isinstance(values, dict):
            return list(values.items())
        return [(written(value), {axis: value}) for value in values]

    def place_of(self, axis: str, choice: str) -> KeyPath:
        """Where a choice of an axis stands in the file."""
        values = self.grid[axis]
        if isinstance(values, dict):
            return ("grid", axis, choice)
        return ("grid", axis, [written(value) for value in values].index(choice))


def written(value: JsonValue) -> str:
    """A value as tables have it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
