"""Several runs beside the first one: means over seeds, and differences seed by seed.

1. Only what asks the same queries of the same database is compared: per seed the same studies with
   the same findings, the same findings in the agreement, the same modalities missing, the same
   ranks.
2. Figures are over the seeds that all runs have.
3. A difference is that of a method in one direction from the same in the first run, or from the
   method of the first run that is named, paired by seed, with Student's 95 % interval and two-sided
   paired t-test. They take the differences for normal, and p is not corrected for the number of
   rows.

>>> rows = compare([Path("runs/demo"), Path("runs/demo-32")], "macro_map")
>>> rows[-1].difference
Difference(mean=-0.021, low=-0.034, high=-0.008, p=0.02, seeds=3)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fedhash.configuration import did_you_mean
from fedhash.errors import DataError
from fedhash.models.prepared import PreparedStudies
from fedhash_sim.consortium import Consortium
from fedhash_sim.folder_kinds import is_sweep
from fedhash_sim.results import Spread, final_round, main_table, read_results
from fedhash_sim.run_folder import RunFolder
from fedhash_sim.settings import PhantomSource, ResolvedStudy

__all__ = ["ComparedRow", "Difference", "compare", "paired"]

_CONFIDENCE = 0.95
_DECIMALS = 6  # of the figures in results.csv; what is beyond is rounding of the subtraction


@dataclass(frozen=True)
class Difference:
    """A paired difference, the other run minus the first.

    Attributes:
        mean: Over the seeds.
        low: Of the 95 % interval of the mean; None where one seed, or no spread, tells none.
        high: Likewise.
        p: Two-sided, of no difference; None likewise.
        seeds: Pairs.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    seeds: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class ComparedRow:
    """One method of a run in one direction.

    Attributes:
        run: The run folder.
        method: One of its study's.
        query: Modality that asks.
        target: Modality that is searched.
        figure: Mean and spread over the common seeds.
        chance: The level of chance.
        difference: From the first run; None of what is compared with, and where that has no such
            row.
    """

    run: str
    method: str
    query: str
    target: str
    figure: Spread
    chance: Spread
    difference: Difference | None

    def as_json(self) -> dict[str, Any]:
        """JSON-able form; what there is none of is null."""
        return asdict(self) | {
            "figure": self.figure.as_json(),
            "chance": self.chance.as_json(),
        }


def compare(paths: Sequence[Path], metric: str, against: str | None = None) -> list[ComparedRow]:
    """The rows of all runs, in their order.

    Args:
        paths: Finished run or sweep folders; a sweep that chose on val gives its points on test.
        metric: map or macro_map.
        against: The method of the first run that all others are compared with; None: each with its
            like.

    Raises:
        DataError: They cannot be compared, or one of them is not finished.
        CheckpointError: A folder is neither a run nor a sweep.
    """
    runs = [run for path in paths for run in _runs_in(path)]
    studies = [RunFolder.existing(run)[1] for run in runs]
    first = studies[0].settings.seeds
    seeds = [seed for seed in first if all(seed in each.settings.seeds for each in studies)]
    if not seeds:
        listed = "; ".join(
            f"{run}: {s.settings.seeds}" for run, s in zip(runs, studies, strict=True)
        )
        raise DataError(f"the runs have no seed in common, so nothing can be paired ({listed})")
    methods = studies[0].settings.methods
    if against is not None and against not in methods:
        raise DataError(
            f"{runs[0]} has no method {against!r} to compare with; {did_you_mean(against, methods)}"
        )
    _check_same(runs, studies, seeds)
    tables = []
    for run in runs:
        results = read_results(run)
        tables.append(final_round(results[results["seed"].isin(seeds)]))
    rows = []
    for run, table in zip(runs, tables, strict=True):
        for row in main_table(table, metric):
            for method, figure in row.methods.items():
                other = against or method
                difference = None
                if (run, method) != (runs[0], other):
                    where = (row.query, row.target, metric)
                    difference = _difference((tables[0], other), (table, method), *where)
                rows.append(
                    ComparedRow(
                        str(run), method, row.query, row.target, figure, row.chance, difference
                    )
                )
    return rows


