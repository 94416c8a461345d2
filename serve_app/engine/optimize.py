"""What makes a loaded pipeline faster without changing what it draws: one function per switch.

Data flow: a pipeline on its device and `EngineConfig` -> the same pipeline, its modules changed in
place, and `Compiled`, which keeps compilations out of the serving path. `docs/performance.md` says
what each switch is worth. Two switches are not about the pipeline and live elsewhere: CUDA graphs
(`graphs.py`) and decoding beside the steps (`lane.py`).
"""

import contextlib
import importlib.util
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo
from diffusers import FluxPipeline
from diffusers.utils import logging as diffusers_logging

from serve_app.engineconfig import Attention, Compile, EngineConfig
from serve_app.errors import ConfigError

BACKENDS: dict[Attention, str] = {
    "native": "native",
    "cudnn": "_native_cudnn",
    "flash3": "_flash_3",
}
FLASH3_MODULE = "flash_attn_interface"
# All blocks of a kind share one code object, so every size and batch size counts against it.
RECOMPILE_LIMIT = 128
SEPARATE_PROJECTIONS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
FP8_MULTIPLE = 16  # of both edges of a matrix, or the tensor cores cannot take it
FP8_CAPABILITY = (8, 9)  # Ada and Hopper: the first with fp8 tensor cores

Bucket = tuple[int, int, int]
"""Height, width, samples: what compiled code may be specialised to."""


@dataclass(eq=False)
class Compiled:
    """What has been compiled, and that nothing more is while clients wait.

    Until `freeze`, calls compile what they need. After it, buckets seen before run as they did, and
    all others run what fits of the compiled code, or eagerly: slower, but with no pause of seconds.
    Safe for a step and a decode at once: torch keeps one stance for all threads, so whoever comes
    first takes it and whoever leaves last gives it back. Buckets seen before do not notice it.
    """

    mode: Compile = "off"
    vae: bool = False
    frozen: bool = False
    eager_calls: int = 0
    """Calls of buckets that had not been warmed up."""
    _warm: set[Bucket] = field(default_factory=set)
    _graphs_at_freeze: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _uncompiled: int = 0
    """Calls under way that must not compile."""
    _stance: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @contextlib.contextmanager
    def call(self, height: int, width: int, samples: int) -> Iterator[None]:
        """Surround a call of the transformer, or of the VAE as `samples` 0."""
        # Code for any batch size knows two kinds: one sample, and more.
        bucket = (height, width, min(samples, 2) if self.mode == "dynamic" else samples)
        compiled = self.vae if samples == 0 else self.mode != "off"
        if not compiled or bucket in self._warm:
            yield
        elif self.frozen:
            with self._without_compiling():
                yield
        else:
            yield
            self._warm.add(bucket)

    @contextlib.contextmanager
    def _without_compiling(self) -> Iterator[None]:
        with self._lock:
            self.eager_calls += 1
            self._uncompiled += 1
            if self._uncompiled == 1:
                self._stance.enter_context(torch.compiler.set_stance("eager_on_recompile"))
        try:
            yield
        finally:
            with self._lock:
                self._uncompiled -= 1
                if self._uncompiled == 0:
                    self._stance.close()

    @property
    def active(self) -> bool:
        """Whether anything is compiled at all."""
        return self.vae or self.mode != "off"

    def batches(self, samples_max: int) -> Sequence[int]:
        """Step batches of each size that the warm-up has to run."""
        if self.mode == "off":
            return ()
        return range(1, min(samples_max, 2 if self.mode == "dynamic" else samples_max) + 1)

    def freeze(self) -> None:
        """The warm-up is over."""
        self.frozen = True
        self._graphs_at_freeze = _graphs()

    @property
    def recompiles(self) -> int:
        """Compilations since the warm-up; should stay 0. Counts the whole process."""
        return _graphs() - self._graphs_at_freeze if self.active and self.frozen else 0


def optimize(pipeline: FluxPipeline, config: EngineConfig, backend: str = "inductor") -> Compiled:
    """Turn on what the configuration asks for.

    Args:
        pipeline: on its device.
        config: `optimize`, `precision` and `device` count.
        backend: of torch.compile; tests take a cheap one.

    Raises:
        ConfigError: this machine lacks what a switch needs.
    """
    switches, device = config.optimize, torch.device(config.device)
    if switches.fuse_qkv:  # first: what is fp8 already cannot be fused
        fuse_qkv(pipeline)
    if config.precision == "fp8":
        quantize_fp8(pipeline, device)
    if switches.attention != "native":
        set_attention(pipeline, switches.attention, device)
    if switches.channels_last_vae:
        lay_out_channels_last(pipeline)
    mode = switches.compile_transformer
    if mode != "off":
        compile_blocks(pipeline, mode, backend)
    if switches.compile_vae:
        compile_vae(pipeline, mode, backend)
    return Compiled(mode, switches.compile_vae)


