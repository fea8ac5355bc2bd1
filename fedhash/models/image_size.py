"""Images of any size to the one square that a tower reads.

Shape suffixes: N images, S pixels a side.

    >>> resized(image, 64).shape
    (64, 64)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from skimage.transform import resize

from fedhash.models.tower import array_of

__all__ = ["resized", "standardised_images"]


def resized(content: np.ndarray | str, size_px: int) -> Float32[np.ndarray, "S S"]:
    """A grey image [H, W] stretched or shrunk (with smoothing) to `size_px` x `size_px`.

    Raises:
        DataError: The content is no finite grey image.
    """
    image = array_of(content, ndim=2, kind="an image [H, W]")
    if image.shape == (size_px, size_px):
        return image
    square = resize(image, (size_px, size_px), anti_aliasing=True)  # type: ignore[no-untyped-call]
    return np.asarray(square, dtype=np.float32)


def standardised_images(
    contents: Sequence[np.ndarray | str], size_px: int
) -> Float32[torch.Tensor, "N 1 S S"]:
    """Resized images, each brought to mean 0 and deviation 1: scanners differ in gain.

    Raises:
        DataError: A content is no finite grey image.
    """
    images = np.stack([resized(content, size_px) for content in contents])[:, None]
    means = images.mean(axis=(1, 2, 3), keepdims=True)
    deviations = images.std(axis=(1, 2, 3), keepdims=True)
    return torch.from_numpy((images - means) / np.maximum(deviations, 1e-3))
