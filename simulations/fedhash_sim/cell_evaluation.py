"""What the models of a cell find: every evaluated round, kept on disk.

1. A round that was evaluated is not evaluated again.
2. One model encodes the queries and the database of all sites. Where sites keep layers of their own
   (`fedhash.learning.own_layers`) each site encodes its own database with its own model, and the
   queries are asked with each site's model in turn: one set of figures a site.

    >>> evaluator = CellEvaluator(study, consortium, work, seed=0)
    >>> evaluator.figures({"consortium": vector}, rounds_total=30)["consortium"][30]
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedhash.codes import pack_signs
from fedhash.errors import CheckpointError
from fedhash.evaluation.direction import MetricRow, evaluate_direction
from fedhash.models.hash_model import HashModel, encode_studies
from fedhash.models.layout import Layout
from fedhash.models.prepared import PreparedStudies
from fedhash_sim.code_sample import CodeSample
from fedhash_sim.consortium import Consortium
from fedhash_sim.results import RESULT_COLUMNS
from fedhash_sim.run_folder import file_name, write_table
from fedhash_sim.settings import Direction, ResolvedStudy

__all__ = ["CellEvaluator", "Figures", "evaluate_model", "figure_values", "read_figures"]

Figures = list[tuple[Direction, MetricRow]]


class CellEvaluator:
    """Evaluates models on a study's queries and remembers what it found in `folder`.

    Attributes:
        seconds: Of each round's evaluation that was not remembered.
    """

    def __init__(
        self, study: ResolvedStudy, consortium: Consortium, folder: Path, seed: int
    ) -> None:
        self._study = study
        self._consortium = consortium
        self._folder = folder
        self._model = study.build_model(seed)
        self._seed = seed
        self.seconds: list[float] = []

    def after_round(
        self, number: int, rounds_total: int, models: Callable[[], Mapping[str, np.ndarray]]
    ) -> None:
        """Evaluate a round, if the study asks for it.

        Args:
            number: Of the round that ended.
            rounds_total: The last one is left to `figures`.
            models: Tells those of `figures`; asked where the round is evaluated.
        """
        every = self._study.settings.evaluation.every_rounds
        if every and number % every == 0 and number < rounds_total:
            self._evaluate(number, models())

    def figures(
        self, models: Mapping[str, np.ndarray], rounds_total: int
    ) -> dict[str, dict[int, Figures]]:
        """All evaluated rounds of each model, the last one among them.

        Args:
            models: Name to vector: one model for all, or that of every site.
            rounds_total: The last round.

        Raises:
            CheckpointError: A file of an earlier evaluation is damaged.
        """
        self._evaluate(rounds_total, models)
        return {
            name: {
                int(path.stem.removeprefix("evaluation-")): read_figures(path, self._folder)
                for path in sorted(self._folder_of(name, models).glob("evaluation-*.csv"))
            }
            for name in models
        }

    def code_sample(self, vector: np.ndarray) -> CodeSample:
        """Some codes of a model that encodes for all."""
        self._load(vector)
        consortium = self._consortium
        database = consortium.database(*consortium.sites)
        return CodeSample.draw(self._model, consortium.queries(), database, self._seed)

    def _folder_of(self, name: str, models: Mapping[str, np.ndarray]) -> Path:
        return self._folder if len(models) == 1 else self._folder / file_name(name)

    def _evaluate(self, number: int, models: Mapping[str, np.ndarray]) -> None:
        paths = {
            name: self._folder_of(name, models) / f"evaluation-{number:06d}.csv" for name in models
        }
        if all(path.is_file() for path in paths.values()):
            return
        started = time.perf_counter()
        study, consortium = self._study, self._consortium
        database = consortium.database(*consortium.sites)
        targets = {direction.target for direction in study.directions}
        parts = []
        for holder, vector in models.items():
            self._load(vector)
            held = database if len(models) == 1 else consortium.database(holder)
            parts.append({name: _codes(self._model, held, name) for name in targets})
        codes = {name: np.concatenate([part[name] for part in parts]) for name in targets}
        for asker, vector in models.items():
            self._load(vector)
            rows = evaluate_model(
                self._model,
                consortium.queries(),
                database,
                study.directions,
                study.agreement.findings,
                study.settings.evaluation.groups,
                study.settings.evaluation.depth,
                database_codes=codes,
            )
            paths[asker].parent.mkdir(parents=True, exist_ok=True)
            write_table(
                paths[asker],
                RESULT_COLUMNS[3:],
                [
                    (direction.query, direction.target, *figure_values(row))
                    for direction, row in rows
                ],
            )
        self.seconds.append(time.perf_counter() - started)

    def _load(self, vector: np.ndarray) -> None:
        Layout.of(self._model).load(self._model, vector)


def evaluate_model(
    model: HashModel,
    queries: PreparedStudies,
    database: PreparedStudies,
    directions: Sequence[Direction],
    findings: Sequence[str],
    groups: Sequence[str],
    depth: int | None,
    database_codes: Mapping[str, np.ndarray] | None = None,
) -> Figures:
    """All metrics of a model in all directions; studies without a modality sit that one out.

    Args:
        model: Encodes the queries.
        queries: Studies that ask.
        database: Studies that are found.
        directions: Queries against targets.
        findings: The agreement's.
        groups: Attributes to report by.
        depth: Ranks that count; None: all.
        database_codes: Modality to the codes of the database, where others encoded it; None: the
            model encodes it too.
    """
    query_codes = {name: _codes(model, queries, name) for name in {d.query for d in directions}}
    if database_codes is None:
        database_codes = {
            name: _codes(model, database, name) for name in {d.target for d in directions}
        }
    rows = []
    for direction in directions:
        asks = queries.present[direction.query].numpy()
        answers = database.present[direction.target].numpy()
        attributes: list[Mapping[str, str]] = [
            {name: each[name] for name in groups if name in each}
            for each, present in zip(queries.attributes, asks, strict=True)
            if present
        ]
        rows += [
            (direction, row)
            for row in evaluate_direction(
                query_codes[direction.query][asks],
                queries.labels.numpy()[asks],
                database_codes[direction.target][answers],
                database.labels.numpy()[answers],
                findings=findings,
                depth=depth,
                query_attributes=attributes,
            )
        ]
    return rows


def figure_values(row: MetricRow) -> tuple[str, str, str, int]:
    """Metric, group, value and count as a table holds them."""
    return (row.metric, row.group, f"{row.value:.6f}", row.count)


def read_figures(path: Path, work: Path) -> Figures:
    """What the evaluation of one round left on the disk.

    Args:
        path: The file.
        work: The folder of the training, which the error says to remove.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            figures: Figures = [
                (
                    Direction(query=row["query"], target=row["target"]),
                    MetricRow(row["metric"], row["group"], float(row["value"]), int(row["count"])),
                )
                for row in csv.DictReader(file, strict=True)
            ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise _damaged(path, work, repr(error)) from error
    if not figures:
        raise _damaged(path, work, "it has no rows")
    return figures


def _damaged(path: Path, work: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged ({found}); remove {work} and run the study again: only the model in it "
        "is trained anew"
    )


def _codes(model: HashModel, studies: PreparedStudies, modality: str) -> np.ndarray:
    return pack_signs(encode_studies(model, studies, modality))
