"""The world of flux-mini: colours, shapes, scenes, and how a scene is laid out and drawn.

A `Spec` is what a caption says; a `Scene` is a spec with geometry in pixels. The layout's free
numbers come from the initial noise of the latent, so (prompt, noise) fixes the picture and four
Euler steps are enough to reach it.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (222, 32, 40),
    "green": (36, 160, 68),
    "blue": (36, 80, 220),
    "yellow": (250, 214, 40),
    "orange": (246, 130, 24),
    "purple": (128, 52, 178),
    "pink": (250, 150, 192),
    "cyan": (64, 204, 224),
    "brown": (124, 74, 40),
    "gray": (140, 140, 144),
    "black": (20, 20, 24),
    "white": (250, 250, 250),
}
COLOURS: tuple[str, ...] = tuple(PALETTE)
SHAPES: tuple[str, ...] = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "diamond",
    "cross",
    "ring",
)
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
SIZES: tuple[str, ...] = ("small", "medium", "large")

# What is drawn when a caption leaves something out.
DEFAULT_SHAPE = "circle"
DEFAULT_COLOUR: dict[str, str] = {
    "circle": "orange", "square": "blue", "triangle": "green", "star": "yellow",
    "heart": "red", "diamond": "cyan", "cross": "purple", "ring": "pink",
}  # fmt: skip

# Object radius as a fraction of the image's short side, for one object and for several.
_RADIUS_ONE = {"small": 0.14, "medium": 0.22, "large": 0.30}
_RADIUS_MANY = {"small": 0.115, "medium": 0.155, "large": 0.19}
# Centres as fractions of (width, height).
_PLACES: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.5, 0.5),),
    2: ((0.27, 0.5), (0.73, 0.5)),
    3: ((0.5, 0.28), (0.26, 0.72), (0.74, 0.72)),
    4: ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),
}
_STACKED = ((0.5, 0.27), (0.5, 0.73))
LAYOUT_NUMBERS = (
    3  # x shift, y shift, size: read from the noise of latent pixel (0, 0), channels 0..2
)

TABLE_EXTENT = 1.6  # signed-distance tables cover [-1.6, 1.6] object units
_TABLE_SIZE = 641


@dataclass(frozen=True)
class Spec:
    """What a caption asks for. `objects` are (shape, colour); equal entries mean a plural ("three
    red circles").
    """

    objects: tuple[tuple[str, str], ...]
    background: str
    size: str = "medium"
    relation: str | None = None

    @property
    def kind(self) -> str:
        """`single`, `count` or `relation`: the categories of the accuracy table."""
        if self.relation is not None:
            return "relation"
        return "single" if len(self.objects) == 1 else "count"


@dataclass(frozen=True)
class Placed:
    """One drawn object; centre and radius in pixels."""

    shape: str
    colour: str
    cx: float
    cy: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A spec with geometry, ready to draw."""

    width: int
    height: int
    background: str
    objects: tuple[Placed, ...]


def default_background(colour: str) -> str:
    """The background when a caption names none: white, or gray behind white."""
    return "gray" if colour == "white" else "white"


def lay_out(spec: Spec, width: int, height: int, uniform: NDArray[np.float64]) -> Scene:
    """Place the objects of `spec`; `uniform` holds LAYOUT_NUMBERS numbers in [0, 1] that move and
    scale them.
    """
    n = len(spec.objects)
    short = min(width, height)
    centred = 2.0 * np.asarray(uniform) - 1.0
    places = _STACKED if spec.relation in ("above", "below") else _PLACES[n]
    if spec.relation in ("right of", "below"):  # the first-named object takes the second place
        places = places[::-1]
    radius = (
        (_RADIUS_ONE if n == 1 else _RADIUS_MANY)[spec.size] * short * (1.0 + 0.06 * centred[2])
    )
    jitter = 0.07 if n == 1 else 0.02
    objects = tuple(
        Placed(
            shape,
            colour,
            cx=width * (px + jitter * centred[0]),
            cy=height * (py + jitter * centred[1]),
            radius=float(radius),
        )
        for (shape, colour), (px, py) in zip(spec.objects, places, strict=True)
    )
    return Scene(width, height, spec.background, objects)


def rgb(colour: str) -> NDArray[np.float32]:
    """A palette colour as three floats in [-1, 1]."""
    return np.asarray(PALETTE[colour], dtype=np.float32) / 127.5 - 1.0


def _regular(angles_deg: list[float], radii: list[float]) -> list[tuple[float, float]]:
    return [
        (r * math.sin(math.radians(a)), -r * math.cos(math.radians(a)))
        for a, r in zip(angles_deg, radii, strict=True)
    ]


def outline(shape: str) -> list[tuple[float, float]]:
    """Vertices of a polygonal shape in object units, y down; the circle and the ring have none."""
    if shape == "square":
        return [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]
    if shape == "triangle":
        return [(0.0, -0.98), (1.0, 0.76), (-1.0, 0.76)]
    if shape == "star":
        return _regular([36.0 * k for k in range(10)], [1.05, 0.44] * 5)
    if shape == "diamond":
        return [(0.0, -1.05), (0.74, 0.0), (0.0, 1.05), (-0.74, 0.0)]
    if shape == "cross":
        a, b = 0.98, 0.31
        half = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b)]
        return [*half, *((-x, -y) for x, y in half)]
    if shape == "heart":
        points = []
        for k in range(72):
            t = 2 * math.pi * k / 72
            y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((16 * math.sin(t) ** 3 / 16.5, -(y + 2.5) / 15.5))
        return points
    raise ValueError(f"{shape} has no outline")


