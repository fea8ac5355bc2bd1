"""How findings look on a film.

Some findings change the body before it is drawn (a large heart, flat diaphragms), the others are
drawn on the film. Electrodes and their wires lie on many chests and mean nothing: they are there
so that a bright dot is not always a nodule and a bright line not always a catheter.

    >>> sick = Presence("pleural_effusion", 0.6, "left", "lower")
    >>> picture = draw_radiograph(body, [sick], grid(64), np.random.default_rng(0))

Shape suffix: S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float32

from fedhash.data.phantom.anatomy import (
    LEFT,
    RIGHT,
    Body,
    Film,
    Grid,
    draw_film,
    fade,
    ribs,
    smooth_noise,
    strokes,
)
from fedhash.data.phantom.findings import Presence

__all__ = ["draw_radiograph"]

_SIDES = {"right": (RIGHT,), "left": (LEFT,), "both": (RIGHT, LEFT)}
_ZONE_HEIGHT = {"upper": -0.42, "middle": -0.08, "lower": 0.2}
_ELECTRODE_SHARE = 0.3


def draw_radiograph(
    body: Body, present: Sequence[Presence], at: Grid, rng: np.random.Generator
) -> Float32[np.ndarray, "S S"]:
    """A frontal chest film of a patient with these findings, before any scanner's style."""
    for presence in present:
        if presence.finding in _DEFORM:
            body = _DEFORM[presence.finding](body, presence)
    film = draw_film(body, at, rng)
    broken = [
        rib
        for presence in present
        if presence.finding == "fracture"
        for rib in _broken(presence, rng)
    ]
    film.dense += ribs(body, at, broken)
    for presence in present:
        if presence.finding in _DRAW:
            _DRAW[presence.finding](film, presence, rng)
    if rng.random() < _ELECTRODE_SHARE:
        _electrodes(film, rng)
    return film.develop()


def _raise_base(body: Body, presence: Presence, height: float) -> Body:
    sides = _SIDES[presence.side]
    return replace(
        body,
        base_right=body.base_right - height * (RIGHT in sides),
        base_left=body.base_left - height * (LEFT in sides),
    )


def _deform_cardiomegaly(body: Body, presence: Presence) -> Body:
    return replace(body, heart_ratio=body.heart_ratio + 0.06 + 0.13 * presence.severity)


def _deform_edema(body: Body, presence: Presence) -> Body:
    return replace(body, vessels=body.vessels * (1.15 + 0.6 * presence.severity))


def _deform_emphysema(body: Body, presence: Presence) -> Body:
    severity = 0.3 + 0.7 * presence.severity
    return replace(
        body,
        base_right=body.base_right + 0.11 * severity,
        base_left=body.base_left + 0.11 * severity,
        dome=body.dome * (1 - 0.8 * severity),
        heart_ratio=body.heart_ratio - 0.05 * severity,
        air=body.air * (1 + 0.12 * severity),
        vessels=body.vessels * (1 - 0.4 * severity),
    )


def _deform_atelectasis(body: Body, presence: Presence) -> Body:
    return _raise_base(body, presence, 0.03 + 0.08 * presence.severity)


def _deform_fibrosis(body: Body, presence: Presence) -> Body:
    return _raise_base(body, presence, 0.06 * presence.severity)


_DEFORM: dict[str, Callable[[Body, Presence], Body]] = {
    "cardiomegaly": _deform_cardiomegaly,
    "edema": _deform_edema,
    "emphysema": _deform_emphysema,
    "atelectasis": _deform_atelectasis,
    "fibrosis": _deform_fibrosis,
}


def _draw_edema(film: Film, presence: Presence, rng: np.random.Generator) -> None:
    """Haze around the hila, the bat's wings."""
    across = np.abs(film.x)
    wings = np.exp(-(((across - 0.3) / 0.26) ** 2) - ((film.y + 0.02) / 0.34) ** 2)
    texture = 1 + 0.35 * smooth_noise(len(film.x), 0.07, rng)
    film.fill(np.clip((0.15 + 0.6 * presence.severity) * wings * texture, 0, 0.9))


