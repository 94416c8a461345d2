"""EngineConfig: what an operator may set about one replica's engine.

A part of `config.py`, which is where everybody else imports it from. Units stand in the names.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Size = Annotated[str, Field(pattern=r"^[0-9]{2,5}x[0-9]{2,5}$")]
"""`WIDTHxHEIGHT` in pixels."""
Precision = Literal["fp32", "bf16", "fp8"]
Attention = Literal["native", "cudnn", "flash3", "best"]
Compile = Literal["off", "dynamic", "static"]
Offload = Literal["none", "text_encoder", "model", "group"]
Schedule = Literal["fair", "srpt", "fcfs"]


class Section(BaseModel):
    """Frozen, and a misspelt key is an error: Ray Serve itself would ignore it silently."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class OptimizeConfig(Section):
    """Speed switches, each on its own; `docs/performance.md` says what they are worth."""

    attention: Attention = Field(
        "native",
        description="Attention kernels: `native` (torch chooses), `cudnn`, `flash3` (where "
        "FlashAttention 3 is installed), `best` (the last of these that this machine has).",
    )
    fuse_qkv: bool = Field(False, description="One matrix product for query, key and value.")
    channels_last_vae: bool = Field(
        True, description="Lay the VAE out channels-last: convolutions read memory in order."
    )
    compile_transformer: Compile = Field(
        "off",
        description="Compile the repeated blocks: `dynamic` shares code between sizes and batch "
        "sizes, `static` makes code for each (slower start). Only warmed-up sizes run compiled.",
    )
    compile_vae: bool = Field(
        False, description="Compile the VAE decoder, in the same way; `off` counts as `dynamic`."
    )
    overlap_decode: bool = Field(
        False,
        description="Decode images and previews beside the next steps: on a GPU on a stream of its "
        "own, on a CPU on a second thread with `torch_threads` of its own.",
    )
    cuda_graphs: tuple[Size, ...] = Field(
        (),
        description="Sizes whose steps are recorded at start as CUDA graphs, one for each batch "
        "size, and replayed; other sizes run as ever. Pays where launching limits: small sizes.",
    )

    @property
    def compiles(self) -> bool:
        """Whether anything is compiled."""
        return self.compile_vae or self.compile_transformer != "off"


class SimulationConfig(Section):
    """What a `simulated:` source pretends; other sources ignore it."""

    time_scale: PositiveFloat = Field(
        1.0, le=100, description="Seconds that a simulated second takes; 0.1 runs ten times faster."
    )
    load_s: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="Simulated seconds from the start of a replica until it serves: loading, "
        "compiling and warming up a real FLUX.1 takes half a minute or more.",
    )


