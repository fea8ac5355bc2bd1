"""Signal tower: a one-dimensional convnet for ECG, PPG and the like.

Each record is centred by the median of its channels and scaled by its own spread, so microvolts,
millivolts and raw counts of a converter all do. Amplitude relations between channels stay.

Shape suffixes: N signals, B batch, C channels, T samples, b bits.

    >>> tower = SignalConvnet(SignalConvnet.Options(channels=12, samples=1000), outputs=64)
    >>> outputs = tower(tower.prepare([ecg]))         # ecg: float32 [12, 1000]
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
from fedhash.errors import DataError
from fedhash.models.tower import Tower, array_of, register_tower

__all__ = ["SignalConvnet", "SignalConvnetOptions"]

_LARGEST_VALUE = 10.0  # in spreads; an electrode's jump must not drown the record


class SignalConvnetOptions(Settings):
    """Options of the tower.

    Attributes:
        channels: Channels of every record.
        samples: Records are resampled to this length.
        width: Channels of the first block; they double twice.
    """

    channels: int = Field(default=1, ge=1, le=256)
    samples: int = Field(default=600, ge=64, le=16_384)
    width: int = Field(default=16, ge=8, le=256, multiple_of=8)


@register_tower
class SignalConvnet(Tower):
    """Robustly scaled samples, four convolution blocks, mean and maximum over time, a head."""

    name = "signal_convnet"
    modality = "signal"
    Options = SignalConvnetOptions

    def __init__(self, options: SignalConvnetOptions, outputs: int) -> None:
        super().__init__(options, outputs)
        self.prepared_shape = (options.channels, options.samples)
        widths = (
            options.channels,
            options.width,
            2 * options.width,
            4 * options.width,
            4 * options.width,
        )
        self.blocks = nn.Sequential(*(_block(before, after) for before, after in pairwise(widths)))
        self.head = nn.Linear(2 * widths[-1], outputs)

    def prepare(self, contents: Sequence[np.ndarray | str]) -> Float32[torch.Tensor, "N C T"]:
        """See :meth:`Tower.prepare`."""
        return torch.from_numpy(np.stack([self._scaled(content) for content in contents]))

    def forward(self, prepared: Float[torch.Tensor, "B C T"]) -> Float[torch.Tensor, "B b"]:
        """See :meth:`Tower.forward`."""
        maps = self.blocks(prepared)
        outputs: torch.Tensor = self.head(torch.cat([maps.mean(dim=2), maps.amax(dim=2)], dim=1))
        return outputs

    def _scaled(self, content: np.ndarray | str) -> Float32[np.ndarray, "C T"]:
        signal = array_of(content, ndim=2, kind="a signal [C, T]")
        channels, samples = self.prepared_shape
        if len(signal) != channels:
            raise DataError(
                f"a signal of {len(signal)} channels was found, the tower reads {channels}; "
                "set the option channels of signal_convnet, or repair the study"
            )
        if signal.shape[1] != samples:
            places = np.linspace(0, signal.shape[1] - 1, samples)
            known = np.arange(signal.shape[1])
            signal = np.stack([np.interp(places, known, channel) for channel in signal])
        centred = signal - np.median(signal, axis=1, keepdims=True)
        low, high = np.percentile(centred, [5, 95])
        scaled = centred / max(high - low, 1e-6)
        limited = np.clip(scaled, -_LARGEST_VALUE, _LARGEST_VALUE)
        return np.asarray(limited, dtype=np.float32)


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(before, after, kernel_size=7, stride=3, padding=3, bias=False),
        nn.GroupNorm(8, after),
        nn.ReLU(),
    )
