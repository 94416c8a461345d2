"""Training of the VAE decoder: it renders latents, that is scene descriptions, as crisp pictures.

It never sees an encoder: the latents come from the drawn scenes. `decoder_init` gives it a start
from which only the local rule "offset, shape, scale -> distance to the edge" and the blending are
left to learn. The first part of the time trains the levels up to a quarter of the resolution alone,
on that distance; then the whole decoder draws.
"""

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.flux_mini import captions
from tools.flux_mini.decoder_init import EDGE_CHANNEL, ConvMuon, init_decoder, pin_colours
from tools.flux_mini.latents import CHANNELS, PIXELS, SceneBatch, distances, encode
from tools.flux_mini.model import build_vae
from tools.flux_mini.world import (
    COLOURS,
    SHAPES,
    TABLE_EXTENT,
    Placed,
    Scene,
    distance_tables,
    lay_out,
)

_CROP = 256  # pixels; training images are at most this large, but for a few whole ones


@dataclass
class DecoderPlan:
    """How to train; the learning rate follows the share of `minutes` used up, over all resumed
    runs.
    """

    folder: Path
    minutes: float = 20.0
    max_steps: int | None = None
    device: str = "cpu"
    learning_rate: float = 2e-3
    drawing_rate: float = 2e-5  # once the whole decoder draws
    coarse_share: float = 0.8  # of the time, for the low resolutions alone
    save_every_s: float = 60.0
    seed: int = 2


def random_scene(rng: random.Random, width: int, height: int) -> Scene:
    """A scene for rendering practice: laid out like a caption's, but with free jitter, or scattered
    objects.
    """
    if rng.random() < 0.7:
        spec = captions.random_spec(rng, rng.choice(("single", "single", "count", "relation")))
        return lay_out(spec, width, height, [rng.uniform(-0.3, 1.3) for _ in range(3)])  # type: ignore[arg-type]
    ground = rng.choice(COLOURS)
    short = min(width, height)
    objects: list[Placed] = []
    for _ in range(rng.choice((1, 1, 2))):
        radius = short * math.exp(rng.uniform(math.log(0.1), math.log(0.34)))
        colour = rng.choice([c for c in COLOURS if c != ground])
        where = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        if all(math.dist(where, (o.cx, o.cy)) > 1.3 * (radius + o.radius) for o in objects):
            objects.append(Placed(rng.choice(SHAPES), colour, *where, radius))
    return Scene(width, height, ground, tuple(objects))


def crop(scene: Scene, rng: random.Random, size: int) -> Scene:
    """A window of at most size x size pixels, on the latent grid, that mostly shows an object's
    edge.
    """
    o = rng.choice(scene.objects)
    corner = []
    for centre, length in ((o.cx, scene.width), (o.cy, scene.height)):
        middle = centre + rng.uniform(-1.1, 1.1) * o.radius
        last = max(0, length - size) // PIXELS
        corner.append(PIXELS * min(last, max(0, round((middle - size / 2) / PIXELS))))
    moved = tuple(
        Placed(p.shape, p.colour, p.cx - corner[0], p.cy - corner[1], p.radius)
        for p in scene.objects
    )
    return Scene(min(size, scene.width), min(size, scene.height), scene.background, moved)


