"""How much memory a step batch or a VAE decode takes beside the weights, and what still fits.

Data flow: a loaded pipeline -> sizes of its widest layers -> bytes for (height, width, samples) ->
admission (`Engine`) and the largest step batch of a size (`budget.py`). The coefficients count the
tensors that live at the same time in diffusers' FLUX; `tests/gpu/test_memory.py` holds them against
the measured peak. Must not know about jobs.
"""

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxPipeline

from serve_app.engineconfig import EngineConfig

GIB = 2**30
SAFETY = 1.25  # fragmentation, workspaces of cuDNN and cuBLAS, what the counts below leave out
HEADROOM = 0.05  # of the free memory, never given to activations
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

    def samples_max(self, height: int, width: int) -> int:
        """Largest step batch of a size; 0 when not even one image fits."""
        if self.footprint.decode_bytes(height, width) > self.available_bytes:
            return 0
        return self.available_bytes // self.footprint.step_bytes(height, width, 1)


def budget(pipeline: FluxPipeline, text_tokens: int, config: EngineConfig) -> MemoryBudget:
    """The budget of a pipeline that is on its device already, or where its offloading keeps it."""
    if config.memory_limit_gib is not None:
        available = config.memory_limit_gib * GIB
    else:
        available = free_bytes(config.device)
        if config.offload == "model":  # neither is there yet; one of them always will be
            available -= max(
                weight_bytes(pipeline.transformer), weight_bytes(pipeline.text_encoder_2)
            )
    available_bytes = max(0, round(available * (1 - HEADROOM)))
    return MemoryBudget(Footprint.of(pipeline, text_tokens), available_bytes)


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
