"""ModelConfig: one served model, as an operator writes it.

Data flow: YAML `args.models[]` -> `ModelConfig` -> catalogue, price, replica. What the registry
knows about a model's id fills what the YAML leaves out.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from serve_app.engineconfig import BatchingConfig, EngineConfig, Section, Size
from serve_app.registry import FAST_QUALITY_STEPS, MODEL_DEFAULTS

ModelName = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9._:-]+(/[A-Za-z0-9._:-]+)*$")]
"""As on the hub. It stands in a path, in the header `x-model` and in a deployment's name."""
Quality = Literal["low", "medium", "standard", "auto", "hd", "high", "xhigh", "max"]
ReplicaResource = Annotated[float, Field(ge=0.0001, le=1_000_000)]  # Ray counts in 0.0001
RAYS_RESOURCES = frozenset({"CPU", "GPU", "memory", "object_store_memory"})


class ModelConfig(Section):
    """One served model: where its weights are, what it accepts, what a job costs."""

    id: ModelName = Field(description="Name in `model` of a request.")
    source: str = Field(
        description="`embedded:flux-mini`, a local diffusers folder, a hub id, or "
        "`random:schnell`, `random:dev` (true size, noise for pictures; `random:tiny-...` for "
        "tests), or `simulated:h200:schnell` and the like (h200, h100, l4; schnell, dev: a "
        "placeholder after the time that FLUX.1 would take; for load tests, loopback only).",
    )
    aliases: tuple[ModelName, ...] = Field(
        (), description="Other names that this model answers to; `x-model` tells the truth."
    )
    owned_by: str = Field("flux-serve", description="`owned_by` in `GET /v1/models`.")
    reference_steps: PositiveInt = Field(
        4, le=200, description="Steps at which a job costs n x width x height compute units."
    )
    quality_steps: dict[Quality, PositiveInt] = Field(
        default=FAST_QUALITY_STEPS,
        description="Denoising steps for each value of `quality`.",
    )
    guidance_scale: float = Field(
        0.0, ge=0, le=20, description="Default guidance; 0 for distilled models that ignore it."
    )
    default_size: Size = Field("1024x1024", description="Size of `auto` or when absent.")
    min_edge_px: PositiveInt = Field(256, description="Smallest width or height.")
    max_edge_px: PositiveInt = Field(2048, le=8192, description="Largest width or height.")
    max_pixels: PositiveInt = Field(
        4_194_304, description="Largest width x height; bounds memory and the VAE decode."
    )
    max_images: PositiveInt = Field(10, le=10, description="Largest `n`; OpenAI's limit is 10.")
    max_steps: PositiveInt = Field(50, le=200, description="Largest `num_inference_steps`.")
    prompt_max_chars: PositiveInt = Field(
        1000, le=32_000, description="Longest prompt; the text encoder truncates long ones anyway."
    )
    text_tokens_max: PositiveInt | None = Field(
        None,
        le=512,
        description="Tokens of the T5 encoder; null takes what suits the model: its folder's "
        "length, at most 256 where it takes no guidance (distilled), else 512.",
    )
    num_gpus: float = Field(0, ge=0, description="GPUs pinned to each replica.")
    num_cpus: float = Field(1, ge=0, description="CPUs reserved for each replica.")
    accelerator_type: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]+$",
        max_length=63,
        description="Kind of GPU that each replica must have, by Ray's name (`H100`, `L4`); null "
        "takes any. Where KubeRay makes nodes as needed, use `resources` instead.",
    )
    resources: dict[str, ReplicaResource] = Field(
        default={},
        description="Custom resources that each replica takes; only their nodes have room.",
    )
    engine: EngineConfig = Field(EngineConfig(), description="The replica's engine.")
    batching: BatchingConfig = Field(
        BatchingConfig(),
        description="Start values of prompt batching; `user_config` changes them in place.",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a request may use."""
        return (self.id, *self.aliases)

    @property
    def deployment_name(self) -> str:
        """Name of its Serve deployment: what `deployments:` entries in YAML refer to."""
        return f"FluxModel-{self.id.rsplit('/', 1)[-1]}"

    @model_validator(mode="before")
    @classmethod
    def _known_model_defaults(cls, data: object) -> object:
        """Fill what the registry knows about a model id; what is written wins."""
        if isinstance(data, dict) and data.get("id") in MODEL_DEFAULTS:
            return {**MODEL_DEFAULTS[data["id"]], **data}
        return data

    @model_validator(mode="after")
    def _places_agree(self) -> Self:
        if self.accelerator_type is not None and not self.num_gpus:
            raise ValueError("accelerator_type names a kind of GPU, but num_gpus is 0")
        if taken := sorted(RAYS_RESOURCES & set(self.resources)):
            raise ValueError(f"resources names {taken}: those are num_cpus, num_gpus and Ray's own")
        return self

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.min_edge_px > self.max_edge_px:
            raise ValueError("min_edge_px is larger than max_edge_px")
        for size in (self.default_size, *self.engine.warm_up_sizes):
            width, height = (int(edge) for edge in size.split("x"))
            if min(width, height) < self.min_edge_px or max(width, height) > self.max_edge_px:
                raise ValueError(f"size {size} is outside min_edge_px and max_edge_px")
            if width * height > self.max_pixels:
                raise ValueError(f"size {size} has more than max_pixels")
        if self.engine.optimize.compiles and not self.engine.warm_up_sizes:
            raise ValueError("compiling needs engine.warm_up_sizes: only those run compiled")
        missing = {"low", "medium", "standard", "auto", "hd", "high"} - set(self.quality_steps)
        if missing:
            raise ValueError(f"quality_steps lacks {sorted(missing)}")
        if max(self.quality_steps.values()) > self.max_steps:
            raise ValueError("quality_steps exceeds max_steps")
        return self
