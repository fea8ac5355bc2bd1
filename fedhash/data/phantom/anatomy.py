"""The healthy chest film: thorax, lungs, heart, ribs, diaphragm, vessels.

Coordinates are those of the film: x from -1 (left edge, the patient's right) to 1, y from -1 (top)
to 1. All lengths are in these units, so that a film is the same at every size. Shapes have soft
edges and are evaluated on the whole grid at once.

What an X-ray shows of a lung is its air. A `Film` therefore keeps the air apart from everything
that is brighter than air; a consolidation takes air away, and vessels show only where air is.

    >>> body = draw_body(female=False, rng=np.random.default_rng(0))
    >>> film = draw_film(body, grid(64), np.random.default_rng(1))
    >>> film.develop().shape
    (64, 64)

Shape suffixes: S side in pixels, N number of lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from skimage.filters import gaussian

__all__ = [
    "Body",
    "Film",
    "Grid",
    "blurred",
    "draw_body",
    "draw_film",
    "fade",
    "grid",
    "ribs",
    "smooth_noise",
    "strokes",
]

Picture = Float32[np.ndarray, "S S"]
Grid = tuple[Picture, Picture]

RIGHT, LEFT = -1, 1  # signs of x


@dataclass(frozen=True, slots=True)
class Body:
    """Measures of one patient; findings such as cardiomegaly change them.

    Attributes:
        tissue: Brightness of soft tissue.
        lung_width: From the midline to the inner chest wall.
        lung_top: Height of the apices.
        base_right: Height of the right dome of the diaphragm.
        base_left: Height of the left dome.
        dome: How far a dome stands above its edge.
        heart_ratio: Cardiothoracic ratio; above 0.5 is called enlarged.
        rib_spacing: Between neighbouring ribs.
        breast: Brightness of the breast shadows.
        air: How lucent the lungs are.
        vessels: How bright the vessels are.
    """

    tissue: float
    lung_width: float
    lung_top: float
    base_right: float
    base_left: float
    dome: float
    heart_ratio: float
    rib_spacing: float
    breast: float
    air: float = 1.0
    vessels: float = 1.0

    def base(self, side: int) -> float:
        """Height of the diaphragm on one side."""
        return self.base_left if side == LEFT else self.base_right

    @property
    def heart_centre(self) -> tuple[float, float]:
        """Where the heart lies, left of the midline and on the diaphragm."""
        return 0.06 + 0.2 * self.heart_ratio, self.base_left - 0.2

    @property
    def heart_half_width(self) -> float:
        """Half of the heart's largest width."""
        return self.heart_ratio * self.lung_width


@dataclass(slots=True)
class Film:
    """A film in the making, on which findings are drawn.

    Attributes:
        body: The patient's measures.
        x: Columns of the grid.
        y: Rows of the grid.
        lungs: Right and left lung field, 0 to 1.
        outer: Distance of the chest wall from the midline at each height.
        tissue: Brightness of all that is not lung.
        air: How much air lies in the beam, 0 to about 1.
        vessels: Brightness of the vessels, to be seen through air only.
        dense: Brightness of bones and devices, seen through everything.
    """

    body: Body
    x: Picture
    y: Picture
    lungs: tuple[Picture, Picture]
    outer: Picture
    tissue: Picture
    air: Picture
    vessels: Picture
    dense: Picture

    def lung(self, side: int) -> Picture:
        """The lung field of one side."""
        return self.lungs[1] if side == LEFT else self.lungs[0]

    def fill(self, opacity: Picture) -> None:
        """Replace air by something dense, where opacity is from 0 to 1."""
        self.air *= 1 - opacity

    def develop(self) -> Picture:
        """The brightness, about 0 to 1."""
        seen_through_air = 0.46 * self.air - self.vessels * np.clip(self.air, 0, 1)
        return np.asarray(np.clip(self.tissue - seen_through_air + self.dense, 0, 1.2), np.float32)


def grid(
    size_px: int, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0), turn_rad: float = 0.0
) -> Grid:
    """Columns x and rows y of a square film, seen through a field of view."""
    line = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px * 2 - 1
    y, x = np.meshgrid(line / zoom, line / zoom, indexing="ij")
    cos, sin = np.float32(np.cos(turn_rad)), np.float32(np.sin(turn_rad))
    return (
        cos * x - sin * y + np.float32(shift[0]),
        sin * x + cos * y + np.float32(shift[1]),
    )


