"""Towers that train one linear layer over features that never change.

Shape suffixes: N contents, B batch, d dimensions, e = d + 1, b outputs.

1. Preparing a study computes its features, once; training and encoding read those.
2. A tower is built without its features, as whoever only adds up models needs no more. Preparing
   then says which file is missing.
3. The first weights are those of the file's head, where it has one of the right shape, and zero
   otherwise: a linear layer under a convex loss needs no chance to begin with.

    >>> model = build_model(settings, 64, seed=0, anchors=anchors, frozen={"image": frozen})
    >>> model.tower("image").prepare([image])         # float32 [1, e]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import Field
from torch import nn

from fedhash.configuration import Settings
from fedhash.errors import ModelError
from fedhash.models.frozen_features import FrozenFeatures
from fedhash.models.tower import Tower, register_tower

__all__ = ["FrozenTower", "FrozenTowerOptions"]


class FrozenTowerOptions(Settings):
    """Options of a frozen tower.

    Attributes:
        dimensions: d, of the projected features.
        sha256: Of the file of features, as 'fedhash-sim freeze' prints it: all sites use the same.
            A simulation makes the file and fills this in.
    """

    dimensions: int = Field(default=100, ge=1, le=4096)
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")


class FrozenTower(Tower):
    """A linear layer over frozen features; subclasses name the modality."""

    Options = FrozenTowerOptions
    reads_frozen_features = True

    def __init__(self, options: FrozenTowerOptions, outputs: int) -> None:
        super().__init__(options, outputs)
        self._options = options
        self._features: FrozenFeatures | None = None
        self.prepared_shape = (options.dimensions + 1,)
        self.layer = nn.Linear(options.dimensions + 1, outputs, bias=False)
        nn.init.zeros_(self.layer.weight)

    def attach(self, features: FrozenFeatures) -> None:
        """Take features, and the weights of their head.

        Raises:
            ModelError: They are others than the options demand.
        """
        wanted = self._options
        if (features.sha256, features.dimensions, features.modality) != (
            wanted.sha256,
            wanted.dimensions,
            self.modality,
        ):
            raise ModelError(
                f"the frozen features for {features.modality!r} have {features.dimensions} "
                f"dimensions and the SHA-256 {features.sha256}; model.towers.{self.modality} asks "
                f"for {wanted.dimensions} and {wanted.sha256 or 'names none'}; use the same file "
                "on all sides"
            )
        self._features = features
        head = features.head
        if head is not None and head.shape == self.layer.weight.shape:
            with torch.no_grad():
                self.layer.weight.copy_(head)

    def prepare(self, contents: Sequence[np.ndarray | str]) -> Float32[torch.Tensor, "N e"]:
        """See :meth:`Tower.prepare`.

        Raises:
            ModelError: The tower has no features.
        """
        if self._features is None:
            raise ModelError(
                f"the frozen features of {self.modality!r} with the SHA-256 "
                f"{self._options.sha256 or '(none named)'} are not here; fetch the file that the "
                "round's model was made for"
            )
        return self._features.of(contents)

    def forward(self, prepared: Float[torch.Tensor, "B e"]) -> Float[torch.Tensor, "B b"]:
        """See :meth:`Tower.forward`."""
        outputs: torch.Tensor = self.layer(prepared)
        return outputs


@register_tower
class FrozenImage(FrozenTower):
    """Over an image tower."""

    name = "frozen_image"
    modality = "image"


@register_tower
class FrozenReport(FrozenTower):
    """Over a report tower."""

    name = "frozen_report"
    modality = "report"


@register_tower
class FrozenSignal(FrozenTower):
    """Over a signal tower."""

    name = "frozen_signal"
    modality = "signal"
