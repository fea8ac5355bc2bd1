from __future__ import annotations

import numpy as np
import pytest

from fedhash.learning.coordinator_optimisers import (
    CoordinatorOptimiserSettings,
    FedAdam,
    FedAvg,
    FedAvgM,
    coordinator_optimiser,
)

UPDATES = np.random.default_rng(0).normal(size=(5, 7))
START = np.linspace(-1, 1, 7, dtype=np.float32)


def run(settings: CoordinatorOptimiserSettings) -> np.ndarray:
    optimiser = coordinator_optimiser(settings)
    vector, state = START, {}
    for update in UPDATES:
        vector, state = optimiser.step(vector, update, state)
        assert vector.dtype == np.float32
    return vector


def test_fedavg_adds_the_mean_update() -> None:
    moved = run(CoordinatorOptimiserSettings(learning_rate=0.5))
    np.testing.assert_allclose(moved, START + 0.5 * UPDATES.sum(axis=0), rtol=1e-5)


def test_fedavgm_gathers_speed() -> None:
    moved = run(CoordinatorOptimiserSettings(name="fedavgm", momentum=0.8))
    expected = START.astype(float)
    for i in range(5):
        expected += sum(0.8 ** (i - j) * UPDATES[j] for j in range(i + 1))
    np.testing.assert_allclose(moved, expected, rtol=1e-5)


def test_fedadam_follows_algorithm_2() -> None:
    settings = CoordinatorOptimiserSettings(
        name="fedadam", learning_rate=0.1, momentum=0.7, beta2=0.9, tau=0.01
    )
    expected = START.astype(float)
    for d in range(7):
        m, v = 0.0, 0.01**2
        for update in UPDATES[:, d]:
            m = 0.7 * m + 0.3 * update
            v = 0.9 * v + 0.1 * update**2
            expected[d] += 0.1 * m / (v**0.5 + 0.01)
    np.testing.assert_allclose(run(settings), expected, rtol=1e-5)


@pytest.mark.parametrize("optimiser", [FedAvg(), FedAvgM(), FedAdam()])
def test_a_step_leaves_its_arguments_as_they_are(optimiser: FedAvg | FedAvgM | FedAdam) -> None:
    _, state = optimiser.step(START, UPDATES[0], {})
    kept = {name: array.copy() for name, array in state.items()}
    vector, update = START.copy(), UPDATES[1].copy()
    first, _ = optimiser.step(vector, update, state)
    again, _ = optimiser.step(vector, update, kept)
    assert (vector == START).all()
    assert (update == UPDATES[1]).all()
    assert all((state[name] == kept[name]).all() for name in kept)
    assert (first == again).all()
