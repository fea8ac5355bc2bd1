"""The ServerApps of Flower's contenders in `bench_network`.

Each leaves an empty file `round-N` when round N has ended, and checks the model by then: every site
adds a known number to all parameters, so a round adds their mean.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from flwr.common import parameters_to_ndarrays
from flwr.compat.common import recorddict_compat
from flwr.server import LegacyContext
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.network_averaging_client import EXAMPLES, update_of

__all__ = ["averaging", "secagg_plus"]

averaging, secagg_plus = ServerApp(), ServerApp()


@averaging.main()
def _average(grid: Grid, context: Context) -> None:
    """What a user of Flower gets by default: each round trains, averages and evaluates."""
    sites, rounds = int(context.run_config["sites"]), int(context.run_config["rounds"])
    strategy = _NotedFedAvg(Path(str(context.run_config["folder"])), sites)
    strategy.start(grid, _first_model(context), num_rounds=rounds)


class _NotedFedAvg(FedAvg):
    """FedAvg with three settings that only say how many sites there are."""

    def __init__(self, folder: Path, sites: int) -> None:
        super().__init__(min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites)
        self._folder = folder
        self._sites = sites

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        (self._folder / f"train-{server_round}").touch()
        models = [] if arrays is None else arrays.to_numpy_ndarrays()
        _check_model(models, server_round, self._sites, tolerance=1e-5)
        return arrays, metrics

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        metrics = super().aggregate_evaluate(server_round, replies)
        if metrics is None:
            raise RuntimeError(f"nobody evaluated in round {server_round}")
        (self._folder / f"round-{server_round}").touch()
        return metrics


@secagg_plus.main()
def _sum_securely(grid: Grid, context: Context) -> None:
    """Flower's workflow of one round, again and again, on Flower's own defaults."""
    sites, rounds = int(context.run_config["sites"]), int(context.run_config["rounds"])
    folder = Path(str(context.run_config["folder"]))
    while len(nodes := list(grid.get_node_ids())) < sites:
        time.sleep(0.1)
    legacy = LegacyContext(context, strategy=LegacyFedAvg(min_available_clients=sites))
    for node in nodes:
        legacy.client_manager.register(GridClientProxy(node, grid, grid.run.run_id))
    legacy.state.array_records[MAIN_PARAMS_RECORD] = _first_model(context)
    workflow = SecAggPlusWorkflow(num_shares=sites, reconstruction_threshold=sites - 1)
    # an error is below a step of stochastic rounding and another of float32 arithmetic
    step = 2 * workflow.clipping_range / workflow.quantization_range
    tolerance = 2 * step * workflow.max_weight / EXAMPLES
    for number in range(1, rounds + 1):
        legacy.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: number})
        workflow(grid, legacy)
        (folder / f"round-{number}").touch()
        parameters = recorddict_compat.arrayrecord_to_parameters(
            legacy.state.array_records[MAIN_PARAMS_RECORD], keep_input=True
        )
        _check_model(parameters_to_ndarrays(parameters), number, sites, number * tolerance)


def _first_model(context: Context) -> ArrayRecord:
    return ArrayRecord([np.zeros(int(context.run_config["parameters"]), np.float32)])


def _check_model(models: list[np.ndarray], rounds: int, sites: int, tolerance: float) -> None:
    """Compare the model after so many rounds with the known one.

    Raises:
        RuntimeError: There is none, or a parameter is wrong.
    """
    moved = rounds * np.mean([update_of(place) for place in range(sites)])
    error = max((float(np.abs(model - moved).max()) for model in models), default=float("inf"))
    if not error <= tolerance:
        raise RuntimeError(
            f"the model of round {rounds} is wrong by {error:.3g}, {tolerance:.3g} is rounding"
        )
