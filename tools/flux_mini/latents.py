"""What a latent pixel of flux-mini means: a local description of the scene, 14 channels, 32x32
image pixels each.

    0 u, 1 v     offset from the nearest object's centre in object radii, compressed far away
    2 rho        that distance (continuous where the nearest object changes; u and v are not)
    3 scale      log2 of the object's radius in pixels
    4-7 shape    one of eight 4-bit words of even parity, +-1
    8-10, 11-13  object colour, background colour

Everything but u, v, rho is constant around an object and u, v are ramps, so the transformer has to
predict almost nothing but constants and ramps, for every combination of shape and colours alike;
drawing crisp edges from them, at any resolution, is the VAE decoder's work.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tools.flux_mini.world import COLOURS, LAYOUT_NUMBERS, SHAPES, Scene, coverage, rgb

CHANNELS = 14
PIXELS = 32  # image pixels per latent pixel
MAX_OBJECTS = 4
_BEND = 3.0  # object radii where the compression of u, v, rho sets in
_UV_SCALE = 1.2
_RHO_SHIFT, _RHO_SCALE = 1.6, 0.7
_SIZE_SHIFT, _SIZE_SCALE = 6.2, 1.2
_RGB_SCALE = 1.4
_FAR = 1e3  # object radii; stands in for "no object" in padded lists

SHAPE_CODES: NDArray[np.float32] = np.asarray(
    [[a, b, c, a * b * c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=np.float32
)


@dataclass(frozen=True)
class SceneBatch:
    """Scenes of one size as tensors; lists of objects are padded to MAX_OBJECTS, `present` tells
    which are real.
    """

    width: int
    height: int
    centre: Tensor  # [B, K, 2] pixels
    radius: Tensor  # [B, K] pixels
    shape: Tensor  # [B, K] index into SHAPES
    colour: Tensor  # [B, K, 3] in [-1, 1]
    background: Tensor  # [B, 3]
    present: Tensor  # [B, K] bool

    @staticmethod
    def of(scenes: list[Scene], device: str | torch.device = "cpu") -> "SceneBatch":
        """Pack scenes, all of one size."""
        b, k = len(scenes), MAX_OBJECTS
        geometry = np.zeros((b, k, 3), np.float32)
        geometry[:, :, 2] = 1.0
        shape = np.zeros((b, k), np.int64)
        colour = np.zeros((b, k, 3), np.float32)
        present = np.zeros((b, k), bool)
        for i, scene in enumerate(scenes):
            for j, o in enumerate(scene.objects):
                geometry[i, j] = (o.cx, o.cy, o.radius)
                shape[i, j] = SHAPES.index(o.shape)
                colour[i, j] = rgb(o.colour)
                present[i, j] = True
        background = np.stack([rgb(s.background) for s in scenes])
        g = torch.from_numpy(geometry).to(device)
        return SceneBatch(
            scenes[0].width,
            scenes[0].height,
            g[:, :, :2],
            g[:, :, 2],
            torch.from_numpy(shape).to(device),
            torch.from_numpy(colour).to(device),
            torch.from_numpy(background).to(device),
            torch.from_numpy(present).to(device),
        )

    def offsets(self, step: int) -> Tensor:
        """Offsets from each object's centre in object radii, [B, K, 2, H/step, W/step], at cell
        centres.
        """
        device = self.centre.device
        x = (torch.arange(self.width // step, device=device) + 0.5) * step
        y = (torch.arange(self.height // step, device=device) + 0.5) * step
        u = (x[None, None, None, :] - self.centre[:, :, 0, None, None]) / self.radius[
            :, :, None, None
        ]
        v = (y[None, None, :, None] - self.centre[:, :, 1, None, None]) / self.radius[
            :, :, None, None
        ]
        shape = (*u.shape[:2], len(y), len(x))
        return torch.stack([u.expand(shape), v.expand(shape)], dim=2)

    def draw(self) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1]."""
        image = self.background[:, :, None, None].expand(-1, -1, self.height, self.width)
        offsets = self.offsets(1)
        for k in range(int(self.present.sum(1).max())):
            cover = coverage(
                self.shape[:, k], offsets[:, k, 0], offsets[:, k, 1], self.radius[:, k]
            )
            cover = (cover * self.present[:, k, None, None])[:, None]
            image = image + cover * (self.colour[:, k, :, None, None] - image)
        return image


