"""The tidy tables of a run: `results.csv`, one row a figure, and what is read off them.

Columns of `results.csv`: method, seed, round, query, target, metric, group, value, count.
`query` and `target` are modalities; `count` is the number of queries (or findings, or site models)
that the value is a mean over. `rounds.csv` has one row a round and site; `model_of` names the site
whose own model was trained (method `local`), mean_loss and seconds are those of the round.
`partition.csv` has the training patients by seed, site and finding; `holdings.csv` the training
patients and studies by seed, site and modality, all together under the modality `(any)`.
`exchanges.csv` has one row a request: its stage, outcome, bytes and seconds. `sums.csv` has one row
a round of secure aggregation, completed or failed: graph, threshold, and how many sites took part;
what a failed round never came to is empty. `privacy.csv` has one row a site of a private method:
epsilon of the events in its ledger after the last round, at the agreement's delta and under its
cap; of those with the site's own noise, of those whose noise the sites shared, which hold under
`trust`, and of all together. A round that was asked for again is two events. `margins.csv` has one
row a finding after each step of the margin schedule: the margin mu, the summed patients n, the
slack's shrunken mean r, its variance within the sites and between them, and the drift g; what a
finding that kept its margin has none of is empty. `costs.csv` has one row a trained model, see
`fedhash_sim.costs`.

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
    "ANY_MODALITY",
    "COST_COLUMNS",
    "EXCHANGE_COLUMNS",
    "HOLDING_COLUMNS",
    "MARGIN_COLUMNS",
    "PARTITION_COLUMNS",
    "PRIVACY_COLUMNS",
    "RESULT_COLUMNS",
    "ROUND_COLUMNS",
    "SUM_COLUMNS",
    "SUM_FACTS",
    "TABLES",
    "MainRow",
    "Spread",
    "final_round",
    "main_table",
    "read_costs",
    "read_exchanges",
    "read_holdings",
    "read_margins",
    "read_partition",
    "read_privacy",
    "read_results",
    "read_rounds",
    "read_sums",
    "spread",
    "with_worst_finding",
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
    "note",
)
PARTITION_COLUMNS = ("seed", "site", "finding", "patients")
HOLDING_COLUMNS = ("seed", "site", "modality", "patients", "studies")
ANY_MODALITY = "(any)"  # no name of a modality
_MAY_BE_ABSENT = (
    *("value", "mean_loss", "clipped_values", "rounding_sd"),
    *("r", "within_variance", "between_variance", "peak_memory_bytes"),
)
_NUMBERS = {
    "seed": int,
    "round": int,
    "value": float,
    "count": int,
    "mean_loss": float,
    "seconds": float,
    "patients": int,
    "studies": int,
    "request_bytes": int,
    "reply_bytes": int,
    "clipped_values": float,  # a failed round has none
    "rounding_sd": float,
    "delta": float,
    "epsilon_own_noise": float,
    "epsilon_shared_noise": float,
    "epsilon": float,
    "epsilon_cap": float,
    "events": int,
    **dict.fromkeys(("site_count", "parameters", "planned_steps", "rounds", "failed_rounds"), int),
    **dict.fromkeys(("requests", "evaluations"), int),
    **dict.fromkeys(("round_seconds", "evaluation_seconds", "peak_memory_bytes"), float),
    **dict.fromkeys(("mu", "n", "r", "within_variance", "between_variance", "drift"), float),
}  # everything else is text: a site may be called 007 or NA
EXCHANGE_COLUMNS = (
    "method",
    "seed",
    "model_of",
    "round",
    "stage",
    "site",
    "outcome",
    "seconds",
    "request_bytes",
    "reply_bytes",
)
SUM_FACTS = (
    "set_up",
    "graph",
    "degree",
    "threshold",
    "sites",
    "shared",
    "survived",
    "fewest_honest",
    "ring_bits",
    "clipped_values",
    "rounding_sd",
)
SUM_COLUMNS = ("method", "seed", "model_of", "round", "failure", *SUM_FACTS)
PRIVACY_COLUMNS = (
    "method",
    "seed",
    "site",
    "delta",
    "epsilon_own_noise",
    "epsilon_shared_noise",
    "epsilon",
    "epsilon_cap",
    "events",
    "trust",
)
MARGIN_COLUMNS = (
    *("method", "seed", "model_of", "round", "finding", "mu", "n", "r"),
    *("within_variance", "between_variance", "drift"),
)
COST_COLUMNS = (
    *("method", "seed", "model_of", "site_count", "patients", "parameters", "planned_steps"),
    *("rounds", "failed_rounds", "round_seconds", "requests", "request_bytes", "reply_bytes"),
    *("evaluations", "evaluation_seconds", "peak_memory_bytes"),
)
TABLES = {
    "results.csv": RESULT_COLUMNS,
    "rounds.csv": ROUND_COLUMNS,
    "exchanges.csv": EXCHANGE_COLUMNS,
    "sums.csv": SUM_COLUMNS,
    "privacy.csv": PRIVACY_COLUMNS,
    "margins.csv": MARGIN_COLUMNS,
    "costs.csv": COST_COLUMNS,
}


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds.

    Attributes:
        mean: Mean over the seeds; NaN where no seed has a figure.
        sd: Sample standard deviation; NaN for one seed, which has no spread.
        seeds: How many seeds have a figure.
        of_seeds: How many were asked for one, where that is known; without a query that has
            anything relevant a seed has none.
    """

    mean: float
    sd: float
    seeds: int
    of_seeds: int | None = None

    def as_json(self) -> dict[str, float | int | None]:
        """JSON-able form; what there is none of is null."""
        return {
            "mean": None if math.isnan(self.mean) else self.mean,
            "sd": None if math.isnan(self.sd) else self.sd,
            "seeds": self.seeds,
        }

    def __str__(self) -> str:
        if self.seeds == 0:
            return "none"
        text = f"{self.mean:.3f}" + (f" ± {self.sd:.3f}" if self.seeds > 1 else "")
        if self.of_seeds is not None and self.seeds < self.of_seeds:
            text += f" ({self.seeds} of {self.of_seeds} seeds)"
        return text


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
        DataError: There is none yet, or it is damaged.
    """
    table = _read(run / "results.csv", RESULT_COLUMNS)
    if not table["value"].dropna().between(0, 1).all():
        raise _damaged(run / "results.csv", "it has values that are not from 0 to 1")
    return table


def read_rounds(run: Path) -> pd.DataFrame:
    """`rounds.csv` of a run folder, or of a cell; empty where nothing was trained.

    Raises:
        DataError: There is none yet, or it has other columns.
    """
    return _read(run / "rounds.csv", ROUND_COLUMNS, may_be_empty=True)


def read_partition(run: Path) -> pd.DataFrame:
    """`partition.csv` of a run folder.

    Raises:
        DataError: There is none yet, or it is damaged.
    """
    return _read(run / "partition.csv", PARTITION_COLUMNS)


def read_holdings(run: Path) -> pd.DataFrame:
    """`holdings.csv` of a run folder.

    Raises:
        DataError: There is none yet, or it is damaged.
    """
    return _read(run / "holdings.csv", HOLDING_COLUMNS)


def read_exchanges(run: Path) -> pd.DataFrame:
    """`exchanges.csv` of a run folder; empty where no round came to ask a site.

    Raises:
        DataError: There is none yet, or it has other columns.
    """
    return _read(run / "exchanges.csv", EXCHANGE_COLUMNS, may_be_empty=True)


def read_sums(run: Path) -> pd.DataFrame:
    """`sums.csv` of a run folder; empty where every aggregation was plain.

    Raises:
        DataError: There is none yet, or it has other columns.
    """
    return _read(run / "sums.csv", SUM_COLUMNS, may_be_empty=True)


def read_privacy(run: Path) -> pd.DataFrame:
    """`privacy.csv` of a run folder; empty where no method was private.

    Raises:
        DataError: There is none yet, or it has other columns.
    """
    return _read(run / "privacy.csv", PRIVACY_COLUMNS, may_be_empty=True)


def read_margins(run: Path) -> pd.DataFrame:
    """`margins.csv` of a run folder; empty where no method had a margin schedule.

    Raises:
        DataError: There is none yet, or it has other columns.
    """
    return _read(run / "margins.csv", MARGIN_COLUMNS, may_be_empty=True)


def read_costs(run: Path) -> pd.DataFrame:
    """`costs.csv` of a run folder.

    Raises:
        DataError: There is none yet, or it has other columns.
    """
    return _read(run / "costs.csv", COST_COLUMNS)


def _read(path: Path, columns: tuple[str, ...], *, may_be_empty: bool = False) -> pd.DataFrame:
    if not path.is_file():
        if path.with_name("results.csv").is_file():
            raise _damaged(path, "it is not there")
        raise DataError(
            f"{path} is not there; finish the run first: fedhash-sim run STUDY.yaml "
            f"--out {path.parent}"
        )
    try:
        table = pd.read_csv(
            path,
            dtype={name: _NUMBERS.get(name, str) for name in columns},
            keep_default_na=False,
            na_values={name: [""] for name in _MAY_BE_ABSENT},
        )
    except (ValueError, OverflowError) as error:
        raise _damaged(path, str(error)) from error
    if tuple(table.columns) != columns or (table.empty and not may_be_empty):
        raise _damaged(path, f"{len(table)} rows of {', '.join(table.columns)}")
    return table


def _damaged(path: Path, found: str) -> DataError:
    return DataError(
        f"{path} is damaged or of another version ({found}); remove "
        f"{path.with_name('results.csv')} and run the study again: the tables beside it are "
        "written anew, nothing is trained twice"
    )


def spread(values: pd.Series, of_seeds: int | None = None) -> Spread:
    """Mean and standard deviation of one figure over seeds."""
    return Spread(float(values.mean()), float(values.std(ddof=1)), int(values.count()), of_seeds)


def final_round(results: pd.DataFrame) -> pd.DataFrame:
    """Only the rows of each method's last evaluated round."""
    last = results.groupby(["method", "seed"])["round"].transform("max")
    return results[results["round"] == last]


