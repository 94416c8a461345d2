"""Says what is in a picture by pixels alone: background, and each object's shape, colour and place.

It knows the palette and the ideal shapes, never the model: colours by nearest palette entry,
objects as connected components of what is not background, shapes by overlap with box-normalised
templates.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.flux_mini.world import COLOURS, PALETTE, SHAPES, Spec, signed_distance

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_DIFFERENT = 45.0  # RGB distance from the background from which a pixel may belong to an object
_MIN_AREA = 0.002  # share of the image; the smallest drawn object covers three times that
_MIN_OVERLAP = 0.7  # of a component with its best template; below, the shape is "unclear"
_MIN_CLEAN = 0.9  # share of an area that must be nearest to its own palette colour
_MIN_GROUND = 0.4  # share of the image that a background takes at least
_TEMPLATE = 64


@dataclass(frozen=True)
class Thing:
    """One object found. Centre in pixels; size is the longer side of its box as a share of the
    image's short side.
    """

    shape: str
    colour: str
    cx: float
    cy: float
    size: float
    overlap: float


@dataclass(frozen=True)
class Description:
    """What a picture shows; objects from left to right. `unclear` stands for a colour or shape that
    cannot be told.
    """

    background: str
    objects: tuple[Thing, ...]

    def __str__(self) -> str:
        things = Counter(f"{o.colour} {o.shape}" for o in self.objects)
        return " + ".join(f"{n} {t}" for t, n in things.items()) + f" on {self.background}"


def describe(image: Image.Image | Pixels) -> Description:
    """Describe an RGB picture (PIL, or [H, W, 3] uint8) of flux-mini's world."""
    pixels = np.asarray(
        image.convert("RGB") if isinstance(image, Image.Image) else image, dtype=np.uint8
    )
    flat = pixels.astype(np.float32)
    height, width = pixels.shape[:2]
    ground = _border_colour(flat)
    different = np.linalg.norm(flat - ground, axis=2) > _DIFFERENT
    n, labels, stats, _ = cv2.connectedComponentsWithStats(
        different.astype(np.uint8), connectivity=8
    )
    names = _nearest_names(flat)
    things, rest = [], np.ones((height, width), dtype=bool)
    for k in range(1, n):
        rest &= labels != k
        if stats[k, cv2.CC_STAT_AREA] >= _MIN_AREA * height * width:
            things.append(_thing(flat, names, labels == k, ground))
    background = _clean_name(names[rest]) if rest.mean() >= _MIN_GROUND else "unclear"
    return Description(background, tuple(sorted(things, key=lambda t: t.cx)))


def _border_colour(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    border = np.concatenate(
        [flat[:2].reshape(-1, 3), flat[-2:].reshape(-1, 3), flat[:, 0], flat[:, -1]]
    )
    return np.asarray(np.median(border, axis=0), dtype=np.float32)


def _nearest_names(flat: NDArray[np.float32]) -> NDArray[np.intp]:
    table = np.asarray([PALETTE[c] for c in COLOURS], dtype=np.float32)
    scores = 2.0 * flat @ table.T - (table**2).sum(1)  # argmax of this is the nearest entry
    return np.asarray(scores.argmax(axis=2))


def _clean_name(names: NDArray[np.intp]) -> str:
    """The palette colour of an area, or `unclear` when another colour takes more than a tenth of
    it.
    """
    if names.size == 0:
        return "unclear"
    counts = np.bincount(names, minlength=len(COLOURS))
    best = int(counts.argmax())
    return COLOURS[best] if counts[best] >= _MIN_CLEAN * names.size else "unclear"


def _thing(
    flat: NDArray[np.float32], names: NDArray[np.intp], rough: Mask, ground: NDArray[np.float32]
) -> Thing:
    distance = np.linalg.norm(flat - ground, axis=2) * rough
    core = rough & (distance > 0.7 * np.percentile(distance[rough], 90))
    colour = np.median(flat[core], axis=0)
    # Pixels of the rough component that lie nearer to the object's colour than to the background's.
    along = (flat - ground) @ (colour - ground) / max(1e-6, float(((colour - ground) ** 2).sum()))
    mask = rough & (along > 0.5)
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    shape, overlap = _shape(mask)
    rows, columns = np.nonzero(mask)
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    return Thing(
        shape if overlap >= _MIN_OVERLAP else "unclear",
        _clean_name(names[inner if inner.any() else mask]),
        float(columns.mean()),
        float(rows.mean()),
        float(extent / min(flat.shape[:2])),
        overlap,
    )


@lru_cache(maxsize=1)
def _templates() -> NDArray[np.bool_]:
    """Each shape filled into its own box, [8, T, T]."""
    axis = np.linspace(-1.2, 1.2, 961)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([_boxed(signed_distance(s, u, v) < 0) for s in SHAPES])


def _boxed(mask: Mask) -> Mask:
    rows, columns = np.nonzero(mask)
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.float32)
    return np.asarray(cv2.resize(box, (_TEMPLATE, _TEMPLATE), interpolation=cv2.INTER_AREA) > 0.5)


def _shape(mask: Mask) -> tuple[str, float]:
    """The best template and its intersection over union with the boxed mask."""
    boxed, templates = _boxed(mask), _templates()
    both = (templates & boxed).sum(axis=(1, 2))
    either = (templates | boxed).sum(axis=(1, 2))
    overlaps = both / either
    best = int(overlaps.argmax())
    return SHAPES[best], float(overlaps[best])


def verdict(spec: Spec, found: Description) -> dict[str, bool]:
    """What of `spec` the picture shows. Extra or missing objects fail count, colour and shape."""
    wanted = Counter(spec.objects)
    colours = Counter(o.colour for o in found.objects) == Counter(c for _, c in spec.objects)
    shapes = Counter(o.shape for o in found.objects) == Counter(s for s, _ in spec.objects)
    result = {
        "background": found.background == spec.background,
        "colour": colours,
        "shape": shapes,
        "count": len(found.objects) == len(spec.objects),
    }
    if spec.relation is not None:
        exact = Counter((o.shape, o.colour) for o in found.objects) == wanted
        result["relation"] = exact and _related(spec, found)
    return result


def _related(spec: Spec, found: Description) -> bool:
    first = next(o for o in found.objects if (o.shape, o.colour) == spec.objects[0])
    second = next(o for o in found.objects if (o.shape, o.colour) == spec.objects[1])
    dx, dy = second.cx - first.cx, second.cy - first.cy
    along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[spec.relation or ""]
    across = dy if spec.relation in ("left of", "right of") else dx
    return along > abs(across)
