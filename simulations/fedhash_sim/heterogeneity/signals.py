"""A recording as a site's device would have stored it.

The devices are the phantom's (`fedhash.data.phantom.styles`): what a site's filters, drift and
noise have beyond the common device's is added to a recording. A manifest states neither unit nor
sampling rate. So heights are measured in the recording's own spread, 5th to 95th percentile, and
times as if it were as long as the phantom's.

A device that stores the light and not the blood volume turns recordings of one channel; the leads
of an ECG have their polarity by convention.

Shape suffixes: C channels, T samples.

    >>> device = draw_sensor(1.0, numpy_stream(0, "site-00"))
    >>> stored = through_sensor(ecg, numpy_stream(0, "site-00", "s17"), sensor=device)
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from fedhash.data.phantom.signals import SAMPLES, SAMPLING_RATE_HZ
from fedhash.data.phantom.styles import Sensor, draw_sensor
from fedhash.models.tower import array_of

__all__ = ["through_sensor"]

_COMMON = draw_sensor(0.0, np.random.default_rng(0))  # strength 0: any draw gives it
_LENGTH_S = SAMPLES / SAMPLING_RATE_HZ


def through_sensor(
    content: np.ndarray | str, rng: np.random.Generator, *, sensor: Sensor
) -> Float32[np.ndarray, "C T"]:
    """The recording of one exam, in its own unit.

    Args:
        content: The recording [C, T].
        rng: Of the exam's noise and drift.
        sensor: The site's.

    Raises:
        DataError: The content is no finite recording.
    """
    signal = array_of(content, ndim=2, kind="a signal [C, T]")
    channels, samples = signal.shape
    centred = signal - np.median(signal, axis=1, keepdims=True)
    low, high = np.percentile(centred, [5, 95])
    smoothing_s = np.sqrt(max(0.0, sensor.smoothing_s**2 - _COMMON.smoothing_s**2))
    stored = ndimage.gaussian_filter(signal, (0, smoothing_s * samples / _LENGTH_S), mode="nearest")
    waves = np.outer(rng.uniform(0.05, 0.2, channels), np.arange(samples) * _LENGTH_S / samples)
    drift = np.sin(2 * np.pi * (waves + rng.random((channels, 1))))
    noise = rng.standard_normal(signal.shape)
    stored = stored + (high - low) * (
        max(0.0, sensor.drift - _COMMON.drift) * drift
        + np.sqrt(max(0.0, sensor.noise**2 - _COMMON.noise**2)) * noise
    )
    return np.asarray(sensor.sign * stored if channels == 1 else stored, np.float32)
