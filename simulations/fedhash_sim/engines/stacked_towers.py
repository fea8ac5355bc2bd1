"""Towers over many sites' parameters at once: a row a site, by `torch.func.vmap`.

Shape suffixes: S sites, B studies a site, b bits.

    >>> towers = StackedTowers(model)
    >>> outputs = towers.encode("image", {"towers.image.body.1.bias": rows_Sh, ...}, inputs_SBF)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float32
from torch import nn
from torch.func import functional_call, vmap

from fedhash.models.hash_model import HashModel

__all__ = ["StackedTowers"]


class StackedTowers:
    """The towers of a model, whose own parameters are not used."""

    def __init__(self, model: HashModel) -> None:
        self._encoder = _Encoder(model)

    def encode(
        self,
        modality: str,
        parameters: Mapping[str, nn.Parameter],
        batch: Float32[torch.Tensor, "S B ..."],
    ) -> Float32[torch.Tensor, "S B b"]:
        """Raw outputs of each site's own tower.

        Args:
            modality: Of the tower.
            parameters: By their names in the model, each with a row a site.
            batch: Each site's prepared studies.
        """

        def encode(
            own: dict[str, torch.Tensor], prepared: Float32[torch.Tensor, "B ..."]
        ) -> Float32[torch.Tensor, "B b"]:
            encoded: torch.Tensor = functional_call(self._encoder, own, (modality, prepared))
            return encoded

        own: dict[str, torch.Tensor] = {
            f"model.{name}": each
            for name, each in parameters.items()
            if name.startswith(f"towers.{modality}.")
        }
        if len(batch) == 1:
            # a view back as well: the gradient of each[0] would be written once more
            return encode({name: each.squeeze(0) for name, each in own.items()}, batch[0])[None]
        stacked: torch.Tensor = vmap(encode, in_dims=(0, 0))(own, batch)
        return stacked


class _Encoder(nn.Module):
    """A hash model whose `forward` is `encode`: `functional_call` calls nothing else."""

    def __init__(self, model: HashModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, modality: str, prepared: Float32[torch.Tensor, "B ..."]
    ) -> Float32[torch.Tensor, "B b"]:
        return self.model.encode(modality, prepared)
