"""Cheap accuracy during training: is the scene right, read from the predicted latents instead of
from pixels?
"""

import random

import torch
from torch import Tensor

from tools.flux_mini import captions
from tools.flux_mini.data import Batch, make_batch
from tools.flux_mini.latents import SHAPE_CODES, SceneBatch, distances, nearest_colour
from tools.flux_mini.network import FluxMini
from tools.flux_mini.world import SHAPES

_UV_TOLERANCE = 0.12  # mean error of u, v inside an object, in latent units (1.2 radii)
_KINDS = ("single", "single", "single", "count", "relation")


def fixed_batch(width: int, height: int, n: int, device: torch.device, seed: int = 123) -> Batch:
    """The same prompts and noise every time; about a tenth of them held-out combinations."""
    rng = random.Random(f"{seed}/{width}x{height}")
    pairs = []
    for k in range(n):
        spec = captions.random_spec(rng, _KINDS[k % len(_KINDS)])
        pairs.append((spec, captions.caption(rng, spec)))
    return make_batch(pairs, width, height, torch.Generator().manual_seed(seed), device)


def field_accuracy(
    net: FluxMini, width: int, height: int, n: int, device: torch.device, steps: int = 4
) -> dict[str, float]:
    """Shares of prompts whose background, object colours, shapes and geometry are right, and per
    kind all four.
    """
    batch = fixed_batch(width, height, n, device)
    with torch.autocast(device.type, torch.bfloat16):
        latents = net.sample(batch.clip, batch.t5, batch.noise, steps)
    right = [_right(latents[i].float().cpu(), batch, i) for i in range(n)]
    result = {name: sum(r[name] for r in right) / n for name in ("ground", "colour", "shape")}
    result["uv"] = sum(r["uv"] for r in right) / n
    for kind in ("single", "count", "relation"):
        mine = [r["all"] for r, s in zip(right, batch.specs, strict=True) if s.kind == kind]
        result[kind] = sum(mine) / max(1, len(mine))
    return {k: round(v, 3) for k, v in result.items()}


def _right(latent: Tensor, batch: Batch, i: int) -> dict[str, float]:
    scene = batch.scenes[i]
    _, r = distances(SceneBatch.of([scene]))
    code = torch.from_numpy(SHAPE_CODES)
    ground = nearest_colour(latent[11:14].mean(dim=(1, 2)).numpy()) == scene.background
    colour = shape = True
    uv = 0.0
    for k, o in enumerate(scene.objects):
        inside = r[0, k] < max(1.0, float(r[0, k].min()) + 0.1)
        own = latent[:, inside]
        colour &= nearest_colour(own[8:11].mean(dim=1).numpy()) == o.colour
        shape &= SHAPES[int((code @ own[4:8].mean(dim=1)).argmax())] == o.shape
        uv += float((own[:2] - batch.clean[i][:2, inside].cpu()).abs().mean()) / len(scene.objects)
    return {
        "ground": float(ground),
        "colour": float(colour),
        "shape": float(shape),
        "uv": uv,
        "all": float(ground and colour and shape and uv < _UV_TOLERANCE),
    }