class EngineConfig(Section):
    """One model replica's engine: identity and sizes that need a restart to change."""

    device: str = Field("cpu", description="Torch device: `cpu`, `cuda`, `cuda:0`.")
    precision: Precision = Field(
        "fp32",
        description="Weights and activations: `fp32` on a CPU, `bf16` on a GPU; `fp8` is bf16 "
        "with the transformer's matrices in fp8 (needs torchao, and `compile_transformer`).",
    )
    offload: Offload = Field(
        "none",
        description="What waits in host memory on a small GPU: `text_encoder` streams the text "
        "encoders through, `model` swaps them with the transformer, `group` streams everything.",
    )
    optimize: OptimizeConfig = Field(OptimizeConfig(), description="Speed switches.")
    memory_limit_gib: PositiveFloat | None = Field(
        None,
        description="Memory for activations beside the weights; null takes what is free at start.",
    )
    stall_first_s: PositiveFloat = Field(
        300, description="Longest stage of a size never drawn before: a compile takes minutes."
    )
    stall_factor: PositiveFloat = Field(
        30,
        gt=1,
        description="How many times longer than usual a stage may take before the replica counts "
        "as wedged and is replaced; never less than 30 s.",
    )
    torch_threads: int = Field(
        0, ge=0, description="Intra-op threads of torch on a CPU; 0 takes every core. Ray sets 1."
    )
    encode_threads: PositiveInt = Field(
        2, le=64, description="Threads that turn pixels into PNG, JPEG or WebP beside the device."
    )
    step_batch_max_samples: PositiveInt = Field(
        8,
        le=64,
        description="Samples of one size that may share a transformer call, where measurement "
        "finds that so many pay. 1 makes the bytes of an image independent of load.",
    )
    step_batch_max_tokens: PositiveInt | None = Field(
        None, description="Tokens (text and image) of a step batch; null sets no cap of this kind."
    )
    step_batch_samples: dict[Size, PositiveInt] = Field(
        default={},
        description="Samples per step batch for single sizes, instead of what is measured.",
    )
    budget_measure_s: float = Field(
        3.0,
        ge=0,
        le=600,
        description="Time that start takes to measure which step batches of `warm_up_sizes` pay; "
        "0 learns it from traffic, as for all other sizes.",
    )
    cost_cache: Path | None = Field(
        None,
        description="File that keeps measured step times per device and model over restarts; "
        "null keeps them in memory.",
    )
    schedule: Schedule = Field(
        "fair",
        description="What runs next: `fair` (shortest remaining cost, ageing, fair share of "
        "accounts), `srpt` (shortest remaining cost alone), `fcfs` (first come, first served).",
    )
    ageing: float = Field(
        0.05,
        ge=0,
        le=10,
        description="Seconds of remaining cost that a second of waiting makes up for: a job of "
        "cost c may be overtaken by jobs that come within c / ageing, by none later.",
    )
    share_burst_s: float = Field(
        1.0,
        ge=0,
        description="Device seconds that an account may be ahead of its fair share before others "
        "go first; 0 is strict, more favours short jobs of busy accounts.",
    )
    account_weights: dict[str, PositiveFloat] = Field(
        default={}, description="Shares of accounts, by account id; 1 where none is set."
    )
    prompt_cache_entries: int = Field(
        256,
        ge=0,
        description="Prompt embeddings kept, least recently used dropped; 0 keeps none.",
    )
    warm_up_sizes: tuple[Size, ...] = Field(
        (), description="Sizes drawn once at start, so that no client waits for the first use."
    )
    queue_max_samples: PositiveInt = Field(
        256, description="Samples a replica holds before it answers 503."
    )
    simulation: SimulationConfig = Field(
        SimulationConfig(), description="Of `simulated:` sources only."
    )

    @model_validator(mode="after")
    def _switches_agree(self) -> Self:
        if self.precision == "fp8" and self.optimize.compile_transformer == "off":
            raise ValueError(
                "precision fp8 is slower than bf16 without optimize.compile_transformer"
            )
        if self.offload == "group" and self.optimize.compiles:
            raise ValueError("offload group moves weights between blocks: it cannot be compiled")
        if self.offload == "group" and self.precision == "fp8":
            raise ValueError("offload group does not work with precision fp8")
        if self.offload == "group" and self.optimize.overlap_decode:
            raise ValueError("offload group leaves no memory for optimize.overlap_decode")
        if self.optimize.cuda_graphs and not self.device.startswith("cuda"):
            raise ValueError(f"optimize.cuda_graphs needs a CUDA device, not {self.device!r}")
        if self.optimize.cuda_graphs and self.offload in ("model", "group"):
            raise ValueError(f"optimize.cuda_graphs: offload {self.offload} moves the weights")
        return self


class BatchingConfig(Section):
    """Dynamic batching of prompts into one text-encoder pass (`@serve.batch`)."""

    max_batch_size: PositiveInt = Field(
        16, le=32, description="Prompts per text-encoder pass; more would strain its memory."
    )
    batch_wait_timeout_s: float = Field(
        0.005, ge=0, le=1, description="How long the first prompt of a batch waits for others."
    )
