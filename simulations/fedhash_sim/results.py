"""The tidy tables of a run: `results.csv`, one row a figure, and what is read off them.

Columns of `results.csv`: method, seed, round, query, target, metric, group, value, count.
`query` and `target` are modalities; `count` is the number of queries (or findings, or site models)
that the value is a mean over. `rounds.csv` has one row a round and site; `model_of` names the site
whose own model was trained (method `local`), mean_loss and seconds are those of the round.

    >>> results = read_results(Path("runs/demo"))
    >>> main_table(results)[0]
    MainRow(query='image', target='report', chance=Spread(...), methods={'federated': Spread(...)})
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fedhash.errors import DataError

__all__ = [
    "RESULT_COLUMNS",
    "ROUND_COLUMNS",
    "MainRow",
    "Spread",
    "final_round",
    "main_table",
    "read_results",
    "read_rounds",
    "spread",
]

RESULT_COLUMNS = (
    "method",
    "seed",
    "round",
    "query",
    "target",
    "metric",
    "group",
    "value",
    "count",
)
ROUND_COLUMNS = (
    "method",
    "seed",
    "model_of",
    "round",
    "site",
    "status",
    "failure",
    "mean_loss",
    "weight",
    "seconds",
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds.

    Attributes:
        mean: Mean over the seeds.
        sd: Sample standard deviation; NaN for one seed, which has no spread.
        seeds: How many seeds.
    """

    mean: float
    sd: float
    seeds: int

    def as_json(self) -> dict[str, float | int | None]:
        """JSON-able form; one seed has no spread, which is null."""
        return {
            "mean": self.mean,
            "sd": None if math.isnan(self.sd) else self.sd,
            "seeds": self.seeds,
        }

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.sd:.3f}" if self.seeds > 1 else "")


@dataclass(frozen=True)
class MainRow:
    """One direction of the main table: mAP of each method beside the level of chance."""

    query: str
    target: str
    metric: str
    chance: Spread
    methods: dict[str, Spread]


def read_results(run: Path) -> pd.DataFrame:
    """`results.csv` of a run folder.

    Raises:
        DataError: There is none yet, or it has other columns.
    """
    return _read(run / "results.csv", RESULT_COLUMNS)


def read_rounds(run: Path) -> pd.DataFrame:
    """`rounds.csv` of a run folder.

    Raises:
        DataError: There is none yet, or it has other columns.
    """
    return _read(run / "rounds.csv", ROUND_COLUMNS)


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(
            f"{path} is not there; finish the run first: fedhash-sim run STUDY.yaml "
            f"--out {path.parent}"
        )
    table = pd.read_csv(path, keep_default_na=False, na_values={"value": [""], "mean_loss": [""]})
    if tuple(table.columns) != columns:
        raise DataError(
            f"{path} has the columns {', '.join(table.columns)}; expected {', '.join(columns)}. "
            "It was written by another version: run the study again"
        )
    return table


def spread(values: pd.Series) -> Spread:
    """Mean and standard deviation of one figure over seeds."""
    return Spread(float(values.mean()), float(values.std(ddof=1)), len(values))


def final_round(results: pd.DataFrame) -> pd.DataFrame:
    """Only the rows of each method's last evaluated round."""
    last = results.groupby(["method", "seed"])["round"].transform("max")
    return results[results["round"] == last]


def main_table(results: pd.DataFrame, metric: str = "map") -> list[MainRow]:
    """The final mAP of every direction and method, with chance; `macro_map` likewise."""
    final = final_round(results)
    final = final[final["group"] == "all"]
    rows = []
    for (query, target), direction in final.groupby(["query", "target"], sort=False):
        figures = direction[direction["metric"] == metric]
        chance = direction[direction["metric"] == metric.replace("map", "chance_map")]
        rows.append(
            MainRow(
                query=str(query),
                target=str(target),
                metric=metric,
                chance=spread(chance.drop_duplicates("seed")["value"]),
                methods={
                    str(method): spread(values["value"])
                    for method, values in figures.groupby("method", sort=False)
                },
            )
        )
    return rows
