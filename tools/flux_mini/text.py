"""Training of the text encoders, on captions alone, before any picture.

Trained through the transformer, they settle early on features that are hard to read, and its noisy
gradients spoil good ones. Asked directly what captions mean (see `network.Readers`), they learn
it in minutes; then they stay as they are, as in the large FLUX.
"""

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tools.flux_mini import captions
from tools.flux_mini.data import text_tensors
from tools.flux_mini.network import FluxMini, Readers
from tools.flux_mini.world import Spec


@dataclass
class TextPlan:
    """How to train."""

    folder: Path
    minutes: float = 4.0
    max_steps: int | None = None
    device: str = "cpu"
    learning_rate: float = 2e-3
    batch: int = 192
    seed: int = 4


def _pair(rng: random.Random) -> tuple[Spec, str]:
    """A training caption, but half of them relations: what takes longest to be understood."""
    if rng.random() < 0.5:
        return captions.training_pair(rng)
    spec = captions.random_spec(rng, "relation")
    return spec, captions.caption(rng, spec)


def train_text(plan: TextPlan) -> float:
    """Train both encoders on captions; writes text.pt and returns the last loss."""
    device = torch.device(plan.device)
    torch.manual_seed(plan.seed)
    net, readers = FluxMini().to(device), Readers().to(device)
    parameters = [*net.clip.parameters(), *net.t5.parameters(), *readers.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)
    rng = random.Random(plan.seed)
    start, step, mean = time.monotonic(), 0, 0.0
    while (used := (time.monotonic() - start) / (60 * plan.minutes)) < 1.0:
        if plan.max_steps is not None and step >= plan.max_steps:
            break
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 30)
            group["lr"] = plan.learning_rate * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * used)))
        pairs = [_pair(rng) for _ in range(plan.batch)]
        pooled, words = net.encode_text(*text_tensors([text for _, text in pairs], device))
        loss = readers.loss(pooled, words, [spec for spec, _ in pairs])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        value = float(loss.detach())
        mean = value if step == 1 else 0.95 * mean + 0.05 * value
        if step % 50 == 0:
            print(json.dumps({"captions": step * plan.batch, "loss": round(mean, 4)}), flush=True)
    plan.folder.mkdir(parents=True, exist_ok=True)
    parts = {"clip": net.clip, "t5": net.t5, "readers": readers}
    torch.save({name: part.state_dict() for name, part in parts.items()}, plan.folder / "text.pt")
    return mean
