"""Flower's Ray runtime on the work of `make bench-sim`: FedAvg over NumPy clients.

The network and the loss are those of `benchmarks.pfl_peer`.

    .venv/bin/python -m benchmarks.ray_peer --features 288 --hidden 27 --sites 100 --rounds 3
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch
from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context, NDArrays, Scalar, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

_OUTPUTS = 64
_CLASSES = 10
_ROWS = 8


def _network(features: int, hidden: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.LayerNorm(features),
        torch.nn.Linear(features, hidden),
        torch.nn.ReLU(),
        torch.nn.Linear(hidden, _OUTPUTS),
    )


class _OneStep(NumPyClient):
    """One step of SGD on eight rows."""

    def __init__(self, features: int, hidden: int, site: int) -> None:
        torch.set_num_threads(1)
        rng = np.random.default_rng(site)
        self._network = _network(features, hidden)
        self._x = torch.from_numpy(rng.random((_ROWS, features), dtype=np.float32))
        self._y = torch.from_numpy(rng.integers(_CLASSES, size=_ROWS))

    def fit(
        self,
        parameters: NDArrays,
        config: dict[str, Scalar],  # noqa: ARG002 - Flower's signature
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        with torch.no_grad():
            for own, sent in zip(self._network.parameters(), parameters, strict=True):
                own.copy_(torch.from_numpy(sent))
        optimiser = torch.optim.SGD(self._network.parameters(), lr=0.1)
        loss = torch.nn.functional.cross_entropy(self._network(self._x), self._y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return [each.detach().numpy() for each in self._network.parameters()], _ROWS, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("features", "hidden", "sites", "rounds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    chosen = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)

    def client_of(context: Context) -> Client:
        site = int(context.node_config["partition-id"])
        return _OneStep(chosen.features, chosen.hidden, site).to_client()

    def server_of(context: Context) -> ServerAppComponents:  # noqa: ARG001 - Flower's signature
        first = [
            each.detach().numpy() for each in _network(chosen.features, chosen.hidden).parameters()
        ]
        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_fit_clients=chosen.sites,
            min_available_clients=chosen.sites,
            initial_parameters=ndarrays_to_parameters(first),
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=chosen.rounds))

    run_simulation(
        ServerApp(server_fn=server_of),
        ClientApp(client_fn=client_of),
        num_supernodes=chosen.sites,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0}},
    )


if __name__ == "__main__":
    main()