def with_worst_finding(results: pd.DataFrame) -> pd.DataFrame:
    """With `worst_map`: of each model in each direction the mAP of the finding that has the least.

    `worst_chance_map` is the level of chance of that same finding.
    """
    model = ["method", "seed", "round", "query", "target"]
    of_findings = results[results["group"].str.startswith("finding=")]
    figures = of_findings[of_findings["metric"] == "map"].dropna(subset="value")
    worst = figures.loc[figures.groupby(model, sort=False)["value"].idxmin()]
    chance = of_findings[of_findings["metric"] == "chance_map"]
    chance = chance.merge(worst[[*model, "group"]], on=[*model, "group"])
    added = [
        each.assign(metric=metric, group="all")
        for metric, each in (("worst_map", worst), ("worst_chance_map", chance))
    ]
    return pd.concat([results, *added], ignore_index=True)


def main_table(results: pd.DataFrame, metric: str = "map") -> list[MainRow]:
    """The final mAP of every direction and method, with chance; `macro_map` likewise."""
    final = final_round(results)
    final = final[final["group"] == "all"]
    methods = list(dict.fromkeys(results["method"]))
    seeds = results["seed"].nunique()
    rows = []
    for (query, target), direction in final.groupby(["query", "target"], sort=False):
        figures = direction[direction["metric"] == metric]
        chance = direction[direction["metric"] == metric.replace("map", "chance_map")]
        rows.append(
            MainRow(
                query=str(query),
                target=str(target),
                metric=metric,
                chance=spread(chance.drop_duplicates("seed")["value"], seeds),
                methods={
                    method: spread(figures[figures["method"] == method]["value"], seeds)
                    for method in methods
                },
            )
        )
    return rows
