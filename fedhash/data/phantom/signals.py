"""Pulse waves (photoplethysmography) of a patient with given findings.

Each beat is a systolic and a dicrotic wave, the two-Gaussian model of the pulse
(Tang and others, Scientific Reports 10, 13883, 2020). What the findings change:

- pacemaker: a fixed rate without variability
- cardiomegaly: flat pulse, no second wave; often atrial fibrillation, an irregular rhythm
- edema, pneumonia, pneumothorax: fast pulse; fast breathing
- emphysema, pneumothorax, pleural effusion: the pulse swings with the breath

    >>> sensor = draw_sensor(1.0, np.random.default_rng(0))
    >>> draw_signal([], sensor, np.random.default_rng(1)).shape
    (1, 600)

Shape suffixes: T samples, P beats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from fedhash.data.phantom.findings import Presence
from fedhash.data.phantom.styles import Sensor

__all__ = ["SAMPLES", "SAMPLING_RATE_HZ", "beat_times", "draw_signal"]

SAMPLING_RATE_HZ = 100
SAMPLES = 600

_FIBRILLATION_SHARE = {True: 0.45, False: 0.03}  # with and without cardiomegaly
_FASTER_BPM = {"edema": 20.0, "pneumonia": 18.0, "pneumothorax": 24.0}
_SWING = {"emphysema": 0.35, "pneumothorax": 0.3, "pleural_effusion": 0.2}


def draw_signal(
    present: Sequence[Presence], sensor: Sensor, rng: np.random.Generator
) -> Float32[np.ndarray, "1 T"]:
    """Six seconds of pulse wave at 100 Hz, in units of a healthy pulse's height."""
    severity = {presence.finding: presence.severity for presence in present}
    time_s = np.arange(SAMPLES) / SAMPLING_RATE_HZ
    beats_s = beat_times(severity, rng)
    enlarged = severity.get("cardiomegaly", 0.0)

    breath_hz = rng.normal(0.25, 0.03) + 0.08 * sum(severity.get(f, 0.0) for f in _FASTER_BPM)
    swing = 0.08 + sum(weight * severity.get(f, 0.0) for f, weight in _SWING.items())
    breath = np.sin(2 * np.pi * (breath_hz * time_s + rng.random()))

    height = rng.normal(1, 0.1) * (1 - 0.4 * enlarged) * (1 - 0.3 * severity.get("edema", 0.0))
    second = np.clip(rng.normal(0.45, 0.08) - 0.35 * enlarged, 0, 1)
    # Time to the peak 0.2 s and to the second wave 0.48 s at rest; devices smear both.
    wave = _waves(time_s, beats_s + 0.2, 0.08 + 0.03 * enlarged, sensor.smoothing_s)
    wave += second * _waves(time_s, beats_s + 0.48, 0.1, sensor.smoothing_s)

    drift = sensor.drift * np.sin(2 * np.pi * (rng.uniform(0.05, 0.2) * time_s + rng.random()))
    signal = height * (1 + swing * breath) * wave + drift + 0.3 * swing * breath
    signal += sensor.noise * rng.standard_normal(SAMPLES)
    return np.asarray(sensor.sign * signal[None], np.float32)


def beat_times(severity: dict[str, float], rng: np.random.Generator) -> Float[np.ndarray, " P"]:
    """Onsets of the beats in seconds, from before the recording to its end."""
    paced = "pacemaker" in severity
    fibrillates = rng.random() < _FIBRILLATION_SHARE["cardiomegaly" in severity] and not paced
    rate_bpm = rng.normal(70, 8) + sum(
        faster * (0.4 + 0.6 * severity[finding])
        for finding, faster in _FASTER_BPM.items()
        if finding in severity
    )
    if paced:
        rate_bpm = float(rng.choice([60, 70]))
    variability = 0.22 if fibrillates else 0.002 if paced else 0.035
    interval_s = 60 / np.clip(rate_bpm, 45, 160)
    count = int(SAMPLES / SAMPLING_RATE_HZ / interval_s * 2) + 4
    intervals_s = interval_s * np.clip(rng.normal(1, variability, count), 0.45, 1.9)
    onsets_s = np.cumsum(intervals_s) - interval_s * (1 + rng.random())
    return np.asarray(onsets_s[onsets_s < SAMPLES / SAMPLING_RATE_HZ])


def _waves(
    time_s: Float[np.ndarray, " T"],
    peaks_s: Float[np.ndarray, " P"],
    width_s: float,
    smoothing_s: float,
) -> Float[np.ndarray, " T"]:
    smeared_s = np.hypot(width_s, smoothing_s)
    waves = np.exp(-0.5 * ((time_s - peaks_s[:, None]) / smeared_s) ** 2)
    return np.asarray(width_s / smeared_s * waves.sum(axis=0))
