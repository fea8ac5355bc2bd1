"""Signals: one row of an array in an npz file, as channels over time.

Shape suffixes: C channels, T samples.

Cells: ``ecg.npz#ecg/17``. A row is [T] or has channels along its shorter axis, in either order,
since a recording has more samples than channels. Values keep their unit and their sampling rate;
the signal tower normalises each record.

    >>> MODALITIES["signal"].read("ecg.npz#ecg/17", Path("/data/site")).load().shape
    (12, 1000)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from fedhash.data.modalities._references import ArrayRow
from fedhash.data.modalities.modality import Modality, register_modality
from fedhash.data.study import Content
from fedhash.errors import DataError

__all__ = ["Signal", "SignalArray"]


@dataclass(frozen=True, slots=True)
class SignalArray:
    """One row of an array of recordings."""

    reference: ArrayRow

    def load(self) -> Float32[np.ndarray, "C T"]:
        """The recording in its own unit.

        Raises:
            DataError: The array cannot be read, or its row is no recording of finite numbers.
        """
        row = self.reference.load()
        signal = row[None, :] if row.ndim == 1 else row
        if signal.ndim != 2 or signal.size == 0 or signal.shape[0] == signal.shape[1]:
            raise DataError(
                f"the signal at {self.reference} has shape {row.shape}; store [T], [C, T] or "
                "[T, C] with more samples T than channels C"
            )
        if signal.dtype.kind not in "iuf":
            raise DataError(
                f"the signal at {self.reference} holds {signal.dtype}; store integers or "
                "floating-point numbers"
            )
        with np.errstate(over="ignore"):  # an overflow becomes infinite and is refused below
            channels_CT = (signal if signal.shape[0] < signal.shape[1] else signal.T).astype(
                np.float32, order="C"
            )
        if not np.isfinite(channels_CT).all():
            raise DataError(
                f"the signal at {self.reference} holds NaN or infinite values; "
                "fill the gaps or leave the cell blank"
            )
        return channels_CT


@register_modality
class Signal(Modality):
    """ECG, PPG and other recordings."""

    name = "signal"

    def content(self, cell: str, folder: Path) -> Content:
        """A row of an array."""
        return SignalArray(ArrayRow.parse(cell, folder))