def practice_batch(
    rng: random.Random, device: torch.device, pixels: int = 2 * 256 * 256
) -> SceneBatch:
    """Scenes of one size: whole small images, or windows of large ones; sometimes a whole larger
    image.
    """
    pick = rng.random()
    if pick < 0.06:
        side = 512 if pick < 0.045 else 768
        return SceneBatch.of(
            [random_scene(rng, side, side) for _ in range(max(1, pixels // side**2))], device
        )
    if pick < 0.4:
        width, height = rng.choice(
            ((256, 256), (256, 256), (256, 192), (192, 256), (320, 256), (128, 128), (192, 192))
        )
        n = min(12, pixels // (width * height))
        return SceneBatch.of([random_scene(rng, width, height) for _ in range(n)], device)
    size = rng.choice((128, 192, _CROP))
    scenes = []
    for _ in range(min(16, pixels // size**2)):
        width, height = (64 * rng.randint(5, 16) for _ in range(2))
        height = max(width // 2, min(height, 2 * width))
        scenes.append(crop(random_scene(rng, width, height), rng, size))
    return SceneBatch.of(scenes, device)


def disturbed_latents(batch: SceneBatch, rng: random.Random, generator: torch.Generator) -> Tensor:
    """True latents, as wrong as a transformer's: soft borders, a wrong scale, a constant and a
    pixel-wise error.
    """
    device = batch.centre.device
    n = len(batch.radius)
    softness = torch.rand(n, generator=generator).square() * 0.25 + 1e-3
    latents, _ = encode(batch, softness.to(device) if rng.random() < 0.5 else None)
    latents[:, 3] += 0.12 * torch.randn(n, 1, 1, generator=generator).to(device)
    amount = 0.15 * torch.rand(n, 1, 1, 1, generator=generator).square()
    amount = torch.where(
        torch.rand(n, 1, 1, 1, generator=generator) < 0.3, torch.zeros_like(amount), amount
    )
    constant = 0.08 * torch.randn(n, CHANNELS - 3, 1, 1, generator=generator)
    latents = latents + (amount * torch.randn(latents.shape, generator=generator)).to(device)
    latents[:, 3:] += constant.to(device)
    return latents


def edge_distance(batch: SceneBatch, step: int) -> Tensor:
    """Signed distance to the nearest edge, 2 tanh(pixels / 12), in [B, 1, H/step, W/step]."""
    offsets, r = distances(batch, step)
    tables = distance_tables().to(r.device)
    best = torch.full_like(r[:, 0], 1e4)
    for k in range(r.shape[1]):
        grid = offsets[:, k].permute(0, 2, 3, 1) / TABLE_EXTENT
        d = functional.grid_sample(
            tables[batch.shape[:, k]], grid, align_corners=True, padding_mode="border"
        )[:, 0]
        d = d * batch.radius[:, k, None, None]
        best = torch.where(batch.present[:, k, None, None], torch.minimum(best, d), best)
    return (2.0 * torch.tanh(best / 12.0))[:, None]


class DecoderTrainer:
    """State of a decoder run, saved to one file and resumed from it."""

    def __init__(self, plan: DecoderPlan) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        torch.manual_seed(plan.seed)
        self.vae = build_vae().to(self.device, memory_format=torch.channels_last)
        init_decoder(self.vae)
        parameters = list(self.vae.decoder.parameters())
        self.optimizers: list[torch.optim.Optimizer] = [
            ConvMuon([p for p in parameters if p.ndim == 4], rate=plan.learning_rate),
            torch.optim.AdamW([p for p in parameters if p.ndim < 4], weight_decay=0.0),
            # Drawing is nearly right from the start and easily undone: the last level, slowly.
            torch.optim.AdamW(self._drawing_parameters(), betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.steps, self.elapsed = 0, 0.0
        self.file = plan.folder / "decoder.pt"
        if self.file.exists():
            state = torch.load(self.file, map_location=self.device, weights_only=True)
            self.vae.decoder.load_state_dict(state["decoder"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.steps, self.elapsed = state["steps"], state["elapsed"]
        self.rng = random.Random(f"{plan.seed}/{self.steps}")
        self.generator = torch.Generator().manual_seed(plan.seed + self.steps)

    def _drawing_parameters(self) -> list[nn.Parameter]:
        decoder = self.vae.decoder
        last = (decoder.up_blocks[5].resnets[1], decoder.conv_norm_out, decoder.conv_out)
        return [p for module in last for p in module.parameters()]

    def save(self) -> None:
        """Write the checkpoint whole."""
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".new")
        state: dict[str, Any] = {
            "decoder": self.vae.decoder.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "steps": self.steps,
            "elapsed": self.elapsed,
        }
        torch.save(state, fresh)
        fresh.replace(self.file)

    @property
    def used(self) -> float:
        """Share of the plan's time that is used up."""
        return min(1.0, self.elapsed / (60 * self.plan.minutes))

    def coarse_loss(self, batch: SceneBatch) -> Tensor:
        """The side task alone, at a quarter of the resolution."""
        decoder = self.vae.decoder
        stream = decoder.mid_block(
            decoder.conv_in(disturbed_latents(batch, self.rng, self.generator))
        )
        for block in decoder.up_blocks[:3]:
            stream = block(stream)
        for resnet in decoder.up_blocks[3].resnets:
            stream = resnet(stream, None)
        return functional.mse_loss(
            stream[:, EDGE_CHANNEL : EDGE_CHANNEL + 1], edge_distance(batch, 4)
        )

    def drawing_loss(self, batch: SceneBatch) -> tuple[Tensor, Tensor]:
        """Absolute and squared error of the picture; and the squared error alone."""
        for p in self.vae.decoder.parameters():
            p.requires_grad_(False)
        for p in self._drawing_parameters():
            p.requires_grad_(True)
        image = self.vae.decoder(disturbed_latents(batch, self.rng, self.generator))
        error = image - batch.draw()
        squared = error.square().mean()
        return error.abs().mean() + squared, squared.detach()

    def step(self) -> float:
        """One optimizer step; returns the squared error of the picture (of the side task, in the
        first part).
        """
        coarse = self.used < self.plan.coarse_share
        if coarse:
            share = self.used / self.plan.coarse_share
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = self.coarse_loss(practice_batch(self.rng, self.device, 6 * 256 * 256))
            squared = loss.detach()
        else:
            share = (self.used - self.plan.coarse_share) / (1 - self.plan.coarse_share)
            loss, squared = self.drawing_loss(practice_batch(self.rng, self.device))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.vae.decoder.parameters(), 1.0)
        peak = self.plan.learning_rate if coarse else self.plan.drawing_rate
        rate = peak * min(1.0, (self.steps + 1) / 50) * 0.5 * (1 + math.cos(math.pi * share))
        for optimizer in self.optimizers[:2] if coarse else self.optimizers[2:]:
            for group in optimizer.param_groups:
                group["lr"] = max(rate, 0.01 * peak)
            optimizer.step()
        self.vae.decoder.zero_grad(set_to_none=True)
        if coarse:
            pin_colours(self.vae.decoder)
        self.steps += 1
        return float(squared)

    def run(self) -> None:
        """Train until the plan's time or steps are used up."""
        start = saved = time.monotonic()
        before, mean = self.elapsed, 0.0
        log_file = self.plan.folder / "decoder.jsonl"
        while self.elapsed < 60 * self.plan.minutes:
            if self.plan.max_steps is not None and self.steps >= self.plan.max_steps:
                break
            squared = self.step()
            mean = squared if mean == 0.0 else 0.97 * mean + 0.03 * squared
            now = time.monotonic()
            self.elapsed = before + now - start
            if now - saved > self.plan.save_every_s:
                self.save()
                saved = now
            if self.steps % 50 == 0:
                row = {"minutes": round(self.elapsed / 60, 2), "steps": self.steps}
                row |= (
                    {"coarse": mean}
                    if self.used < self.plan.coarse_share
                    else {"psnr": 10 * math.log10(4 / mean)}
                )
                with log_file.open("a") as log:
                    log.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
        self.save()
