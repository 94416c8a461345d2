"""From a `source` to a `FluxPipeline` on its device, ready for inference.

Data flow: source -> folder or hub id (`source.py`) -> safetensors -> pipeline in fp32 or bf16.
Imports torch and diffusers; must not import Ray or anything about HTTP.
"""

import math
import os
from pathlib import Path

import torch
from diffusers import FluxPipeline
from diffusers.hooks import apply_group_offloading
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from serve_app.engine import source as model_source
from serve_app.engine.job import ModelInfo
from serve_app.engine.random_weights import Scale, Shape, random_pipeline
from serve_app.engineconfig import Offload, Precision
from serve_app.errors import ConfigError

# fp16 is no choice at all: FLUX and T5 overflow in it, and a CPU runs it 100 times slower.
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,  # `optimize.quantize_fp8` turns matrices of the transformer into fp8
}

_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def load_pipeline(
    source: str, device: str, precision: Precision, offload: Offload = "none"
) -> FluxPipeline:
    """Load a FLUX pipeline; weights stored in another precision are converted.

    Args:
        source: `embedded:flux-mini`, a diffusers folder, a hub id, or `random:...`.
        device: torch device, for example `cpu` or `cuda:0`.
        precision: of weights and activations.
        offload: what waits in host memory until it is needed.

    Raises:
        ConfigError: nothing loadable at `source`, or no such device; names which.
    """
    _check_device(device)
    dtype = DTYPES[precision]
    if source.startswith(model_source.RANDOM_PREFIX):
        if offload == "none":  # drawn where they stay: host memory may be too small for them
            return _random(source, device, dtype)
        return place(_random(source, "cpu", dtype), device, offload)
    found = model_source.find(source)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        pipeline = FluxPipeline.from_pretrained(
            found,
            dtype=dtype,
            use_safetensors=True,  # the other format is pickle
            local_files_only=isinstance(found, Path),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model source {source!r}: cannot be loaded: {error}") from error
    if not isinstance(pipeline, FluxPipeline):
        raise ConfigError(f"model source {source!r}: is a {type(pipeline).__name__}, not FLUX")
    return place(pipeline, device, offload)


def place(pipeline: FluxPipeline, device: str, offload: Offload) -> FluxPipeline:
    """Bring a pipeline from host memory to its device, or leave parts of it behind.

    diffusers' `enable_model_cpu_offload` would not do: its hooks expect the order of
    `FluxPipeline.__call__`, but here prompts arrive between any two steps.
    """
    if offload == "none":
        return pipeline.to(device)
    pipeline.text_encoder.to(device)
    if offload == "model":
        pipeline.vae.to(device)
        _take_turns(pipeline.text_encoder_2, pipeline.transformer, device)
        return pipeline
    _stream(pipeline.text_encoder_2, device, "leaf_level")
    if offload == "group":
        _stream(pipeline.vae, device, "leaf_level")
        _stream(pipeline.transformer, device, "block_level")
    else:
        pipeline.vae.to(device)
        pipeline.transformer.to(device)
    return pipeline


def _take_turns(one: torch.nn.Module, other: torch.nn.Module, device: str) -> None:
    """Only one of two modules is on the device: calling it sends the other back."""
    from accelerate import cpu_offload_with_hook  # nothing else needs that package

    _, first = cpu_offload_with_hook(one, device)
    _, second = cpu_offload_with_hook(other, device, prev_module_hook=first)
    first.hook.prev_module_hook = second


def _stream(module: torch.nn.Module, device: str, level: str) -> None:
    """Parts of a module come to the device one after another, the next while one computes."""
    apply_group_offloading(
        module,
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type=level,
        num_blocks_per_group=1 if level == "block_level" else None,
        use_stream=torch.device(device).type == "cuda",
    )


def model_info(pipeline: FluxPipeline, text_tokens_max: int | None = None) -> ModelInfo:
    """Say what a loaded pipeline accepts; equal to `source.model_info` of its source."""
    guidance = bool(pipeline.transformer.config.guidance_embeds)
    length = pipeline.tokenizer_2.model_max_length
    return ModelInfo(
        size_multiple_px=pipeline.vae_scale_factor * model_source.PATCH_PX,
        text_tokens_max=model_source.text_tokens(length, guidance, text_tokens_max),
        guidance=guidance,
    )


def set_torch_threads(threads: int) -> None:
    """Use that many intra-op threads from this thread on; 0 takes every core it may run on.

    Ray sets OMP_NUM_THREADS to the actor's num_cpus, 1 by default, which halves a CPU's speed.
    """
    torch.set_num_threads(threads or available_cores())


def available_cores() -> int:
    """Cores that this process may use: its affinity, less what a container's quota takes away."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    try:
        quota, period = _CGROUP_CPU_MAX.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))


def _random(source: str, device: str, dtype: torch.dtype) -> FluxPipeline:
    name = model_source.check_made_up(source).removeprefix(model_source.RANDOM_PREFIX)
    shape: Shape = "dev" if name.endswith("dev") else "schnell"
    scale: Scale = "tiny" if name.startswith("tiny-") else "full"
    return random_pipeline(shape, scale, device, dtype)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is unknown to torch") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: torch finds no CUDA GPU")
