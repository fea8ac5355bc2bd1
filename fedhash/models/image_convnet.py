"""Image tower: a small convnet, trained end to end.

Four halvings with GroupNorm; the last map is pooled to 2 x 2, so that the head still knows left
from right and above from below. About 110,000 parameters at the defaults and 64 bits.

Shape suffixes: N images, B batch, S pixels a side, b bits.

    >>> tower = ImageConvnet(ImageConvnet.Options(width=16), outputs=64)
    >>> outputs = tower(tower.prepare([image]))       # image: float32 [H, W] in 0..1
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import Field
from torch import nn

from fedhash.configuration import Settings
from fedhash.models.image_size import standardised_images
from fedhash.models.tower import Tower, register_tower

__all__ = ["ImageConvnet", "ImageConvnetOptions"]


class ImageConvnetOptions(Settings):
    """Options of the tower.

    Attributes:
        image_size_px: Images are resized to this square.
        width: Channels of the first block; they double twice.
    """

    image_size_px: int = Field(default=64, ge=32, le=1024)
    width: int = Field(default=16, ge=8, le=256, multiple_of=8)


@register_tower
class ImageConvnet(Tower):
    """Standardised pixels, four convolution blocks, a linear head."""

    name = "image_convnet"
    modality = "image"
    Options = ImageConvnetOptions

    def __init__(self, options: ImageConvnetOptions, outputs: int) -> None:
        super().__init__(options, outputs)
        self.size_px = options.image_size_px
        self.prepared_shape = (1, self.size_px, self.size_px)
        widths = (1, options.width, 2 * options.width, 4 * options.width, 4 * options.width)
        self.blocks = nn.Sequential(*(_block(before, after) for before, after in pairwise(widths)))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], outputs)
        )

    def prepare(self, contents: Sequence[np.ndarray | str]) -> Float32[torch.Tensor, "N 1 S S"]:
        """See :meth:`Tower.prepare`."""
        return standardised_images(contents, self.size_px)

    def forward(self, prepared: Float[torch.Tensor, "B 1 S S"]) -> Float[torch.Tensor, "B b"]:
        """See :meth:`Tower.forward`."""
        outputs: torch.Tensor = self.head(self.blocks(prepared))
        return outputs


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False),
        nn.GroupNorm(8, after),
        nn.ReLU(),
    )
