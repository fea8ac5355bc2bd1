"""Image tower on histograms of oriented gradients: a fixed front end for small sites.

HOG after Dalal and Triggs (CVPR 2005) with two changes that suit 64 x 64 chest X-rays: orientations
are signed (a bright edge differs from a dark one), and nothing is normalised within blocks, since
the contrast between regions carries the finding. Libraries offer neither together, hence the few
lines here. The square root is the Hellinger map of a histogram; the tower's LayerNorm takes out the
overall contrast. `docs/benchmarks.md` compares the tower with a convnet that is trained end to end.

Shape suffixes: N images, S pixels a side, B batch, F features, b bits.

    >>> tower = ImageHog(ImageHog.Options(), outputs=64)
    >>> outputs = tower(tower.prepare([image]))       # image: float32 [H, W] in 0..1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import Field, field_validator
from torch import nn

from fedhash.configuration import Settings
from fedhash.models.image_size import resized
from fedhash.models.tower import Tower, register_tower

__all__ = ["ImageHog", "ImageHogOptions", "oriented_gradients"]


_MOST_FEATURES = 65_536  # each option may be large, not all of them together


class ImageHogOptions(Settings):
    """Options of the tower; the defaults give 8 x 8 cells of 18 orientations, 1152 features.

    Attributes:
        image_size_px: Images are resized to this square.
        orientations: Bins of a histogram over the full circle.
        cell_px: Side of a cell.
        hidden: Units of the hidden layer.
        dropout: Share of hidden units that each training step leaves out.
    """

    image_size_px: int = Field(default=64, ge=16, le=1024)
    orientations: int = Field(default=18, ge=2, le=72)
    cell_px: int = Field(default=8, ge=4, le=1024, validate_default=True)
    hidden: int = Field(default=256, ge=1, le=1024)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @field_validator("cell_px")
    @classmethod
    def _cells_tile_the_image_and_are_not_too_many(cls, cell_px: int, info: Any) -> int:
        # `info` is a ValidationInfo, a protocol that beartype cannot check
        if not {"image_size_px", "orientations"} <= info.data.keys():
            return cell_px  # they are wrong themselves, which is reported
        image_size_px, orientations = info.data["image_size_px"], info.data["orientations"]
        if image_size_px % cell_px:
            raise ValueError(
                f"cells of {cell_px} px do not tile {image_size_px} px; choose a divisor"
            )
        features = _feature_count(image_size_px, cell_px, orientations)
        if features > _MOST_FEATURES:
            raise ValueError(
                f"{features} features of an image are more than {_MOST_FEATURES}; "
                "choose larger cells or fewer orientations"
            )
        return cell_px

    @property
    def features(self) -> int:
        """Length F of an image's features."""
        return _feature_count(self.image_size_px, self.cell_px, self.orientations)


def _feature_count(image_size_px: int, cell_px: int, orientations: int) -> int:
    return (image_size_px // cell_px) ** 2 * orientations


@register_tower
class ImageHog(Tower):
    """HOG features, then a perceptron."""

    name = "image_hog"
    modality = "image"
    Options = ImageHogOptions

    def __init__(self, options: ImageHogOptions, outputs: int) -> None:
        super().__init__(options, outputs)
        self.options = options
        self.prepared_shape = (options.features,)
        # No normalisation of the hidden layer: it cost a point of mAP over uneven sites.
        self.body = nn.Sequential(
            nn.LayerNorm(options.features),
            nn.Linear(options.features, options.hidden),
            nn.ReLU(),
            nn.Dropout(options.dropout),
            nn.Linear(options.hidden, outputs),
        )

    def prepare(self, contents: Sequence[np.ndarray | str]) -> Float32[torch.Tensor, "N F"]:
        """See :meth:`Tower.prepare`."""
        options = self.options
        features = [
            oriented_gradients(
                resized(content, options.image_size_px), options.orientations, options.cell_px
            )
            for content in contents
        ]
        return torch.from_numpy(np.sqrt(np.stack(features)))

    def forward(self, prepared: Float[torch.Tensor, "B F"]) -> Float[torch.Tensor, "B b"]:
        """See :meth:`Tower.forward`."""
        outputs: torch.Tensor = self.body(prepared)
        return outputs


def oriented_gradients(
    image_SS: Float32[np.ndarray, "S S"], orientations: int, cell_px: int
) -> Float32[np.ndarray, " F"]:
    """Mean gradient magnitude of each cell and signed orientation, cell by cell.

    Args:
        image_SS: Grey values; the side is a multiple of `cell_px`.
        orientations: Bins over the full circle.
        cell_px: Side of a cell.
    """
    down, right = np.gradient(image_SS)
    turn = np.arctan2(down, right) / (2 * np.pi) % 1.0
    bins = np.minimum((turn * orientations).astype(np.int64), orientations - 1)
    cells = len(image_SS) // cell_px
    place = np.arange(len(image_SS)) // cell_px
    index = (place[:, None] * cells + place) * orientations + bins
    sums = np.bincount(
        index.ravel(), np.hypot(down, right).ravel(), minlength=cells**2 * orientations
    )
    return (sums / cell_px**2).astype(np.float32)