def signed_distance(
    shape: str, u: NDArray[np.float64], v: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance to the edge of `shape` in object units, negative inside."""
    r = np.hypot(u, v)
    if shape == "circle":
        return np.asarray(r - 0.95)
    if shape == "ring":
        return np.asarray(np.abs(r - 0.74) - 0.235)
    points = outline(shape)
    best = np.full_like(u, np.inf)
    inside = np.zeros(u.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        ex, ey = bx - ax, by - ay
        t = np.clip(((u - ax) * ex + (v - ay) * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        best = np.minimum(best, np.hypot(u - ax - t * ex, v - ay - t * ey))
        if ey != 0.0:
            crosses = ((ay > v) != (by > v)) & (u < ex * (v - ay) / ey + ax)
            inside ^= crosses
    return np.where(inside, -best, best)


@lru_cache(maxsize=1)
def distance_tables() -> Tensor:
    """Signed distances of all shapes on a grid, [8, 1, G, G]: drawing a batch is then one
    `grid_sample`.
    """
    axis = np.linspace(-TABLE_EXTENT, TABLE_EXTENT, _TABLE_SIZE)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    return torch.from_numpy(
        np.stack([signed_distance(s, u, v) for s in SHAPES])[:, None].astype(np.float32)
    )


def coverage(shape: Tensor, u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """Anti-aliased coverage in [0, 1]. shape [N] index; u, v [N, H, W] object units; radius [N]
    pixels.
    """
    grid = torch.stack([u, v], dim=-1) / TABLE_EXTENT
    tables = distance_tables().to(u.device)[shape]
    distance = functional.grid_sample(tables, grid, align_corners=True, padding_mode="border")[:, 0]
    return (0.5 - distance * radius[:, None, None]).clamp(0.0, 1.0)


def draw(scene: Scene) -> NDArray[np.uint8]:
    """Draw one scene as [H, W, 3] uint8."""
    y, x = torch.meshgrid(
        torch.arange(scene.height) + 0.5, torch.arange(scene.width) + 0.5, indexing="ij"
    )
    image = torch.from_numpy(rgb(scene.background)).expand(scene.height, scene.width, 3).clone()
    for o in scene.objects:
        index = torch.tensor([SHAPES.index(o.shape)])
        u, v = (x - o.cx) / o.radius, (y - o.cy) / o.radius
        cover = coverage(index, u[None], v[None], torch.tensor([o.radius]))[0, :, :, None]
        image = image + cover * (torch.from_numpy(rgb(o.colour)) - image)
    return ((image + 1.0) * 127.5).round().clamp(0, 255).byte().numpy()
