"""A tower: one modality's way from content to b raw outputs. A new one is one registered class.

Shape suffixes: N contents, B batch, b outputs (the bits, or the findings of a model with a logits
head), F features; `...` is the tower's `prepared_shape`.

1. `prepare` is fixed and free of parameters: callers run it once a study and keep its result.
2. `forward` treats every row by itself (GroupNorm or LayerNorm, never BatchNorm): statistics of a
   batch or of a site would flip bits between sites.
3. A tower learns nothing from local data but its parameters: no vocabulary, no dictionary.
4. Every number among a tower's options has an upper bound, and within the bounds a model stays
   below 90 million parameters (360 MB, which Flower was seen to carry): the options come with the
   coordinator's round file, and that must not fill a site's memory.

    >>> @register_tower
    ... class Mine(Tower):
    ...     name, modality, Options = "image_mine", "image", MyOptions
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import nn

from fedhash.configuration import Settings
from fedhash.errors import DataError

__all__ = ["TOWERS", "Tower", "array_of", "register_tower", "text_of"]

TOWERS: dict[str, type[Tower]] = {}


class Tower(nn.Module, ABC):
    """Base of all towers; a subclass is built as `Subclass(options, outputs)`.

    Attributes:
        name: The name in round settings, unique.
        modality: The modality that it reads.
        Options: Its settings; `TowerSettings.options` overrides their defaults.
        reads_frozen_features: Whether it reads a file of them; none can be made of such a tower.
        prepared_shape: Shape of one prepared study.
        outputs: Length of an output.
    """

    name: ClassVar[str]
    modality: ClassVar[str]
    Options: ClassVar[type[Settings]]
    reads_frozen_features: ClassVar[bool] = False
    prepared_shape: tuple[int, ...]

    @abstractmethod
    def __init__(self, options: Settings, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    @abstractmethod
    def prepare(self, contents: Sequence[np.ndarray | str]) -> Float32[torch.Tensor, "N ..."]:
        """Turn loaded contents into the inputs of `forward`.

        Raises:
            DataError: A content is of another kind or shape than the modality's.
        """

    @abstractmethod
    def forward(self, prepared: Float[torch.Tensor, "B ..."]) -> Float[torch.Tensor, "B b"]:
        """Raw outputs u of prepared studies."""

    @property
    def last_layer(self) -> nn.Linear:
        """The tower's last linear layer."""
        return [module for module in self.modules() if isinstance(module, nn.Linear)][-1]

    @torch.no_grad()
    def features(self, prepared: Float[torch.Tensor, "B ..."]) -> Float[torch.Tensor, "B F"]:
        """What the tower's last linear layer reads."""
        seen: list[torch.Tensor] = []
        hook = self.last_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self(prepared)
        finally:
            hook.remove()
        return seen[-1]


def register_tower(tower: type[Tower]) -> type[Tower]:
    """Class decorator: make `tower` available to round settings by its name."""
    TOWERS[tower.name] = tower
    return tower


def array_of(content: np.ndarray | str, ndim: int, kind: str) -> Float32[np.ndarray, "..."]:
    """`content` as a finite float32 array of `ndim` dimensions.

    Raises:
        DataError: It is a text, has another number of dimensions, is empty or not finite.
    """
    if isinstance(content, str):
        raise DataError(f"a text was found where {kind} was expected; check the study's contents")
    array = np.asarray(content, dtype=np.float32)
    if array.ndim != ndim or array.size == 0:
        raise DataError(f"an array of shape {array.shape} was found where {kind} was expected")
    if not np.isfinite(array).all():
        raise DataError(f"NaN or infinity was found in {kind}; repair or leave out the study")
    return array


def text_of(content: np.ndarray | str) -> str:
    """`content` as a text.

    Raises:
        DataError: It is an array.
    """
    if isinstance(content, str):
        return content
    raise DataError("an array was found where a report was expected; check the study's contents")
