"""An image as a site's X-ray unit would have stored it.

The units are the phantom's (`fedhash.data.phantom.styles`), and what differs from the phantom's
common unit is done to an image that has been exposed already: field of view, unsharpness, edge
enhancement, tone curve, brightness, collimator frame and grain. A unit that is sharper or less
noisy than the common one leaves an image as sharp and as noisy as it is, for nobody can take that
away again. Markers are left as they are.

Shape suffixes: H height and W width in pixels.

    >>> unit = draw_scanner(1.0, numpy_stream(0, "site-00"))
    >>> stored = through_scanner(image, numpy_stream(0, "site-00", "s17"), scanner=unit)
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from fedhash.data.phantom.anatomy import fade
from fedhash.data.phantom.styles import Scanner, draw_scanner
from fedhash.models.tower import array_of

__all__ = ["through_scanner"]

_COMMON = draw_scanner(0.0, np.random.default_rng(0))  # strength 0: any draw gives it
_WIDE = 0.03  # of the image's width: edges are what the unit's blur of that size takes away


def through_scanner(
    content: np.ndarray | str, rng: np.random.Generator, *, scanner: Scanner
) -> Float32[np.ndarray, "H W"]:
    """The image of one exam, 0 to 1, of the same size.

    Args:
        content: Grey levels [H, W] in 0..1.
        rng: Of the exam's grain.
        scanner: The site's.

    Raises:
        DataError: The content is no finite grey image.
    """
    picture = _in_field(array_of(content, ndim=2, kind="an image [H, W]"), scanner)
    width_px = picture.shape[1]
    picture = _blurred(picture, _beyond(scanner.blur, _COMMON.blur) * width_px)
    edges = picture - _blurred(picture, _WIDE * width_px)
    picture = np.clip(picture + scanner.sharpening * edges, 0, None)
    picture = scanner.gain * picture**scanner.gamma
    if scanner.frame:
        y, x = (np.abs((np.arange(n) + 0.5) / n * 2 - 1) for n in picture.shape)
        picture = picture * fade(1 - scanner.frame - np.maximum(y[:, None], x), 0.01)
    grain = _beyond(scanner.noise, _COMMON.noise) * rng.standard_normal(picture.shape)
    return np.asarray(np.clip(picture + grain, 0, 1), np.float32)


def _in_field(image: Float32[np.ndarray, "H W"], scanner: Scanner) -> Float32[np.ndarray, "H W"]:
    """The site's zoom and offset, both in half image sizes; beyond the image its edge goes on."""
    sizes, shifts = np.array(image.shape), np.array(scanner.shift[::-1])
    offsets = (1 - sizes) / (2 * scanner.zoom) + (1 + shifts) * sizes / 2 - 0.5
    seen = ndimage.affine_transform(
        image, np.full(2, 1 / scanner.zoom), offsets, order=1, mode="nearest"
    )
    return np.asarray(seen, np.float32)


def _blurred(image: Float32[np.ndarray, "H W"], sigma_px: float) -> Float32[np.ndarray, "H W"]:
    return np.asarray(ndimage.gaussian_filter(image, sigma_px, mode="nearest"), np.float32)


def _beyond(own: float, common: float) -> float:
    """What is to be added to the common unit's deviation to have the site's."""
    return float(np.sqrt(max(0.0, own**2 - common**2)))
