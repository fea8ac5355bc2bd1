"""The order of a model's parameters in one flat vector: what sites and coordinator add up.

Shape suffix: d parameters of the whole model.

1. Two models have the same layout exactly when names, shapes and order of their parameters agree;
   the digest stands for it in every message and release.
2. A model holds parameters only. A buffer (as BatchNorm's running mean) would not be averaged
   and would differ between sites, so such a model has no layout.

    >>> layout = Layout.of(model)
    >>> vector = layout.flatten(model)        # float32 [d]
    >>> layout.load(other_model, vector)      # other_model now equals model
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from fedhash.errors import ModelError

__all__ = ["Layout", "LayoutEntry"]


class LayoutEntry(NamedTuple):
    """One parameter tensor and the place of its first element in the vector."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Layout:
    """Names, shapes and offsets of all parameters.

    Attributes:
        entries: In the order of the vector.
        size: d, the length of the vector.
    """

    entries: tuple[LayoutEntry, ...]
    size: int

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of `model`.

        Raises:
            ModelError: The model has a buffer in its state.
        """
        parameters = dict(model.named_parameters())
        if buffers := [name for name in model.state_dict() if name not in parameters]:
            raise ModelError(
                f"the model keeps {buffers[0]!r} beside its parameters; sites could not average "
                "it; use GroupNorm or LayerNorm in place of BatchNorm and no persistent buffers"
            )
        entries, offset = [], 0
        for name, parameter in parameters.items():
            entries.append(LayoutEntry(name, tuple(parameter.shape), offset))
            offset += parameter.numel()
        return cls(tuple(entries), offset)

    def digest(self) -> str:
        """SHA-256 (hex) over names, shapes and order."""
        return hashlib.sha256(json.dumps(self.entries).encode()).hexdigest()

    def flatten(self, model: nn.Module) -> Float32[np.ndarray, " d"]:
        """A copy of the model's parameters as one vector.

        Raises:
            ModelError: The model has another layout.
        """
        self._check(model)
        vector = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        return vector.numpy()

    def load(self, model: nn.Module, vector: Float32[np.ndarray, " d"]) -> None:
        """Set the model's parameters to `vector` (copied).

        Raises:
            ModelError: The model has another layout, or the vector another length.
        """
        self._check(model)
        with torch.no_grad():
            for parameter, values in zip(model.parameters(), self.split(vector), strict=True):
                parameter.copy_(values)

    def split(self, vector: Float32[np.ndarray, " d"]) -> list[torch.Tensor]:
        """`vector` as one tensor a parameter, in their order (copied).

        Raises:
            ModelError: The vector has another length.
        """
        if vector.shape != (self.size,):
            raise ModelError(
                f"a vector of shape {vector.shape} was given for a model of {self.size} "
                "parameters; both sides must build the model from the same round settings"
            )
        whole = torch.tensor(vector)
        return [
            whole[offset : offset + prod(shape)].view(shape) for _, shape, offset in self.entries
        ]

    def _check(self, model: nn.Module) -> None:
        if Layout.of(model) != self:
            raise ModelError(
                f"the model has the layout {Layout.of(model).digest()[:12]}, expected "
                f"{self.digest()[:12]}; build it from the same settings and code_bits"
            )
