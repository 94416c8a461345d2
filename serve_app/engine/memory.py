"""How much memory a step batch or a VAE decode takes beside the weights, and what still fits.

Data flow: a loaded pipeline -> sizes of its widest layers -> bytes for (height, width, samples) ->
admission (`Engine`) and the largest step batch of a size (`budget.py`). The coefficients count the
tensors that live at the same time in diffusers' FLUX; `tests/gpu/test_memory.py` holds them against
the measured peak. Must not know about jobs.
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import FluxPipeline

from serve_app.engine.schedule import Shape
from serve_app.engineconfig import EngineConfig
from serve_app.errors import ConfigError

GIB = 2**30
SAFETY = 1.25  # fragmentation, workspaces of cuDNN and cuBLAS, what the counts below leave out
HEADROOM = 0.05  # of the free memory, never given to activations
# Of the memory for activations, set apart for a decode beside a step. FLUX.1 in bf16 on 80 GB: 10
# GiB of 40, enough for 1536x1536; what is larger is decoded between steps.
BESIDE_SHARE = 0.25
GRAPHS_SHARE = 0.5  # of the same, at most, for CUDA graphs: other sizes have to run, too
# Per token, in widths of the transformer, at the peak of a single block: the stream and its norm
# (2), query, key, value before and after RoPE (6), the MLP before and after GELU (8), attention
# and MLP joined (5), the output (1).
TOKEN_WIDTHS = 22
# Per pixel, in the widest map at full resolution: input, norm, activation, output, shortcut.
VAE_MAPS = 5

_MEMINFO = Path("/proc/meminfo")
_CGROUP_MAX = Path("/sys/fs/cgroup/memory.max")
_CGROUP_NOW = Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True)
class Footprint:
    """What activations of one model cost."""

    bytes_per_token: int
    bytes_per_pixel: int
    text_tokens: int
    token_px: int
    """Edge of the square that one image token stands for."""

    @classmethod
    def of(cls, pipeline: FluxPipeline, text_tokens: int) -> "Footprint":
        """Read it off a loaded model."""
        transformer, vae = pipeline.transformer, pipeline.vae
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        channels = vae.config.block_out_channels
        # The last upsampler of the decoder hands over its own channels at full resolution.
        widest = max(channels[:2])
        return cls(
            bytes_per_token=TOKEN_WIDTHS * width * _element_bytes(transformer),
            bytes_per_pixel=VAE_MAPS * widest * _element_bytes(vae),
            text_tokens=text_tokens,
            token_px=2 * pipeline.vae_scale_factor,
        )

    def step_bytes(self, height: int, width: int, samples: int) -> int:
        """Of one transformer call."""
        image_tokens = (height // self.token_px) * (width // self.token_px)
        return round(SAFETY * samples * (image_tokens + self.text_tokens) * self.bytes_per_token)

    def decode_bytes(self, height: int, width: int) -> int:
        """Of decoding one image; the engine decodes them one by one (VAE slicing)."""
        return round(SAFETY * height * width * self.bytes_per_pixel)


@dataclass(frozen=True)
class MemoryBudget:
    """What fits: `available_bytes` is for activations, the weights are in already."""

    footprint: Footprint
    available_bytes: int
    beside_bytes: int = 0
    """Of these, for what is decoded beside a step: never given to steps."""
    graph_samples: Mapping[Shape, int] = field(default_factory=dict)
    """Largest step batch of each (height, width) to record as a CUDA graph."""

    def samples_max(self, height: int, width: int) -> int:
        """Largest step batch of a size; 0 when not even one image fits."""
        if self.footprint.decode_bytes(height, width) > self.available_bytes:
            return 0
        for_steps = self.available_bytes - self.beside_bytes
        return for_steps // self.footprint.step_bytes(height, width, 1)

    def fits_beside(self, shape: Shape) -> bool:
        """Whether an image of this (height, width) may be decoded beside any step."""
        return self.footprint.decode_bytes(*shape) <= self.beside_bytes


def budget(pipeline: FluxPipeline, text_tokens: int, config: EngineConfig) -> MemoryBudget:
    """The budget of a pipeline that is on its device already, or where its offloading keeps it.

    Raises:
        ConfigError: a size of `optimize.cuda_graphs` does not fit.
    """
    if config.memory_limit_gib is not None:
        available = config.memory_limit_gib * GIB
    else:
        available = free_bytes(config.device)
        if config.offload == "model":  # neither is there yet; one of them always will be
            available -= max(
                weight_bytes(pipeline.transformer), weight_bytes(pipeline.text_encoder_2)
            )
    return divide(
        Footprint.of(pipeline, text_tokens), max(0, round(available * (1 - HEADROOM))), config
    )


def divide(footprint: Footprint, available_bytes: int, config: EngineConfig) -> MemoryBudget:
    """Share memory out among steps, decodes beside them, and graphs, which keep theirs for good.

    Raises:
        ConfigError: a size of `optimize.cuda_graphs` does not fit.
    """
    captured: dict[Shape, int] = {}
    kept_bytes = 0
    for size in config.optimize.cuda_graphs:
        width, height = (int(edge) for edge in size.split("x"))
        fit = int(GRAPHS_SHARE * available_bytes) // footprint.step_bytes(height, width, 1)
        if fit == 0:
            raise ConfigError(f"optimize.cuda_graphs: no memory for {size}")
        captured[height, width] = min(fit, config.step_batch_max_samples)
        needed = footprint.step_bytes(height, width, captured[height, width])
        kept_bytes = max(kept_bytes, needed)  # they share a pool: one graph runs at a time
    left = available_bytes - kept_bytes
    beside = round(BESIDE_SHARE * left) if config.optimize.overlap_decode else 0
    return MemoryBudget(footprint, left, beside, captured)


def weight_bytes(module: torch.nn.Module) -> int:
    """Of all parameters."""
    return sum(one.numel() * one.element_size() for one in module.parameters())


def free_bytes(device: str) -> int:
    """Memory of a device that nobody uses, what torch keeps for itself included."""
    where = torch.device(device)
    if where.type == "cuda":
        free, _ = torch.cuda.mem_get_info(where)
        kept = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
        return free + kept
    return min(_host_free_bytes(), _container_free_bytes())


def peak_bytes(device: str) -> int:
    """Most memory that torch has held on a GPU since the process began; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might have worked."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch's CPU allocator has no exception of its own
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def release() -> None:
    """Give back what a failed call left behind, before a smaller one is tried."""
    gc.collect()  # the traceback's frames held the tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _element_bytes(module: torch.nn.Module) -> int:
    """Bytes of an activation: fp8 weights compute in bf16, too."""
    return max(2, next(module.parameters()).element_size())


def _host_free_bytes() -> int:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return 2**62  # unknown: no bound
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return values.get("MemAvailable", 2**52) * 1024


def _container_free_bytes() -> int:
    try:
        limit = int(_CGROUP_MAX.read_text(encoding="ascii"))
        return max(0, limit - int(_CGROUP_NOW.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no cgroup, or "max"
        return 2**62
