"""Events with the fields that no test is about filled in."""

from __future__ import annotations

from typing import Any

from fedhash.privacy import (
    DistributedGaussianStep,
    FullBatchGaussianSteps,
    GaussianRelease,
    PoissonGaussianSteps,
)

COMMON: dict[str, Any] = {
    "data_fingerprint": "0f" * 32,
    "code_version": "0.1.0",
    "run_id": "run-7",
    "round_number": 3,
    "purpose": "model update",
}


def poisson(sigma: float, rate: float, steps: int, **changes: Any) -> PoissonGaussianSteps:
    fields = {**COMMON, "noise_multiplier": sigma, "sampling_rate": rate, "steps": steps}
    return PoissonGaussianSteps(**{**fields, **changes})


def full_batch(sigma: float, steps: int = 1, **changes: Any) -> FullBatchGaussianSteps:
    return FullBatchGaussianSteps(
        **{**COMMON, "noise_multiplier": sigma, "steps": steps, **changes}
    )


def release(sigma: float, **changes: Any) -> GaussianRelease:
    return GaussianRelease(**{**COMMON, "noise_multiplier": sigma, **changes})


def distributed(
    sigma: float, *, colluding: int = 2, share: float = 1000.0, **changes: Any
) -> DistributedGaussianStep:
    fields = {
        **COMMON,
        "sum_noise_multiplier": 2 * sigma,
        "colluding_sites": colluding,
        "guaranteed_noise_multiplier": sigma,
        "share_sigma_integer_steps": share,
    }
    return DistributedGaussianStep(**{**fields, **changes})
