"""Training of the VAE encoder: it reads the latents' scene description back from a picture.

Text-to-image never calls it; it makes the VAE a real autoencoder. Far from an object (several
radii) it cannot know offsets exactly, and need not: the loss counts what lies on and around objects
most.
"""

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tools.flux_mini.decoder import random_scene
from tools.flux_mini.latents import CHANNELS, SceneBatch, encode
from tools.flux_mini.model import build_vae

_LOG_VARIANCE = -20.0  # the encoder is certain: sampling from it adds nothing visible
_SIZES = ((256, 256), (256, 256), (512, 512), (384, 256), (256, 512), (512, 256), (384, 384))


@dataclass
class EncoderPlan:
    """How to train; the learning rate follows the share of `minutes` used up, over all resumed
    runs.
    """

    folder: Path
    minutes: float = 12.0
    max_steps: int | None = None
    device: str = "cpu"
    learning_rate: float = 2e-3
    pixels: int = 4 * 256 * 256
    save_every_s: float = 60.0
    seed: int = 3


class EncoderTrainer:
    """State of an encoder run, saved to one file and resumed from it."""

    def __init__(self, plan: EncoderPlan) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        torch.manual_seed(plan.seed)
        self.vae = build_vae().to(self.device, memory_format=torch.channels_last)
        self._init()
        self.optimizer = torch.optim.AdamW(
            self.vae.encoder.parameters(), lr=plan.learning_rate, weight_decay=0.0
        )
        self.steps, self.elapsed = 0, 0.0
        self.file = plan.folder / "encoder.pt"
        if self.file.exists():
            state = torch.load(self.file, map_location=self.device, weights_only=True)
            self.vae.encoder.load_state_dict(state["encoder"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.steps, self.elapsed = state["steps"], state["elapsed"]
        self.rng = random.Random(f"{plan.seed}/{self.steps}")

    @torch.no_grad()
    def _init(self) -> None:
        for name, module in self.vae.encoder.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=math.sqrt(1.0 / module.weight[0].numel()))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
                if name.endswith("conv2"):
                    module.weight.mul_(0.4)
        self._pin_variance()

    @torch.no_grad()
    def _pin_variance(self) -> None:
        self.vae.encoder.conv_out.weight[CHANNELS:] = 0.0
        self.vae.encoder.conv_out.bias[CHANNELS:] = _LOG_VARIANCE

    def save(self) -> None:
        """Write the checkpoint whole."""
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".new")
        state = {
            "encoder": self.vae.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "elapsed": self.elapsed,
        }
        torch.save(state, fresh)
        fresh.replace(self.file)

    def loss(self) -> Tensor:
        """Squared error of the described scene, mostly where it decides what is drawn."""
        width, height = self.rng.choice(_SIZES)
        n = max(1, self.plan.pixels // (width * height))
        batch = SceneBatch.of(
            [random_scene(self.rng, width, height) for _ in range(n)], self.device
        )
        image = batch.draw().contiguous(memory_format=torch.channels_last)
        truth, nearest = encode(batch)
        weight = torch.where(nearest < 1.6, 1.0, 0.1)
        weight = (weight / weight.mean())[:, None]
        read: Tensor = self.vae.encoder(image)[:, :CHANNELS]
        return ((read - truth).square() * weight).mean()

    def step(self) -> float:
        """One optimizer step; returns the loss."""
        used = min(1.0, self.elapsed / (60 * self.plan.minutes))
        rate = (
            self.plan.learning_rate
            * min(1.0, (self.steps + 1) / 50)
            * 0.5
            * (1 + math.cos(math.pi * used))
        )
        for group in self.optimizer.param_groups:
            group["lr"] = max(rate, 1e-5)
        loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.vae.encoder.parameters(), 1.0)
        self.optimizer.step()
        self._pin_variance()
        self.steps += 1
        return float(loss.detach())

    def run(self) -> None:
        """Train until the plan's time or steps are used up."""
        start = saved = time.monotonic()
        before, mean = self.elapsed, 0.0
        while self.elapsed < 60 * self.plan.minutes:
            if self.plan.max_steps is not None and self.steps >= self.plan.max_steps:
                break
            loss = self.step()
            mean = loss if mean == 0.0 else 0.98 * mean + 0.02 * loss
            now = time.monotonic()
            self.elapsed = before + now - start
            if now - saved > self.plan.save_every_s:
                self.save()
                saved = now
            if self.steps % 50 == 0:
                row = {
                    "minutes": round(self.elapsed / 60, 2),
                    "steps": self.steps,
                    "loss": round(mean, 5),
                }
                with (self.plan.folder / "encoder.jsonl").open("a") as log:
                    log.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
        self.save()
