"""The round file: what is trained, how, and how the sites' replies become one model.

The coordinator reads it and sends it, whole, with every round; each site checks it against the
agreement before it works.

    >>> settings = read_settings(Path("configs/round/anchors.yaml"), RoundSettings)
    >>> settings.weighting
    'patients'
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedhash.configuration import Settings
from fedhash.learning.coordinator_optimisers import CoordinatorOptimiserSettings
from fedhash.learning.settings import LearningSettings, LossSettings
from fedhash.models.settings import ModelSettings

__all__ = ["RoundSettings"]


class RoundSettings(Settings):
    """One training run, from the first to the last round."""

    model: ModelSettings
    learning: LearningSettings
    loss: LossSettings = LossSettings()
    rounds: int = Field(ge=1, le=100_000)
    aggregation: Literal["plain"] = Field(
        default="plain", description="plain: the coordinator sees each site's update"
    )
    weighting: Literal["uniform", "patients"] = Field(
        default="patients",
        description="patients: a site counts by its number of training patients",
    )
    coordinator_optimiser: CoordinatorOptimiserSettings = CoordinatorOptimiserSettings()
    timeout_s: float = Field(
        default=3600.0, gt=0, description="a site that answers later is left out of the round"
    )
