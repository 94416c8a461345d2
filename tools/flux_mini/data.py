"""Training batches: random captions, their text ids, noise, and the latents that the noise leads
to.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tools.flux_mini import captions
from tools.flux_mini.latents import CHANNELS, PIXELS, SceneBatch, encode, layout_numbers
from tools.flux_mini.words import clip_ids, t5_ids
from tools.flux_mini.world import Scene, Spec, lay_out

STEP = 2 * PIXELS  # image sides are multiples of this
# Exactly the timesteps of 4 steps, then those that 8 steps adds (2 steps: 1 and 0.5, both among
# them).
_TIMES = (1.0, 0.75, 0.5, 0.25, 0.875, 0.625, 0.375, 0.125)
_TIME_ODDS = (0.40, 0.14, 0.14, 0.14, 0.045, 0.045, 0.045, 0.045)
_COMMON_SIZES = (
    (256, 256),
    (512, 512),
    (1024, 1024),
    (768, 768),
    (512, 1024),
    (1024, 512),
    (384, 384),
    (640, 640),
)
_TOKENS_PER_BATCH = (
    1400  # image and text tokens; holds the time of a step about level over image sizes
)
_TEXT_TOKENS = 24


@dataclass(frozen=True)
class Batch:
    """One training batch, all of one image size."""

    width: int
    height: int
    clip: Tensor  # [B, T] ids
    t5: Tensor  # [B, T] ids
    noise: Tensor  # [B, C, h, w]
    clean: Tensor  # [B, C, h, w]
    nearest: Tensor  # [B, h, w] object radii to the nearest object
    uniform: Tensor  # [B, LAYOUT_NUMBERS]
    time: Tensor  # [B] in (0, 1]
    specs: list[Spec]
    scenes: list[Scene]


def random_size(rng: random.Random) -> tuple[int, int]:
    """(width, height): half of the batches 256 square or near it, all of 128..1024 and 1:2..2:1 in
    the rest.
    """
    pick = rng.random()
    if pick < 0.30:
        return 256, 256
    if pick < 0.45:
        return 512, 512
    if pick < 0.55:
        return rng.choice(_COMMON_SIZES)
    if pick < 0.59:
        return rng.choice(((128, 128), (192, 192), (128, 256), (256, 128), (128, 192)))
    low, high = (256, 576) if pick < 0.86 else (448, 1024)
    while True:
        width, height = (rng.randrange(low // STEP, high // STEP + 1) * STEP for _ in range(2))
        if max(width, height) <= 2 * min(width, height):
            return width, height


def batch_size(width: int, height: int) -> int:
    """Samples per batch at an image size."""
    tokens = width * height // STEP**2
    return max(4, min(32, _TOKENS_PER_BATCH // (tokens + _TEXT_TOKENS)))


def text_tensors(texts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """CLIP ids and T5 ids, both [B, TEXT_LENGTH]."""
    clip = torch.tensor([clip_ids(t) for t in texts], device=device)
    return clip, torch.tensor([t5_ids(t) for t in texts], device=device)


def make_batch(
    pairs: list[tuple[Spec, str]],
    width: int,
    height: int,
    generator: torch.Generator,
    device: torch.device,
) -> Batch:
    """Draw noise, lay the specs out as the noise says, and encode the scenes."""
    n = len(pairs)
    noise = torch.randn(n, CHANNELS, height // PIXELS, width // PIXELS, generator=generator)
    uniform = layout_numbers(noise)
    scenes = [lay_out(spec, width, height, uniform[i]) for i, (spec, _) in enumerate(pairs)]
    clean, nearest = encode(SceneBatch.of(scenes, device))
    clip, t5 = text_tensors([text for _, text in pairs], device)
    picks = torch.multinomial(torch.tensor(_TIME_ODDS), n, replacement=True, generator=generator)
    return Batch(
        width,
        height,
        clip,
        t5,
        noise.to(device),
        clean,
        nearest,
        torch.from_numpy(np.asarray(uniform, dtype=np.float32)).to(device),
        torch.tensor(_TIMES)[picks].to(device),
        [spec for spec, _ in pairs],
        scenes,
    )


def training_batch(rng: random.Random, generator: torch.Generator, device: torch.device) -> Batch:
    """A random batch of a random size."""
    width, height = random_size(rng)
    pairs = [captions.training_pair(rng) for _ in range(batch_size(width, height))]
    return make_batch(pairs, width, height, generator, device)
