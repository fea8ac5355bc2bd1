"""Image tower on histograms of oriented gradients: a fixed front end for small sites.

HOG after Dalal and Triggs (CVPR 2005), as `skimage.feature.hog` computes it, but normalised over
the whole image and not over small blocks: on 64 x 64 chest X-rays the contrast between regions
carries the finding. The square root is the Hellinger map of a histogram. `docs/benchmarks.md`
compares the tower with a convnet that is trained end to end.

Shape suffixes: N images, B batch, F features, b bits.

    >>> tower = ImageHog(ImageHog.Options(), code_bits=64)
    >>> outputs = tower(tower.prepare([image]))       # image: float32 [H, W] in 0..1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import Field, model_validator
from skimage.feature import hog
from torch import nn

from fedhash.configuration import Settings
from fedhash.models.image_size import resized
from fedhash.models.perceptron import perceptron
from fedhash.models.tower import Tower, register_tower

__all__ = ["ImageHog", "ImageHogOptions"]


class ImageHogOptions(Settings):
    """Options of the tower; the defaults give 8 x 8 cells of 9 orientations, 576 features.

    Attributes:
        image_size_px: Images are resized to this square.
        orientations: Bins of a histogram.
        cell_px: Side of a cell.
        block_cells: Side of a normalisation block; None: the whole image is one block.
        block_norm: How a block is normalised; L1-sqrt is the square root of its shares.
        hidden: Units of the hidden layer.
    """

    image_size_px: int = Field(default=64, ge=16, le=1024)
    orientations: int = Field(default=9, ge=2, le=36)
    cell_px: int = Field(default=8, ge=4)
    block_cells: int | None = Field(default=None, ge=1)
    block_norm: Literal["L1", "L1-sqrt", "L2", "L2-Hys"] = "L1-sqrt"
    hidden: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _a_block_fits(self) -> ImageHogOptions:
        if self.cell_px * (self.block_cells or 1) > self.image_size_px:
            raise ValueError(
                f"a block of {self.block_cells or 1} x {self.cell_px} px does not fit "
                f"into {self.image_size_px} px"
            )
        return self


@register_tower
class ImageHog(Tower):
    """HOG features, then a perceptron."""

    name = "image_hog"
    modality = "image"
    Options = ImageHogOptions

    def __init__(self, options: ImageHogOptions, code_bits: int) -> None:
        super().__init__(options, code_bits)
        self.options = options
        cells = options.image_size_px // options.cell_px
        self.block_cells = options.block_cells or cells
        blocks = cells - self.block_cells + 1
        features = blocks**2 * self.block_cells**2 * options.orientations
        self.prepared_shape = (features,)
        self.body = nn.Sequential(
            nn.LayerNorm(features), perceptron(features, options.hidden, code_bits)
        )

    def prepare(self, contents: Sequence[np.ndarray | str]) -> Float32[torch.Tensor, "N F"]:
        """See :meth:`Tower.prepare`."""
        return torch.from_numpy(np.stack([self._features(content) for content in contents]))

    def forward(self, prepared: Float[torch.Tensor, "B F"]) -> Float[torch.Tensor, "B b"]:
        """See :meth:`Tower.forward`."""
        outputs: torch.Tensor = self.body(prepared)
        return outputs

    def _features(self, content: np.ndarray | str) -> Float32[np.ndarray, " F"]:
        features = hog(
            resized(content, self.options.image_size_px),
            orientations=self.options.orientations,
            pixels_per_cell=(self.options.cell_px, self.options.cell_px),
            cells_per_block=(self.block_cells, self.block_cells),
            block_norm=self.options.block_norm,
        )
        return np.asarray(features, dtype=np.float32)