def _draw_effusion(film: Film, presence: Presence, rng: np.random.Generator) -> None:
    """Fluid from the diaphragm up, higher at the chest wall: the meniscus."""
    for side in _SIDES[presence.side]:
        across = np.clip(side * film.x / film.body.lung_width, 0, 1)
        level = film.body.base(side) + 0.03 - 0.55 * presence.severity**1.3
        meniscus = level - 0.16 * across**3 + rng.normal(0, 0.02)
        film.fill(0.93 * film.lung(side) * fade(film.y - meniscus, 0.04))


def _draw_pneumonia(film: Film, presence: Presence, rng: np.random.Generator) -> None:
    """A patchy, ill-defined consolidation."""
    for side in _SIDES[presence.side]:
        x, y = _place(film.body, presence, side, rng)
        size = 0.15 + 0.14 * presence.severity
        squared = (film.x - x) ** 2 + ((film.y - y) / rng.uniform(0.8, 1.3)) ** 2
        patches = fade(smooth_noise(len(film.x), 0.05, rng) + 0.6, 0.8)
        opacity = (0.45 + 0.45 * presence.severity) * np.exp(-squared / size**2) * patches
        film.fill(np.clip(opacity * film.lung(side), 0, 0.95))


def _draw_atelectasis(film: Film, presence: Presence, rng: np.random.Generator) -> None:
    """Plates of collapsed lung above a raised diaphragm."""
    for side in _SIDES[presence.side]:
        lines = []
        for _ in range(int(rng.integers(1, 4))):
            x = side * rng.uniform(0.18, 0.32)
            y = film.body.base(side) - rng.uniform(0.1, 0.3)
            length = rng.uniform(0.2, 0.36)
            lines.append([x, y, x + side * length, y + rng.normal(0, 0.05)])
        plates = strokes((film.x, film.y), np.array(lines), 0.02 + 0.02 * presence.severity)
        film.fill((0.35 + 0.45 * presence.severity) * plates * film.lung(side))


def _draw_pneumothorax(film: Film, presence: Presence, rng: np.random.Generator) -> None:
    """Air without vessels between the chest wall and a fine pleural line."""
    for side in _SIDES[presence.side]:
        from_wall = film.outer - side * film.x
        from_apex = 0.8 * (film.y - film.body.lung_top) + 0.02
        depth = np.minimum(from_wall, from_apex) - 0.12 * np.clip(0.3 - film.y, 0, 1)
        rim = 0.05 + 0.25 * presence.severity + rng.normal(0, 0.01)
        outside = fade(rim - depth, 0.015) * film.lung(side)
        film.vessels *= 1 - outside
        film.air *= 1 + 0.2 * outside
        film.dense += 0.13 * np.exp(-(((depth - rim) / 0.022) ** 2)) * film.lung(side)


def _draw_nodule(film: Film, presence: Presence, rng: np.random.Generator) -> None:
    """One to three round opacities."""
    for _ in range(int(rng.integers(1, 4))):
        side = _SIDES[presence.side][0]
        x, y = _place(film.body, presence, side, rng)
        radius = 0.06 + 0.06 * presence.severity
        distance = np.hypot(film.x - x, film.y - y)
        opacity = rng.uniform(0.6, 0.9) * fade(radius - distance, 0.02)
        film.fill(opacity.astype(np.float32))


def _draw_fibrosis(film: Film, presence: Presence, rng: np.random.Generator) -> None:
    """A fine net at the bases and along the chest wall."""
    net = 1 - np.abs(smooth_noise(len(film.x), 0.03, rng))
    for side in _SIDES[presence.side]:
        low = fade(film.y + 0.05, 0.25)
        lateral = np.clip(side * film.x / film.body.lung_width, 0, 1)
        weight = film.lung(side) * low * (0.35 + 0.65 * lateral)
        film.dense += (0.14 + 0.16 * presence.severity) * net * weight * film.air
        film.fill(0.2 * presence.severity * weight)


def _draw_fracture(film: Film, presence: Presence, rng: np.random.Generator) -> None:
    """Blood and callus at the chest wall beside the displaced ribs."""
    side = _SIDES[presence.side][0]
    y = _ZONE_HEIGHT[presence.zone] + rng.normal(0, 0.04)
    squared = ((side * film.x - film.outer + 0.04) / 0.1) ** 2 + ((film.y - y) / 0.17) ** 2
    film.fill((0.6 + 0.35 * presence.severity) * np.exp(-squared))
    film.dense += (0.15 + 0.1 * presence.severity) * np.exp(-2 * squared)


