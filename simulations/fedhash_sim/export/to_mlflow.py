"""A run in MLflow: an experiment named like the study, one run for the whole, one for each cell.

1. A run of MLflow knows by a tag which configuration and cell it tells. One of a finished cell is
   left as it is; one of a cell that still trained, or whose writing was interrupted, is deleted
   once its successor is there. So nothing is there twice.
2. The run for the whole holds the configuration, and once the study is finished its pictures; they
   replace those of an earlier export, an interrupted one too.
3. MLflow reports its use over the internet unless it is told not to; here it is told.

    >>> write_mlflow(RunHistory.read(Path("runs/demo")), "sqlite:///mlflow.db")
    'demo'
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fedhash.errors import ConfigurationError, Problem
from fedhash_sim.export.history import CellHistory, RunHistory

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["write_mlflow"]

T = TypeVar("T")
_TAG = "fedhash.tells"
_LONGEST_VALUE = 6000  # of a parameter; longer ones stand in the configuration's files
_MOST_FIGURES, _MOST_PARAMETERS = 1000, 100  # of one request


def write_mlflow(history: RunHistory, uri: str) -> str:
    """Write the run to a tracking server or database.

    Args:
        history: The run.
        uri: As `mlflow.set_tracking_uri` takes it, for example `http://host:5000` or
            `sqlite:///mlflow.db`.

    Returns:
        Name of the experiment.

    Raises:
        ConfigurationError: MLflow is not installed, or refuses.
    """
    with _refusals_told(uri):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(history.study)
        experiment = found.experiment_id if found else client.create_experiment(history.study)
        key = f"{history.digest} run"
        earlier = [each for of in _runs_of(client, experiment, key) for each in of]
        whole = earlier[0] if earlier else _new_run(client, experiment, history.name, {_TAG: key})
        for path in (*history.configuration, *history.pictures):
            folder = "plots" if path in history.pictures else None
            client.log_artifact(whole, str(path), folder)
        client.set_terminated(whole)
        for cell in history.cells:
            _write_cell(client, experiment, history, cell, whole)
    return history.study


def _write_cell(
    client: MlflowClient, experiment: str, history: RunHistory, cell: CellHistory, whole: str
) -> None:
    from mlflow.entities import Metric, Param

    key = f"{history.digest} {cell.name}"
    finished, others = _runs_of(client, experiment, key)
    if not finished:
        name, tags = f"{history.name} {cell.name}", {_TAG: key, "mlflow.parentRunId": whole}
        run = _new_run(client, experiment, name, tags)
        now = int(time.time() * 1000)
        figures = [
            Metric(figure, value, now, number)
            for figure, curve in cell.curves.items()
            for number, value in curve
        ]
        parameters = [
            Param(setting, value)
            for setting, value in cell.settings.items()
            if len(value) <= _LONGEST_VALUE
        ]
        for some_figures in _in_parts(figures, _MOST_FIGURES):
            client.log_batch(run, metrics=some_figures)
        for some_parameters in _in_parts(parameters, _MOST_PARAMETERS):
            client.log_batch(run, params=some_parameters)
        if cell.is_done:
            client.set_terminated(run)
    for other in others:
        client.delete_run(other)


def _new_run(client: MlflowClient, experiment: str, name: str, tags: dict[str, str]) -> str:
    return str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)


def _runs_of(client: MlflowClient, experiment: str, key: str) -> tuple[list[str], list[str]]:
    """The runs that tell `key`: finished ones, and others."""
    finished: list[str] = []
    others: list[str] = []
    for run in client.search_runs([experiment], f"tags.`{_TAG}` = '{key}'"):
        (finished if run.info.status == "FINISHED" else others).append(run.info.run_id)
    return finished, others


def _in_parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]


@contextmanager
def _refusals_told(uri: str) -> Iterator[None]:
    """What MLflow or its database says, without the URI: it may hold a password."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when MLflow is imported
    # MLflow's own 7 retries wait four minutes for a server that is not there
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    try:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ModuleNotFoundError as error:
        reason = "MLflow's client is not installed; pip install 'fedhash[mlflow]'"
        raise ConfigurationError([Problem(Path("--mlflow"), None, reason)]) from error
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        said = str(error).replace(uri.rstrip("/"), "the URI")
        reason = f"MLflow refuses: {said}; check the URI and whether the server runs"
        raise ConfigurationError([Problem(Path("--mlflow"), None, reason)]) from error