def fade(distance: Float[np.ndarray, "..."], width: float = 0.03) -> Float[np.ndarray, "..."]:
    """A soft step: 0 where the distance is negative, 1 where it is positive."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance / width), np.float32)


def blurred(picture: Picture, sigma_px: float) -> Picture:
    """The picture through a Gaussian filter."""
    return np.asarray(
        gaussian(picture, sigma=sigma_px),  # type: ignore[no-untyped-call]
        np.float32,
    )


def smooth_noise(size_px: int, scale: float, rng: np.random.Generator) -> Picture:
    """Noise of mean 0 and variance 1 with structures of the given size.

    It has a stream of its own, so that the anatomy drawn after it is the same at every film size.
    """
    white = rng.spawn(1)[0].standard_normal((size_px, size_px), dtype=np.float32)
    noise = blurred(white, max(0.5, scale * size_px / 2))
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def strokes(
    at: Grid, lines: Float[np.ndarray, "N 4"], widths: Float[np.ndarray, " N"] | float
) -> Picture:
    """Straight strokes with soft sides, 0 to 1; a line is x0, y0, x1, y1."""
    x, y = at
    pixel = float(abs(x[0, 1] - x[0, 0]) + abs(y[0, 1] - y[0, 0]))
    picture = np.zeros_like(x)
    widths = np.broadcast_to(widths, len(lines))
    for (x0, y0, x1, y1), wanted in zip(lines.tolist(), widths.tolist(), strict=True):
        width = max(wanted, 0.6 * pixel)  # what is thinner than a pixel is fainter, not thinner
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
        squared = (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2
        np.maximum(picture, wanted / width * np.exp(-squared / width**2), out=picture)
    return picture


def draw_body(*, female: bool, rng: np.random.Generator) -> Body:
    """Measures of one healthy patient."""
    base = rng.normal(0.42, 0.05)
    return Body(
        tissue=rng.normal(0.6, 0.04),
        lung_width=rng.normal(0.70 if female else 0.74, 0.035),
        lung_top=rng.normal(-0.76, 0.035),
        base_right=base - 0.05,
        base_left=base,
        dome=rng.normal(0.13, 0.03),
        heart_ratio=float(np.clip(rng.normal(0.435, 0.03), 0.35, 0.51)),
        rib_spacing=rng.normal(0.165, 0.012),
        breast=float(female) * abs(rng.normal(0.09, 0.04)),
    )


def draw_film(body: Body, at: Grid, rng: np.random.Generator) -> Film:
    """Everything but the findings and the ribs, which a fracture may displace."""
    x, y = at
    across = np.abs(x)
    down = np.clip((y - body.lung_top) / (body.base_left - body.lung_top), 0.0, 1.3)
    outer = (body.lung_width * np.clip(down + 0.03, 0, 1) ** 0.3).astype(np.float32)
    lungs = tuple(_lung(body, at, outer, side) for side in (RIGHT, LEFT))

    neck = np.clip((y + 1.0) / 0.22, 0, 1)
    silhouette = fade(0.24 + 0.72 * neck**0.6 - across + 0.04 * y, 0.04)
    tissue = body.tissue * silhouette
    tissue += 0.13 * silhouette * fade(y - body.base_left, 0.1)  # abdomen
    tissue += 0.16 * fade(0.11 - across, 0.05) * fade(y + 0.95, 0.1)  # spine, great vessels
    tissue += 0.04 * fade(0.07 - across, 0.02) * np.sin(y * 40)  # vertebrae
    tissue -= 0.16 * fade(0.045 - across, 0.02) * fade(-0.32 - y, 0.06)  # trachea
    bubble = ((x - 0.36) / 0.17) ** 2 + ((y - body.base_left - 0.16) / 0.08) ** 2
    tissue -= rng.uniform(0, 0.3) * fade(1 - bubble, 0.4)  # air in the stomach
    tissue += body.breast * _breasts(at)

    heart = _heart(body, at)
    air = body.air * (lungs[0] + lungs[1]) * (1 - 0.9 * heart)
    air *= 1 + 0.05 * smooth_noise(len(x), 0.15, rng)
    film = Film(
        body,
        x,
        y,
        (lungs[0], lungs[1]),
        outer,
        tissue.astype(np.float32),
        air.astype(np.float32),
        vessels=np.float32(body.vessels) * _vessels(body, at, rng),
        dense=_clavicles(at, rng),
    )
    film.tissue += 0.1 * heart
    return film


def ribs(
    body: Body,
    at: Grid,
    broken: Sequence[tuple[int, int, float, float]] = (),
) -> Picture:
    """The ribs; each broken one is (side, number, x of the break, step in height)."""
    x, y = at
    across = np.abs(x) / body.lung_width
    height = (y - body.lung_top - 0.06 - 0.26 * across**2) / body.rib_spacing
    for side, number, place, step in broken:
        beyond = (np.sign(x) == side) & (np.round(height) == number) & (np.abs(x) > place)
        height = height - beyond * step / body.rib_spacing
    posterior = _bands(height, 0.2) * fade(1.06 - across, 0.06)
    from_front = (y - body.lung_top - 0.12 + 0.5 * across) / body.rib_spacing - 1.2
    anterior = _bands(from_front, 0.25) * fade(1.03 - across, 0.06) * fade(across - 0.45, 0.1)
    return np.asarray(0.1 * posterior + 0.05 * anterior, np.float32)


def _bands(height: Float[np.ndarray, "S S"], width: float) -> Float[np.ndarray, "S S"]:
    """Bands at 0, 1, 2, ..., fading below the chest."""
    within = fade(height + 0.5, 0.1) * fade(7.5 - height, 1.0)
    return np.asarray(within * np.exp(-(((height - np.round(height)) / width) ** 2)), np.float32)


def _lung(body: Body, at: Grid, outer: Picture, side: int) -> Picture:
    x, y = at
    across = side * x
    middle = 0.52 * body.lung_width
    bow = ((across - middle) / (0.48 * body.lung_width)) ** 2
    floor = body.base(side) + body.dome * (np.clip(bow, 0, 2.2) - 0.4)
    apex = fade(y - body.lung_top - 0.35 * (across - 0.3) ** 2, 0.03)
    inner = fade(across - 0.1 - 0.03 * np.cos(y * 5), 0.02)
    walls = fade(outer - across, 0.02) * fade(floor - y, 0.02)
    return np.asarray(walls * inner * apex, np.float32)


def _heart(body: Body, at: Grid) -> Picture:
    x, y = at
    (cx, cy), width = body.heart_centre, body.heart_half_width
    height = 0.2 + 0.2 * width
    # The apex points down and to the patient's left; the upper left border is a slope.
    along, up = x - cx, y - cy - 0.45 * (x - cx)
    ellipse = np.abs(along / width) ** 2.2 + np.abs(up / height) ** 2.2
    knob = ((x - 0.12) / 0.085) ** 2 + ((y + 0.33) / 0.1) ** 2  # arch of the aorta
    return np.asarray(np.maximum(fade(1 - ellipse, 0.18), 0.7 * fade(1 - knob, 0.5)), np.float32)


def _breasts(at: Grid) -> Picture:
    x, y = at
    disc = ((np.abs(x) - 0.48) / 0.34) ** 2 + ((y - 0.28) / 0.32) ** 2
    return fade(1 - disc, 0.25)


def _vessels(body: Body, at: Grid, rng: np.random.Generator) -> Picture:
    """Hila and the vessels that branch from them."""
    picture = np.zeros_like(at[0])
    for side in (RIGHT, LEFT):
        hilum = np.array([side * 0.2, -0.06 if side == RIGHT else -0.1])
        angle = np.linspace(-1.35, 1.25, 7) + rng.normal(0, 0.2, 7)
        length = rng.uniform(0.25, 0.5, 7) * body.lung_width / 0.72
        middle = hilum + 0.5 * _polar(length, angle, side)
        tips = middle + 0.6 * _polar(length, angle + rng.normal(0, 0.5, 7), side)
        start = np.broadcast_to(hilum, middle.shape)
        picture += 0.1 * strokes(at, np.hstack([start, middle]), 0.035)
        picture += 0.07 * strokes(at, np.hstack([middle, tips]), 0.022)
        x, y = at
        squared = ((x - hilum[0]) / 0.09) ** 2 + ((y - hilum[1]) / 0.14) ** 2
        picture += 0.17 * np.exp(-squared)
    return picture


def _polar(
    length: Float[np.ndarray, " N"], angle: Float[np.ndarray, " N"], side: int
) -> Float[np.ndarray, "N 2"]:
    return np.stack([side * length * np.cos(angle), length * np.sin(angle)], axis=1)


def _clavicles(at: Grid, rng: np.random.Generator) -> Picture:
    tilt = rng.normal(0, 0.02, 2)
    lines = np.array(
        [
            [-0.09, -0.60 + tilt[0], -0.72, -0.74 - tilt[0]],
            [0.09, -0.60 + tilt[1], 0.72, -0.74 - tilt[1]],
        ]
    )
    return 0.14 * strokes(at, lines, 0.04)