def _draw_pacemaker(film: Film, presence: Presence, rng: np.random.Generator) -> None:
    """A can below the clavicle and one or two leads into the heart."""
    side = _SIDES[presence.side][0]
    x, y = side * rng.uniform(0.45, 0.58), rng.uniform(-0.6, -0.45)
    can = fade(0.09 - np.abs(film.x - x), 0.02) * fade(0.075 - np.abs(film.y - y), 0.02)
    film.dense += 0.45 * can
    heart_x, heart_y = film.body.heart_centre
    tips = [(heart_x + 0.12, heart_y + 0.16), (heart_x - 0.18, heart_y - 0.02)]
    for tip in tips[: int(rng.integers(1, 3))]:
        _wire(film, [(x, y), (side * 0.2, y - 0.07), (-0.06, -0.4), (-0.08, -0.1), tip], 0.25)


def _draw_catheter(film: Film, presence: Presence, rng: np.random.Generator) -> None:
    """A central line from the neck or the arm into the superior vena cava."""
    side = _SIDES[presence.side][0]
    tip = (-0.09, rng.uniform(-0.25, 0.0))
    neck = [(side * 0.22, -1.0), (side * 0.13, -0.7)]
    arm = [(side * 0.95, -0.5), (side * 0.6, -0.68), (side * 0.25, -0.62)]
    _wire(film, [*(neck if rng.random() < 0.6 else arm), (-0.07, -0.48), tip], 0.28)


def _draw_hernia(film: Film, presence: Presence, rng: np.random.Generator) -> None:
    """Stomach behind the heart: a round shadow with air above fluid."""
    radius = 0.11 + 0.1 * presence.severity
    x, y = rng.normal(0.07, 0.04), film.body.base_left - radius + rng.normal(0, 0.02)
    distance = np.hypot(film.x - x, film.y - y)
    film.tissue += 0.08 * fade(radius - distance, 0.04)
    gas = fade(0.8 * radius - distance, 0.025) * fade(y - film.y, 0.015)
    film.tissue -= (0.16 + 0.14 * presence.severity) * gas


_DRAW: dict[str, Callable[[Film, Presence, np.random.Generator], None]] = {
    "edema": _draw_edema,
    "pneumonia": _draw_pneumonia,
    "atelectasis": _draw_atelectasis,
    "pleural_effusion": _draw_effusion,
    "pneumothorax": _draw_pneumothorax,
    "nodule": _draw_nodule,
    "fibrosis": _draw_fibrosis,
    "fracture": _draw_fracture,
    "pacemaker": _draw_pacemaker,
    "catheter": _draw_catheter,
    "hiatal_hernia": _draw_hernia,
}


def _place(
    body: Body, presence: Presence, side: int, rng: np.random.Generator
) -> tuple[float, float]:
    """A point in the lung, in the presence's zone."""
    x = side * body.lung_width * rng.uniform(0.4, 0.75)
    return x, _ZONE_HEIGHT[presence.zone] + rng.normal(0, 0.06)


def _broken(presence: Presence, rng: np.random.Generator) -> list[tuple[int, int, float, float]]:
    side = _SIDES[presence.side][0]
    first = {"upper": 1, "middle": 3, "lower": 5}[presence.zone]
    step = float(rng.choice([-1, 1])) * (0.03 + 0.04 * presence.severity)
    place = rng.uniform(0.3, 0.5)
    return [(side, first + i, place, step) for i in range(1 + int(3 * presence.severity))]


def _wire(film: Film, points: Sequence[tuple[float, float]], brightness: float) -> None:
    lines = np.array([[*a, *b] for a, b in pairwise(points)])
    film.dense += brightness * strokes((film.x, film.y), lines, 0.014)


def _electrodes(film: Film, rng: np.random.Generator) -> None:
    dots = rng.uniform([-0.65, -0.6], [0.65, 0.3], (3, 2))
    exit_x = rng.uniform(-0.9, 0.9)
    for x, y in dots.tolist():
        distance = np.hypot(film.x - x, film.y - y)
        film.dense += 0.14 * fade(0.03 - distance, 0.015)
        _wire(film, [(x, y), (0.5 * (x + exit_x), 0.5 * (y + 1.2)), (exit_x, 1.2)], 0.06)
