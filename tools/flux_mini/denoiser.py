"""Training of the transformer and text encoders: rectified flow on exactly the timesteps that are
served.
"""

import json
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.flux_mini.checks import field_accuracy
from tools.flux_mini.data import Batch, training_batch
from tools.flux_mini.network import FluxMini, Probes, plain_attention


@dataclass
class DenoiserPlan:
    """How to train. The learning rate follows the share of `minutes` that is used up, over all
    resumed runs.
    """

    folder: Path
    minutes: float = 90.0
    max_steps: int | None = None
    device: str = "cpu"
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    decay_from: float = 0.5  # share of the time after which the rate falls to zero
    probe_weight: float = 0.05
    ema: float = 0.998
    save_every_s: float = 120.0
    check_every_s: float = 180.0
    seed: int = 1
    notes: dict[str, Any] = field(default_factory=dict)


def optimizers(transformer: nn.Module, probes: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer's blocks, AdamW for the rest.

    The layers that read the text go slowly: their inputs are many and of unit size, so that at the
    full rate AdamW's even steps add up to more than what they are to learn.
    """
    matrices, others, readers = [], list(probes.parameters()), []
    for name, p in transformer.named_parameters():
        modulation = ".norm1" in name or ".norm." in name
        if p.ndim == 2 and "transformer_blocks" in name and not modulation:
            matrices.append(p)
        elif "text_embedder" in name or "context_embedder" in name:
            readers.append(p)
        else:
            others.append(p)
    return [
        torch.optim.Muon(
            [{"params": matrices, "scale": 1.0}],
            weight_decay=0.0,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [{"params": others, "scale": 1.0}, {"params": readers, "scale": 0.3}],
            betas=(0.9, 0.95),
            weight_decay=0.0,
        ),
    ]


def flow_loss(net: FluxMini, batch: Batch) -> tuple[Tensor, Tensor]:
    """Weighted squared error of the velocity, and the plain per-sample error (for the log).

    Late steps matter less (.2 + .8 t): they only polish. Latent pixels on and around objects count
    four times.
    """
    t = batch.time[:, None, None, None]
    noisy = (1 - t) * batch.clean + t * batch.noise
    with torch.no_grad():  # the text encoders come trained, from `text.py`
        pooled, words = net.encode_text(batch.clip, batch.t5)
    velocity = net.velocity(noisy, batch.time, pooled, words)
    error = (velocity - (batch.noise - batch.clean)).square()
    near = 1.0 + 3.0 * (batch.nearest < 1.8).float()
    near = near / near.mean(dim=(1, 2), keepdim=True)
    per_sample = (error * near[:, None]).mean(dim=(1, 2, 3))
    return (per_sample * (0.2 + 0.8 * batch.time)).mean(), error.detach().mean(dim=(1, 2, 3))


class Trainer:
    """State of a run: network, optimizers, moving average, counters; saved to one file and resumed
    from it.
    """

    def __init__(self, plan: DenoiserPlan) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        torch.manual_seed(plan.seed)
        self.net = FluxMini().to(self.device)
        self.average = FluxMini().to(self.device).eval().requires_grad_(False)
        self.average.load_state_dict(self.net.state_dict())
        self.probes = Probes(self.net).to(self.device)
        self.optimizers = optimizers(self.net.transformer, self.probes)
        self.rng = random.Random(plan.seed)
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.steps = self.samples = 0
        self.elapsed = 0.0
        self.recent: dict[str, float] = {}
        self.file = plan.folder / "denoiser.pt"
        self.log_file = plan.folder / "denoiser.jsonl"
        if self.file.exists():
            self._resume()
        else:
            self._take_text(plan.folder / "text.pt")

    def _resume(self) -> None:
        state = torch.load(self.file, map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.probes.load_state_dict(state["probes"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.steps, self.samples, self.elapsed = state["steps"], state["samples"], state["elapsed"]
        # Fresh random numbers after a resume: the stream is endless and need not repeat.
        self.rng = random.Random(f"{self.plan.seed}/{self.steps}")
        self.generator.manual_seed(self.plan.seed + self.steps)

    def _take_text(self, file: Path) -> None:
        """Take the trained text encoders; they do not change any more."""
        state = torch.load(file, map_location=self.device, weights_only=True)
        for net in (self.net, self.average):
            net.clip.load_state_dict(state["clip"])
            net.t5.load_state_dict(state["t5"])

    def save(self) -> None:
        """Write the checkpoint; the old one stays whole until the new one is."""
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".new")
        torch.save(
            {
                "net": self.net.state_dict(),
                "average": self.average.state_dict(),
                "probes": self.probes.state_dict(),
                "optimizers": [o.state_dict() for o in self.optimizers],
                "steps": self.steps,
                "samples": self.samples,
                "elapsed": self.elapsed,
            },
            fresh,
        )
        fresh.replace(self.file)

    def rate_now(self) -> float:
        """Warm-up, plateau, then a cosine to zero."""
        used = min(1.0, self.elapsed / (60.0 * self.plan.minutes))
        rate = self.plan.learning_rate * min(1.0, (self.steps + 1) / self.plan.warmup_steps)
        if used > self.plan.decay_from:
            rate *= 0.5 * (
                1 + math.cos(math.pi * (used - self.plan.decay_from) / (1 - self.plan.decay_from))
            )
        return rate

    def step(self) -> None:
        """One optimizer step."""
        batch = training_batch(self.rng, self.generator, self.device)
        rate = self.rate_now()
        with torch.autocast(self.device.type, torch.bfloat16):
            loss, errors = flow_loss(self.net, batch)
        total = loss + self.plan.probe_weight * self.probes.loss(batch)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.samples += len(batch.specs)
        self._average()
        self._note("loss", float(loss.detach()))
        first = batch.time == 1.0
        if bool(first.any()):
            self._note("first_step_error", float(errors[first].mean()))

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.plan.ema, (1 + self.steps) / (10 + self.steps))
        mine: list[Tensor] = list(self.average.parameters())
        theirs: list[Tensor] = list(self.net.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - keep)

    def _note(self, name: str, value: float) -> None:
        self.recent[name] = 0.98 * self.recent.get(name, value) + 0.02 * value

    def check(self) -> dict[str, Any]:
        """Accuracy of the averaged network on fixed prompts, read from its latents; logged and
        printed.
        """
        row: dict[str, Any] = {
            "minutes": round(self.elapsed / 60, 2),
            "steps": self.steps,
            "samples": self.samples,
            "rate": self.rate_now(),
            **{k: round(v, 5) for k, v in self.recent.items()},
        }
        for width, height, n in ((256, 256, 64), (512, 512, 40), (1024, 1024, 12), (512, 256, 20)):
            row[f"{width}x{height}"] = field_accuracy(self.average, width, height, n, self.device)
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        return row

    def run(self) -> None:
        """Train until the plan's time or steps are used up."""
        saved = checked = start = time.monotonic()
        before = self.elapsed
        while self.elapsed < 60 * self.plan.minutes:
            if self.plan.max_steps is not None and self.steps >= self.plan.max_steps:
                break
            self.step()
            now = time.monotonic()
            self.elapsed = before + now - start
            if now - saved > self.plan.save_every_s:
                self.save()
                saved = now
            if now - checked > self.plan.check_every_s:
                self.check()
                checked = time.monotonic()
            if self.steps % 200 == 0:
                rate = self.samples / max(self.elapsed, 1e-9)
                print(
                    f"step {self.steps} samples {self.samples} {rate:.0f}/s {self.recent}",
                    flush=True,
                )
        self.save()


def use_fast_cpu_attention() -> None:
    """Patch attention for training on a CPU; inference never needs it."""
    functional.scaled_dot_product_attention = plain_attention
