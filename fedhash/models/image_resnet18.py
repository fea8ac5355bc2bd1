"""Image tower: ResNet-18 (arXiv 1512.03385) on one grey channel, GroupNorm throughout.

For sites with many images and a large machine: 11 million parameters (45 MB an update).

Shape suffixes: N images, B batch, S pixels a side, C channels, H and W of a map, b bits.

    >>> tower = ImageResnet18(ImageResnet18.Options(image_size_px=224), outputs=64)
    >>> outputs = tower(tower.prepare([image]))       # image: float32 [H, W] in 0..1
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import Field
from torch import nn

from fedhash.configuration import Settings
from fedhash.models.image_size import standardised_images
from fedhash.models.tower import Tower, register_tower

__all__ = ["ImageResnet18", "ImageResnet18Options"]


class ImageResnet18Options(Settings):
    """Options of the tower.

    Attributes:
        image_size_px: Images are resized to this square.
        width: Channels of the first stage; they double three times. 64 is the published size.
    """

    image_size_px: int = Field(default=224, ge=32, le=1024)
    width: int = Field(default=64, ge=8, le=128, multiple_of=8)


@register_tower
class ImageResnet18(Tower):
    """Stem, four stages of two residual blocks, a linear head."""

    name = "image_resnet18"
    modality = "image"
    Options = ImageResnet18Options

    def __init__(self, options: ImageResnet18Options, outputs: int) -> None:
        super().__init__(options, outputs)
        self.size_px = options.image_size_px
        self.prepared_shape = (1, self.size_px, self.size_px)
        width = options.width
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, kernel_size=7, stride=2, padding=3, bias=False),
            nn.GroupNorm(8, width),
            nn.ReLU(),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        stages, before = [], width
        for after in (width, 2 * width, 4 * width, 8 * width):
            stages += [_ResidualBlock(before, after), _ResidualBlock(after, after)]
            before = after
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs))

    def prepare(self, contents: Sequence[np.ndarray | str]) -> Float32[torch.Tensor, "N 1 S S"]:
        """See :meth:`Tower.prepare`."""
        return standardised_images(contents, self.size_px)

    def forward(self, prepared: Float[torch.Tensor, "B 1 S S"]) -> Float[torch.Tensor, "B b"]:
        """See :meth:`Tower.forward`."""
        outputs: torch.Tensor = self.head(self.stages(self.stem(prepared)))
        return outputs


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; halves the map where the channels double."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.body = nn.Sequential(
            nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(8, after),
            nn.ReLU(),
            nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(8, after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, kernel_size=1, stride=2, bias=False),
                nn.GroupNorm(8, after),
            )

    def forward(self, maps: Float[torch.Tensor, "B C H W"]) -> Float[torch.Tensor, "B ..."]:
        """Body plus shortcut."""
        return torch.relu(self.body(maps) + self.shortcut(maps))
