"""pfl's simulator on the work of `make bench-sim`; runs in an environment of its own.

pfl 0.6 pins other versions than this project, so this file imports nothing of it. The network is
that of the tower `image_hog` (LayerNorm, linear, ReLU, linear), the loss plain cross-entropy, which
is cheaper than a hashing loss.

    build/pfl/bin/python benchmarks/pfl_peer.py --features 288 --hidden 27 --sites 100 --rounds 20

Prints one JSON line: parameters, rounds per CPU-second.
"""

from __future__ import annotations

import argparse
import json
import logging
import time

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism

_OUTPUTS = 64
_CLASSES = 10
_ROWS = 8
_WARM_UP_ROUNDS = 3


class Network(torch.nn.Module):
    """The tower's layers with the functions that pfl asks for."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.LayerNorm(features),
            torch.nn.Linear(features, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, _OUTPUTS),
        )

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:  # noqa: A002
        """Mean cross-entropy of a batch."""
        self.eval() if eval else self.train()
        return torch.nn.functional.cross_entropy(self.body(x), y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        """What pfl reports of a batch."""
        return {"loss": Weighted(float(self.loss(x, y, eval=True)) * len(y), len(y))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("features", "hidden", "sites", "rounds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--noise", action="store_true", help="central Gaussian noise on the sum")
    chosen = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    users = {
        str(site): (
            torch.from_numpy(rng.random((_ROWS, chosen.features), dtype=np.float32)),
            torch.from_numpy(rng.integers(_CLASSES, size=_ROWS)),
        )
        for site in range(chosen.sites)
    }
    data = FederatedDataset(
        lambda user: Dataset(users[user], user_id=user), get_user_sampler("random", list(users))
    )
    network = Network(chosen.features, chosen.hidden)
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    noise = [GaussianMechanism(clipping_bound=1.0, relative_noise_stddev=1.0)]
    backend = SimulatedBackend(data, None, postprocessors=noise if chosen.noise else [])
    started = 0.0

    class Clock(TrainingProcessCallback):
        """Starts behind the rounds that warm up."""

        def after_central_iteration(
            self,
            aggregate_metrics: Metrics,  # noqa: ARG002 - pfl's signature
            model: object,  # noqa: ARG002 - pfl's signature
            *,
            central_iteration: int,
        ) -> tuple[bool, Metrics]:
            """See pfl."""
            nonlocal started
            if central_iteration == _WARM_UP_ROUNDS - 1:
                started = time.process_time()
            return False, Metrics()

    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=chosen.rounds + _WARM_UP_ROUNDS,
            evaluation_frequency=10**9,
            train_cohort_size=chosen.sites,
            val_cohort_size=0,
        ),
        backend,
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.1, local_batch_size=_ROWS),
        NNEvalHyperParams(local_batch_size=_ROWS),
        callbacks=[Clock()],
    )
    seconds = time.process_time() - started
    size = sum(each.numel() for each in network.parameters())
    print(json.dumps({"parameters": size, "rounds_per_cpu_s": chosen.rounds / seconds}))


if __name__ == "__main__":
    main()
