"""How the coordinator moves the model along the sites' mean update.

The negative mean update plays the gradient's part (arXiv 2003.00295, algorithm 2). A state is a
plain dict of arrays, empty before the first round, so that a checkpoint can hold it.

Shape suffix: d parameters of the whole model.

    >>> optimiser = coordinator_optimiser(CoordinatorOptimiserSettings(name="fedavgm"))
    >>> vector, state = optimiser.step(vector, mean_update, {})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32
from pydantic import Field

from fedhash.configuration import Settings

__all__ = [
    "CoordinatorOptimiser",
    "CoordinatorOptimiserSettings",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "OptimiserState",
    "coordinator_optimiser",
]

OptimiserState = Mapping[str, np.ndarray]


class CoordinatorOptimiserSettings(Settings):
    """Which optimiser, and its constants.

    Attributes:
        name: fedavg takes the mean update as it is; the others remember earlier rounds.
        learning_rate: 1 applies the whole step; fedadam needs a small one, such as 0.01.
        momentum: Of fedavgm; the first moment's decay of fedadam.
        beta2: The second moment's decay of fedadam.
        tau: fedadam's adaptivity: the smallest divisor.
    """

    name: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    learning_rate: float = Field(default=1.0, ge=1e-9, le=1e3)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, ge=1e-9, le=1e3)


@runtime_checkable
class CoordinatorOptimiser(Protocol):
    """One step of the coordinator."""

    def step(
        self,
        model_vector: Float32[np.ndarray, " d"],
        mean_update: Float[np.ndarray, " d"],
        state: OptimiserState,
    ) -> tuple[Float32[np.ndarray, " d"], dict[str, np.ndarray]]:
        """The next model and the next state; the arguments stay as they are."""
        ...


@dataclass(frozen=True)
class FedAvg:
    """The mean update, scaled (arXiv 1602.05629)."""

    learning_rate: float = 1.0

    def step(
        self,
        model_vector: Float32[np.ndarray, " d"],
        mean_update: Float[np.ndarray, " d"],
        state: OptimiserState,  # noqa: ARG002 - the protocol's signature
    ) -> tuple[Float32[np.ndarray, " d"], dict[str, np.ndarray]]:
        """See :class:`CoordinatorOptimiser`."""
        return _moved(model_vector, self.learning_rate * mean_update), {}


@dataclass(frozen=True)
class FedAvgM:
    """Momentum over rounds (arXiv 1909.06335)."""

    learning_rate: float = 1.0
    momentum: float = 0.9

    def step(
        self,
        model_vector: Float32[np.ndarray, " d"],
        mean_update: Float[np.ndarray, " d"],
        state: OptimiserState,
    ) -> tuple[Float32[np.ndarray, " d"], dict[str, np.ndarray]]:
        """See :class:`CoordinatorOptimiser`."""
        velocity = self.momentum * state.get("velocity", 0.0) + mean_update
        return _moved(model_vector, self.learning_rate * velocity), {"velocity": velocity}


@dataclass(frozen=True)
class FedAdam:
    """Adam over rounds (arXiv 2003.00295, algorithm 2; as there, without bias correction)."""

    learning_rate: float = 0.01
    momentum: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def step(
        self,
        model_vector: Float32[np.ndarray, " d"],
        mean_update: Float[np.ndarray, " d"],
        state: OptimiserState,
    ) -> tuple[Float32[np.ndarray, " d"], dict[str, np.ndarray]]:
        """See :class:`CoordinatorOptimiser`."""
        first = self.momentum * state.get("first", 0.0) + (1 - self.momentum) * mean_update
        earlier = state.get("second", self.tau**2)
        second = self.beta2 * earlier + (1 - self.beta2) * np.square(mean_update)
        step = self.learning_rate * first / (np.sqrt(second) + self.tau)
        return _moved(model_vector, step), {"first": first, "second": second}


def coordinator_optimiser(settings: CoordinatorOptimiserSettings) -> CoordinatorOptimiser:
    """The optimiser that `settings` names."""
    if settings.name == "fedavg":
        return FedAvg(settings.learning_rate)
    if settings.name == "fedavgm":
        return FedAvgM(settings.learning_rate, settings.momentum)
    return FedAdam(settings.learning_rate, settings.momentum, settings.beta2, settings.tau)


def _moved(
    model_vector: Float32[np.ndarray, " d"], step: Float[np.ndarray, " d"]
) -> Float32[np.ndarray, " d"]:
    return np.asarray(model_vector + step, dtype=np.float32)
