"""Images: a PNG or JPEG file, or one row of an array, as grey levels from 0 to 1.

Shape suffixes: H height and W width in pixels.

Cells: ``s1.png``, ``/archive/s1.jpg`` or ``images.npz#images/17``. Eight-bit and sixteen-bit
integers are divided by their largest value; colour becomes luma (ITU-R BT.601, as Pillow has it);
floating-point arrays must lie in 0..1 already.

    >>> MODALITIES["image"].read("s1.png", Path("/data/site")).load().dtype
    dtype('float32')
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import Float32

from fedhash.data.modalities._references import ArrayRow, resolve
from fedhash.data.modalities.modality import Modality, register_modality
from fedhash.data.study import Content
from fedhash.errors import DataError

__all__ = ["Image", "ImageArray", "ImageFile"]

# The largest mammograms have about 30 million pixels; a small file may claim billions.
_LARGEST_IMAGE_PIXELS = 64_000_000
_GREY_MODES = ("L", "I;16")  # Pillow's names of 8-bit and 16-bit grey
_COLOUR_MODES = ("1", "LA", "P", "PA", "RGB", "RGBA")
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, MemoryError, struct.error, zlib.error)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A PNG or JPEG file."""

    path: Path

    def load(self) -> Float32[np.ndarray, "H W"]:
        """Grey levels in 0..1.

        Raises:
            DataError: The file is no whole PNG or JPEG, is too large, or has unknown colours.
        """
        try:
            with PIL.Image.open(self.path, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > _LARGEST_IMAGE_PIXELS:
                    raise DataError(self._too_large(f"{image.width} x {image.height} pixels"))
                if image.mode in _COLOUR_MODES:
                    # By way of RGBA, for Pillow warns about palettes with transparency.
                    return _unit_range(np.asarray(image.convert("RGBA").convert("L")), self.path)
                if image.mode in _GREY_MODES:
                    return _unit_range(np.asarray(image), self.path)
                raise DataError(
                    f"{self.path} has the colour mode {image.mode}; save it as a grey or RGB image"
                )
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
            raise DataError(self._too_large(str(error))) from error
        except PermissionError as error:
            raise DataError(f"{self.path} may not be read; correct its rights") from error
        except _UNREADABLE as error:
            raise DataError(
                f"{self.path} cannot be read as PNG or JPEG ({error}); export the image again"
            ) from error

    def _too_large(self, found: str) -> str:
        return (
            f"{self.path} is too large ({found}); at most {_LARGEST_IMAGE_PIXELS} pixels are "
            "read, so export it at a lower resolution"
        )


@dataclass(frozen=True, slots=True)
class ImageArray:
    """One row of an array of images."""

    reference: ArrayRow

    def load(self) -> Float32[np.ndarray, "H W"]:
        """Grey levels in 0..1.

        Raises:
            DataError: The array cannot be read or is no grey image.
        """
        return _unit_range(self.reference.load(), self.reference)


@register_modality
class Image(Modality):
    """Radiographs, slices and other images."""

    name = "image"

    def content(self, cell: str, folder: Path) -> Content:
        """A file, or a row of an array where the cell holds ``.npz#``."""
        if ".npz#" in cell:
            return ImageArray(ArrayRow.parse(cell, folder))
        return ImageFile(resolve(cell, folder))


def _unit_range(array: np.ndarray, source: Path | ArrayRow) -> Float32[np.ndarray, "H W"]:
    """Integers scaled by the largest value of their type; floats as they are."""
    if array.ndim != 2 or array.size == 0:
        raise DataError(
            f"the image at {source} has shape {array.shape}; store one grey image [H, W] a row"
        )
    if array.dtype in (np.uint8, np.uint16):
        return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:  # NaN fails both
        return array.astype(np.float32)
    raise DataError(
        f"the image at {source} holds {array.dtype} that are not all in 0..1; "
        "store uint8, uint16 or floating-point numbers from 0 to 1"
    )
