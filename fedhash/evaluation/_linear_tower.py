"""The tower of the audits: one matrix, whose inputs an adversary chooses.

Shape suffixes: B batch, F features, b bits.

>>> model = HashModel({"image": LinearTower(torch.eye(16))}, 16)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from fedhash.configuration import Settings
from fedhash.models.tower import Tower, array_of

__all__ = ["LinearTower"]


class _NoOptions(Settings):
    pass


class LinearTower(Tower):
    """Raw outputs u = W x.

    Args:
        weight: W before the first step.
    """

    Options = _NoOptions

    def __init__(self, weight: Float[torch.Tensor, "b F"]) -> None:
        super().__init__(_NoOptions(), len(weight))
        bits, features = weight.shape
        self.prepared_shape = (features,)
        self.head = nn.Linear(features, bits, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(weight)

    def prepare(self, contents: Sequence[np.ndarray | str]) -> torch.Tensor:
        """See :class:`Tower`: vectors, as they are."""
        return torch.from_numpy(np.stack([array_of(each, 1, "a vector") for each in contents]))

    def forward(self, prepared: Float[torch.Tensor, "B F"]) -> Float[torch.Tensor, "B b"]:
        """See :class:`Tower`."""
        outputs: torch.Tensor = self.head(prepared)
        return outputs
