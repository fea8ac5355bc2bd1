"""What a run tells other tools of its cells: curves, last figures, settings, pictures.

1. A finished cell tells all of its tables, but for the figures by radius, of which there are
   hundreds. One that still trains tells the rounds that it has evaluated, if it trains one model.
2. A curve is a name and points of (round, value); a figure of the last round alone is a curve of
   one point.
3. Names hold letters, digits, spaces and `_ - . /` alone, as MLflow wants them.
4. `digest` is of the configuration and of the version, so runs of equal figures have equal ones.

    >>> history = RunHistory.read(Path("runs/demo"))
    >>> history.cells[0].curves["map/image to report"]
    ((10, 0.4123), (20, 0.5661))
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from fedhash_sim.cell_evaluation import read_figures
from fedhash_sim.results import (
    final_round,
    read_costs,
    read_margins,
    read_privacy,
    read_results,
    read_rounds,
)
from fedhash_sim.run_folder import CellFolder, RunFolder, file_name
from fedhash_sim.settings import ResolvedStudy

__all__ = ["CellHistory", "Curve", "RunHistory"]

Curve: TypeAlias = tuple[tuple[int, float], ...]
_CONFIGURATION = ("study.yaml", "agreement.yaml", "round.yaml", "public_round.yaml", "inputs.json")
_LONGEST_PART = 60  # of a name
_COSTS = ("round_seconds", "request_bytes", "reply_bytes", "evaluation_seconds")


@dataclass(frozen=True)
class CellHistory:
    """One method under one seed.

    Attributes:
        name: As its folder is called.
        is_done: Whether it has its results.
        settings: Key, as `--set` would name it, to value.
        curves: Name to points, by ascending round.
    """

    name: str
    is_done: bool
    settings: Mapping[str, str]
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class RunHistory:
    """A finished or unfinished run.

    Attributes:
        name: Of the run folder.
        study: Name of the study.
        digest: SHA-256 (hex) of all that the figures depend on.
        cells: Those that have something to tell.
        waiting: Names of the others.
        configuration: The files of the configuration.
        pictures: Of the report; none before the run is finished.
    """

    name: str
    study: str
    digest: str
    cells: tuple[CellHistory, ...]
    waiting: tuple[str, ...]
    configuration: tuple[Path, ...]
    pictures: tuple[Path, ...]

    @classmethod
    def read(cls, run: Path) -> RunHistory:
        """Read a run folder.

        Raises:
            CheckpointError: It is none, or a cell's evaluation is damaged.
            ConfigurationError: Its configuration is damaged.
            DataError: A table of a cell is damaged.
        """
        folder, study = RunFolder.existing(run)
        cells, waiting = [], []
        for method in study.settings.methods:
            for seed in study.settings.seeds:
                cell = folder.cell(method, seed)
                curves = _curves(cell) if cell.is_done else _curves_so_far(cell)
                if curves:
                    settings = dict(_settings(study, method, seed))
                    cells.append(CellHistory(cell.path.name, cell.is_done, settings, curves))
                else:
                    waiting.append(cell.path.name)
        configuration = [run / name for name in _CONFIGURATION if (run / name).is_file()]
        texts = {path.name: path.read_text("utf-8", "backslashreplace") for path in configuration}
        return cls(
            name=run.resolve().name,
            study=study.settings.name,
            digest=hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest(),
            cells=tuple(cells),
            waiting=tuple(waiting),
            configuration=tuple(configuration),
            pictures=tuple(sorted((run / "plots").glob("*.png"))),
        )


def _curves(cell: CellFolder) -> dict[str, Curve]:
    results = read_results(cell.path)
    curves = _curves_of_all(results)
    last = final_round(results)
    groups = last[last["group"].str.contains("=") & ~last["group"].str.startswith("radius=")]
    for row in groups.itertuples():
        kind, level = row.group.split("=", 1)
        name = _name(f"{row.metric} by {kind}", level, f"{row.query} to {row.target}")
        curves[name] = ((row.round, row.value),)
    return curves | _training_curves(cell.path) | _last_of_training(cell.path, last["round"].max())


def _curves_of_all(results: pd.DataFrame) -> dict[str, Curve]:
    """The figures of all queries, by round."""
    of_all = results[results["group"] == "all"].sort_values("round")
    return {
        _name(metric, f"{query} to {target}"): _points(curve.set_index("round")["value"])
        for (metric, query, target), curve in of_all.groupby(["metric", "query", "target"])
    }


def _training_curves(cell: Path) -> dict[str, Curve]:
    """Loss, seconds and losses of sites by round, means over the models; and the margins."""
    rounds, margins = read_rounds(cell), read_margins(cell)
    models = rounds.groupby(["model_of", "round"])[["mean_loss", "seconds"]].first()
    by_round = models.groupby("round").mean()
    left_out = (rounds["status"] != "ok").groupby(rounds["round"]).sum()
    curves = {
        "training/loss": _points(by_round["mean_loss"].dropna()),
        "training/seconds": _points(by_round["seconds"]),
        "training/sites left out": _points(left_out),
    }
    for finding, curve in margins.groupby("finding", sort=False):
        curves[_name("margin", finding)] = _points(curve.groupby("round")["mu"].mean())
    return {name: curve for name, curve in curves.items() if curve}


def _last_of_training(cell: Path, number: int) -> dict[str, Curve]:
    """What the training cost, and the epsilon of each site."""
    costs, privacy = read_costs(cell), read_privacy(cell)
    figures = {_name("cost", name): costs[name].sum() for name in _COSTS}
    if costs["peak_memory_bytes"].notna().all():
        figures["cost/peak_memory_bytes"] = costs["peak_memory_bytes"].max()
    for row in privacy.itertuples():
        figures[_name("epsilon", row.site)] = row.epsilon
    return {name: ((int(number), float(value)),) for name, value in figures.items()}


def _curves_so_far(cell: CellFolder) -> dict[str, Curve]:
    """The evaluated rounds of a cell that trains; none of one with a model for each site."""
    models = cell.path / "models"
    if len(list(models.glob("*"))) != 1 or cell.path.name.startswith("local-"):
        return {}
    rows = [
        (
            int(path.stem.removeprefix("evaluation-")),
            each.query,
            each.target,
            *(row.metric, row.group, row.value),
        )
        for path in sorted(models.glob("0/evaluation-*.csv"))
        for each, row in read_figures(path, path.parent)
    ]
    columns = ["round", "query", "target", "metric", "group", "value"]
    return _curves_of_all(pd.DataFrame(rows, columns=columns))


def _points(values: pd.Series) -> Curve:
    return tuple((int(number), float(value)) for number, value in values.items())


def _settings(study: ResolvedStudy, method: str, seed: int) -> Iterator[tuple[str, str]]:
    """What makes a cell's figures, one key at a time."""
    yield from (("method", method), ("seed", str(seed)))
    own = study.settings.model_dump(
        mode="json", exclude={"agreement", "round", "method_settings", "methods", "seeds"}
    )
    parts = {
        "agreement": study.agreement.model_dump(mode="json"),
        "round": study.round_of[method].model_dump(mode="json"),
    }
    yield from _flat(own | parts)


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        name = before + _part(key)
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value)


def _name(*parts: str) -> str:
    return "/".join(map(_part, parts))


def _part(text: str) -> str:
    """Text that may stand in a name; what would have to be changed gets a name of its own."""
    fits = re.fullmatch(r"[\w\- ][\w\-. ]*", text) and len(text) <= _LONGEST_PART
    return text if fits else file_name(text)