def paired(first: Sequence[float], other: Sequence[float]) -> Difference:
    """The paired difference of figures that belong to the same seeds, in the same order.

    Args:
        first: Figures of the first run, at least one.
        other: Of the other one.
    """
    differences = np.round(np.subtract(other, first), _DECIMALS)
    count, mean = len(differences), float(differences.mean())
    if count < 2 or np.ptp(differences) == 0:
        return Difference(mean, None, None, None, count)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    half = error * float(stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1))
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
    return Difference(mean, mean - half, mean + half, p, count)


def _runs_in(path: Path) -> list[Path]:
    """The run folders of a sweep, or the run itself."""
    table = path / "sweep.csv"
    if not table.is_file():
        if is_sweep(path):
            raise DataError(f"{path} holds an unfinished sweep; run its command again first")
        return [path]
    try:
        rows = pd.read_csv(table, usecols=["point", "queries"], dtype=str, keep_default_na=False)
    except ValueError as error:
        raise DataError(f"{table} is damaged ({error}); run the sweep again") from error
    if rows.empty:
        raise DataError(f"{table} has no rows: no point of the sweep was trained")
    if {"val", "test"} <= set(rows["queries"]):  # chosen on the one, told on the other
        rows = rows[rows["queries"] == "test"]
    return [path / name for name in dict.fromkeys(rows["point"])]


def _check_same(
    runs: Sequence[Path], studies: Sequence[ResolvedStudy], seeds: Sequence[int]
) -> None:
    common = set.intersection(*(set(each.round.model.towers) for each in studies))
    known, *others = (
        list(_what_is_asked(run, study, seeds, sorted(common)))
        for run, study in zip(runs, studies, strict=True)
    )
    for run, asked in zip(runs[1:], others, strict=True):
        for (name, value), (_, other) in zip(known, asked, strict=True):
            if other != value:
                raise DataError(
                    f"{run} cannot be compared with {runs[0]}: {name}: {other} against {value}; "
                    "compare runs that ask the same queries of the same database"
                )


def _what_is_asked(
    run: Path, study: ResolvedStudy, seeds: Sequence[int], modalities: Sequence[str]
) -> Iterator[tuple[str, object]]:
    yield "evaluation.queries", study.settings.evaluation.queries
    yield "evaluation.depth", study.settings.evaluation.depth
    yield "the agreement's findings", study.agreement.findings
    yield "missing_modalities", study.settings.missing_modalities  # they find other things
    for seed in seeds:
        consortium = Consortium.load(RunFolder(run).data(seed))
        database = consortium.database(*consortium.sites)
        yield f"the queries of seed {seed}", _identity(consortium.queries(), modalities)
        yield f"the database of seed {seed}", _identity(database, modalities)
    yield "feature_shift", study.settings.feature_shift
    if isinstance(study.settings.data, PhantomSource):  # its studies' names say nothing of them
        yield "data", study.settings.data


def _identity(studies: PreparedStudies, modalities: Sequence[str]) -> str:
    """How many studies, and which, with which findings and modalities; in whatever order."""
    present = [studies.present[each].tolist() for each in modalities]
    rows = sorted(map(str, zip(studies.study_ids, studies.labels.tolist(), *present, strict=True)))
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()[:8]
    return f"{len(rows)} studies ({digest})"


def _difference(
    first: tuple[pd.DataFrame, str],
    other: tuple[pd.DataFrame, str],
    query: str,
    target: str,
    metric: str,
) -> Difference | None:
    """Between a method of each of two tables."""
    wanted = {"query": query, "target": target, "metric": metric, "group": "all"}
    values = []
    for table, method in (first, other):
        wanted["method"] = method
        is_wanted = (table[list(wanted)] == pd.Series(wanted)).all(axis=1)
        values.append(table[is_wanted].set_index("seed")["value"])
    both = pd.concat(values, axis=1, join="inner").dropna()
    return None if both.empty else paired(both.iloc[:, 0].tolist(), both.iloc[:, 1].tolist())