def prepare_thread() -> None:
    """Call it on the thread that runs compiled code: these settings belong to the thread.

    Without them, sizes that happen to agree are taken for the same, and blocks run out of versions.
    """
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = 8 * RECOMPILE_LIMIT
    torch.fx.experimental._config.use_duck_shape = False


def set_attention(pipeline: FluxPipeline, attention: Attention, device: torch.device) -> None:
    """Choose the attention kernels; before compiling, which fixes them."""
    has_flash3 = importlib.util.find_spec(FLASH3_MODULE) is not None
    if attention == "best":
        on_gpu: Attention = "flash3" if has_flash3 else "cudnn"
        attention = on_gpu if device.type == "cuda" else "native"
    if attention != "native" and device.type != "cuda":
        raise ConfigError(f"optimize.attention {attention!r} needs a CUDA GPU")
    if attention == "flash3" and not has_flash3:
        raise ConfigError(f"optimize.attention 'flash3' needs the module {FLASH3_MODULE}")
    with _quiet_diffusers():  # it warns that the API is experimental
        pipeline.transformer.set_attention_backend(BACKENDS[attention])


def fuse_qkv(pipeline: FluxPipeline) -> None:
    """Query, key and value of a token from one matrix product instead of three.

    diffusers (`fuse_projections`) keeps the three matrices for a way back; nobody goes it here, and
    in FLUX.1 they are 4 GiB of bf16.
    """
    pipeline.transformer.fuse_qkv_projections()
    for module in pipeline.transformer.modules():
        if getattr(module, "fused_projections", False):
            for name in SEPARATE_PROJECTIONS:
                if hasattr(module, name):
                    delattr(module, name)


def lay_out_channels_last(pipeline: FluxPipeline) -> None:
    """Channels innermost, as cuDNN's and oneDNN's convolutions want them."""
    pipeline.vae.to(memory_format=torch.channels_last)


def compile_blocks(pipeline: FluxPipeline, mode: Compile, backend: str) -> None:
    """Compile one block of each kind, for all of them (regional compilation).

    `dynamic` makes two versions, for one sample and for more, that serve every size; `static` one
    for each size and batch size, with all sizes known to the compiler.
    """
    pipeline.transformer.compile_repeated_blocks(
        fullgraph=True, dynamic=mode == "dynamic", backend=backend
    )


def compile_vae(pipeline: FluxPipeline, mode: Compile, backend: str) -> None:
    """Compile the decoder: its group norms and activations are bound by memory, so fusing pays."""
    vae: Any = pipeline.vae
    vae.decode = torch.compile(
        vae.decode, fullgraph=True, dynamic=mode != "static", backend=backend
    )


def check_fp8(device: torch.device) -> None:
    """Raise a `ConfigError` unless the device multiplies in fp8."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        raise ConfigError("precision 'fp8' needs a CUDA GPU with fp8 units (8.9 or newer)")


def quantize_fp8(pipeline: FluxPipeline, device: torch.device) -> None:
    """Matrix products of the blocks in fp8, a scale for every token and every output channel.

    One scale per tensor, torchao's default, would let the neighbours in a batch change an image.
    """
    check_fp8(device)
    try:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            PerRow,
            quantize_,
        )
    except ImportError as error:
        raise ConfigError("precision 'fp8' needs torchao: pip install flux-serve[gpu]") from error
    quantize_(
        pipeline.transformer,
        Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
        filter_fn=takes_fp8,
    )


def takes_fp8(module: torch.nn.Module, name: str) -> bool:
    """Whether a module's products are many and safe enough for fp8.

    The modulation of norms sees one row per sample, so fp8 would save nothing there.
    """
    return (
        isinstance(module, torch.nn.Linear)
        and name.startswith(("transformer_blocks.", "single_transformer_blocks."))
        and ".norm" not in name
        and module.in_features % FP8_MULTIPLE == 0
        and module.out_features % FP8_MULTIPLE == 0
    )


def _graphs() -> int:
    """Graphs that dynamo has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@contextlib.contextmanager
def _quiet_diffusers() -> Iterator[None]:
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