def distances(batch: SceneBatch, step: int = PIXELS) -> tuple[Tensor, Tensor]:
    """Offsets [B, K, 2, h, w] and distances [B, K, h, w] in object radii; padded objects are very
    far away.
    """
    offsets = batch.offsets(step)
    r = torch.linalg.vector_norm(offsets, dim=2)
    return offsets, torch.where(batch.present[:, :, None, None], r, torch.full_like(r, _FAR))


def encode(batch: SceneBatch, softness: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The latents [B, 14, h, w] of scenes, and the distance to the nearest object [B, h, w] in
    object radii.

    `softness` [B] blends neighbouring objects' descriptions where they meet, as an uncertain
    transformer would; the decoder is trained with it. None means no blending.
    """
    offsets, r = distances(batch)
    nearest = r.amin(dim=1)
    if softness is None:
        weight = torch.zeros_like(r).scatter_(1, r.argmin(dim=1, keepdim=True), 1.0)
    else:
        weight = torch.softmax((nearest[:, None] - r) / softness[:, None, None, None], dim=1)
    bend = 1.0 / torch.sqrt(1.0 + (r / _BEND) ** 2)
    uv = torch.where(
        batch.present[:, :, None, None, None], offsets * bend[:, :, None], torch.zeros_like(offsets)
    )
    uv = (weight[:, :, None] * uv).sum(1) / _UV_SCALE
    rho = nearest / torch.sqrt(1.0 + (nearest / _BEND) ** 2)
    rho = ((rho - _RHO_SHIFT) / _RHO_SCALE)[:, None]
    codes = torch.from_numpy(SHAPE_CODES).to(r.device)[batch.shape]
    scale = ((torch.log2(batch.radius) - _SIZE_SHIFT) / _SIZE_SCALE)[:, :, None]
    per_object = torch.cat([scale, codes, batch.colour * _RGB_SCALE], dim=2)  # [B, K, 8]
    described = torch.einsum("bkhw,bkc->bchw", weight, per_object)
    ground = (batch.background * _RGB_SCALE)[:, :, None, None].expand(-1, -1, *nearest.shape[1:])
    return torch.cat([uv, rho, described, ground], dim=1), nearest


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h*w/4, 4C], as FluxPipeline packs."""
    b, c, h, w = latents.shape
    return (
        latents.view(b, c, h // 2, 2, w // 2, 2)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(b, h * w // 4, 4 * c)
    )


def unpack(tokens: Tensor, h: int, w: int) -> Tensor:
    """[B, h*w/4, 4C] -> [B, C, h, w]."""
    b, _, c = tokens.shape
    return (
        tokens.view(b, h // 2, w // 2, c // 4, 2, 2)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(b, c // 4, h, w)
    )


def layout_numbers(noise: Tensor) -> NDArray[np.float64]:
    """The layout's uniform numbers [B, LAYOUT_NUMBERS], read from the noise [B, C, h, w] at latent
    pixel (0, 0).
    """
    z = noise[:, :LAYOUT_NUMBERS, 0, 0].double().cpu()
    return (0.5 * (1.0 + torch.erf(z / math.sqrt(2.0)))).numpy()


def nearest_colour(latent_rgb: NDArray[np.float32]) -> str:
    """The palette colour nearest to three latent channels."""
    table = np.stack([rgb(c) for c in COLOURS]) * _RGB_SCALE
    return COLOURS[int(np.argmin(((table - latent_rgb) ** 2).sum(1)))]
