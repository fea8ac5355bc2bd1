"""`fedhash-sim export`: a run in TensorBoard or MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhash.errors import ConfigurationError, Problem
from fedhash_sim.terminal import AsJson, out_console, print_json, told

__all__ = ["export_command"]


def export_command(
    run: Annotated[Path, typer.Argument(help="A run folder of 'fedhash-sim run'.", metavar="RUN")],
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write event files; then: tensorboard --logdir FOLDER"),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Write to MLflow: http://host:5000, sqlite:///mlflow.db"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write curves, figures, settings and pictures of a run, finished or not, for other tools."""
    with told():
        from fedhash_sim.export.history import RunHistory
        from fedhash_sim.export.to_mlflow import write_mlflow
        from fedhash_sim.export.to_tensorboard import write_tensorboard
        from fedhash_sim.run_folder import explained

        if tensorboard is None and mlflow is None:
            reason = "nothing to write to; name --tensorboard FOLDER, --mlflow URI or both"
            raise ConfigurationError([Problem(Path("export"), None, reason)])
        history = RunHistory.read(run)
        written: dict[str, str] = {}
        if tensorboard is not None:
            with explained(tensorboard):
                written["tensorboard"] = str(write_tensorboard(history, tensorboard))
        if mlflow is not None:
            written["mlflow experiment"] = write_mlflow(history, mlflow)
        unfinished = [cell.name for cell in history.cells if not cell.is_done]
        if as_json:
            cells = [cell.name for cell in history.cells]
            waiting = list(history.waiting)
            print_json({**written, "cells": cells, "unfinished": unfinished, "waiting": waiting})
            return
        for where, name in written.items():
            out_console.print(f"{where}: {name}", markup=False, highlight=False, soft_wrap=True)
        out_console.print(f"{len(history.cells)} cells", highlight=False)
        if unfinished or history.waiting:
            still = ", ".join([*unfinished, *history.waiting])
            out_console.print(
                f"not finished: {still}; the same command later replaces what is there",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
