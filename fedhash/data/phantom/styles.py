"""What differs between sites: the scanner, the pulse sensor and the way of reporting.

A site's styles depend on the seed and the site alone. Strength scales how far each setting lies
from the common default; at strength 0 all sites expose, record and write alike.

    >>> scanner = draw_scanner(1.0, np.random.default_rng(0))
    >>> radiograph = scanner.expose(film, np.random.default_rng(1))

Shape suffix: S side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from fedhash.data.phantom.anatomy import Grid, blurred, fade, grid

__all__ = ["ReportingStyle", "Scanner", "Sensor", "draw_reporting", "draw_scanner", "draw_sensor"]


@dataclass(frozen=True, slots=True)
class Scanner:
    """How a site's radiographs look.

    Attributes:
        zoom: Magnification; above 1 the film shows less of the chest.
        shift: Offset of the beam's centre, in half film widths.
        gain: Factor of the brightness.
        gamma: Exponent of the tone curve.
        blur: Unsharpness, as a share of the film width.
        noise: Standard deviation of the grain.
        sharpening: Weight of the edge enhancement that the vendor adds.
        frame: Width of the black collimator frame, in half film widths.
        marker: Corner of the letter that marks the side: x and y sign.
    """

    zoom: float
    shift: tuple[float, float]
    gain: float
    gamma: float
    blur: float
    noise: float
    sharpening: float
    frame: float
    marker: tuple[int, int]

    def field_of_view(self, size_px: int, rng: np.random.Generator) -> Grid:
        """The grid on which one exam is drawn: the site's field and the patient's pose."""
        zoom = self.zoom * rng.normal(1, 0.03)
        dx, dy = rng.normal(self.shift, 0.03)
        return grid(size_px, zoom, (dx, dy), turn_rad=rng.normal(0, 0.03))

    def expose(
        self, film: Float32[np.ndarray, "S S"], rng: np.random.Generator
    ) -> Float32[np.ndarray, "S S"]:
        """The stored image, 0 to 1, of one exam's film."""
        size_px = len(film)
        picture = blurred(film, self.blur * size_px)
        wide = blurred(picture, 0.03 * size_px)
        picture = picture + self.sharpening * (picture - wide)
        picture = self.gain * rng.normal(1, 0.05) * np.clip(picture, 0, None) ** self.gamma
        x, y = grid(size_px)
        edge = np.maximum(np.abs(x), np.abs(y))
        picture *= fade(1 - self.frame - edge, 0.01)
        mark = np.maximum(
            np.abs(x - (0.82 - self.frame) * self.marker[0]) / 0.04,
            np.abs(y - (0.82 - self.frame) * self.marker[1]) / 0.06,
        )
        picture = np.maximum(picture, 0.9 * fade(1 - mark, 0.3))
        picture += self.noise * rng.standard_normal(film.shape)
        return np.asarray(np.clip(picture, 0, 1), np.float32)


@dataclass(frozen=True, slots=True)
class Sensor:
    """How a site's pulse recordings look.

    Attributes:
        smoothing_s: Width of the device's low-pass filter.
        drift: Height of the slow baseline, in pulse heights.
        noise: Standard deviation of the noise, in pulse heights.
        sign: -1 where the device stores the light and not the blood volume.
    """

    smoothing_s: float
    drift: float
    noise: float
    sign: int


@dataclass(frozen=True, slots=True)
class ReportingStyle:
    """How a site's radiologists write.

    Attributes:
        layouts: Probability of each layout: structured, prose, telegraphic.
        taste: How much a favourite synonym is preferred to the next one.
        synonym_seed: Of the site's order of synonyms, from the favourite down.
        negatives: Mean number of absent findings that a report mentions.
        omission: Probability that a minor finding goes unmentioned.
        question: Probability that the report opens with the referrer's question.
        typos: Probability that a word is misspelled.
        boilerplate: Number of the site's closing sentence.
    """

    layouts: tuple[float, float, float]
    taste: float
    synonym_seed: int
    negatives: float
    omission: float
    question: float
    typos: float
    boilerplate: int


def draw_scanner(strength: float, rng: np.random.Generator) -> Scanner:
    """A site's X-ray unit."""
    z = strength * np.clip(rng.standard_normal(8), -2, 2)
    x_sign, y_sign = rng.choice([-1, 1], 2).tolist() if strength else (-1, -1)
    return Scanner(
        zoom=float(np.exp(0.08 * z[0])),
        shift=(0.06 * z[1], 0.06 * z[2]),
        gain=float(np.exp(0.1 * z[3])),
        gamma=float(np.exp(0.3 * z[4])),
        blur=0.008 * float(np.exp(0.5 * z[5])),
        noise=0.02 * float(np.exp(0.5 * z[6])),
        sharpening=0.3 * abs(z[7]),
        frame=0.05 * abs(z[0] - z[4]),
        marker=(x_sign, y_sign),
    )


def draw_sensor(strength: float, rng: np.random.Generator) -> Sensor:
    """A site's pulse oximeter."""
    z = strength * np.clip(rng.standard_normal(4), -2, 2)
    return Sensor(
        smoothing_s=0.02 * float(np.exp(0.6 * z[0])),
        drift=0.3 * float(np.exp(0.5 * z[1])),
        noise=0.08 * float(np.exp(0.5 * z[2])),
        sign=-1 if z[3] > 1 else 1,
    )


def draw_reporting(strength: float, rng: np.random.Generator) -> ReportingStyle:
    """A radiology department's habits."""
    z = strength * np.clip(rng.standard_normal(8), -2, 2)
    layouts: Float[np.ndarray, "3"] = np.exp(2.5 * z[:3])
    structured, prose, telegraphic = (layouts / layouts.sum()).tolist()
    return ReportingStyle(
        layouts=(structured, prose, telegraphic),
        taste=0.8 * strength,
        synonym_seed=int(rng.integers(2**31)) if strength else 0,
        negatives=3.0 * float(np.exp(0.4 * z[3])),
        omission=0.08 * float(np.exp(0.4 * z[4])),
        question=0.5 * float(np.exp(0.3 * z[5])),
        typos=0.01 * float(np.exp(0.5 * z[6])),
        boilerplate=int(rng.integers(6)) if strength else 0,
    )
