"""AppConfig: everything an operator may set, as one frozen tree.

Data flow: YAML `applications[].args` -> `AppConfig` (Ray Serve validates it into this type) ->
`graph.build`. Units stand in the names. Unknown keys are refused. Secrets are read from the
environment or from files, never from YAML, apart from the development key, which opens loopback
only.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from serve_app.engineconfig import (
    BatchingConfig,
    EngineConfig,
    OptimizeConfig,
    Precision,
    Section,
    Size,
)
from serve_app.registry import FAST_QUALITY_STEPS, MODEL_DEFAULTS

__all__ = [
    "AppConfig",
    "BatchingConfig",
    "DevelopmentConfig",
    "EngineConfig",
    "LedgerConfig",
    "LimitsConfig",
    "MetadataConfig",
    "MetricsConfig",
    "ModelConfig",
    "ModelName",
    "OptimizeConfig",
    "Precision",
    "Quality",
    "Section",
    "Size",
    "StoreConfig",
]

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


class LedgerConfig(Section):
    """Accounts, keys and compute units."""

    url: str = Field(
        "sqlite+aiosqlite:///data/ledger.db",
        description="SQLAlchemy async URL; `${NAME}` is taken from the environment.",
    )
    migrate_on_start: bool = Field(
        False, description="Run migrations at start; for one machine only, a cluster runs a job."
    )
    hold_ttl_s: PositiveInt = Field(
        900, description="When an unresolved hold expires; longer than the request deadline."
    )
    sweep_interval_s: PositiveFloat = Field(
        60, description="How often expired holds are released; also done at start."
    )
    gateway_lease_s: PositiveFloat = Field(
        60,
        description="A gateway that gives no sign of life for so long counts as dead: its holds, "
        "and the idempotency keys under them, are released.",
    )
    busy_timeout_s: PositiveFloat = Field(
        5, description="How long a statement waits for a lock before the ledger counts as down."
    )
    pool_size: PositiveInt = Field(5, le=100, description="Connections per gateway replica.")


class StoreConfig(Section):
    """Where finished images are kept."""

    url: str = Field(
        "file://data/images",
        description="`file://` folder (relative ones are under the working directory) or "
        "`s3://`, `gs://`, `az://` bucket and prefix.",
    )
    image_ttl_s: PositiveInt = Field(
        3600,
        description="How long an image URL works, and an image is kept; OpenAI's is 60 minutes.",
    )
    sweep_interval_s: PositiveFloat | None = Field(
        600,
        description="How often expired images are deleted, by each gateway; also done at start. "
        "null deletes nothing: a lifecycle rule of the bucket may do it.",
    )
    idempotency_ttl_s: PositiveInt = Field(
        86_400,
        description="How long a request with an `Idempotency-Key` is replayed and not drawn again; "
        "its images are kept so much longer.",
    )
    timeout_s: PositiveFloat = Field(
        10,
        description="How long storing or reading one image may take before the store counts as "
        "down: then `b64_json` is answered without a URL, and `url` is 503.",
    )
    signing_key_file: Path = Field(
        Path("data/signing.key"),
        description="32 bytes that sign image URLs of a local folder; made when missing. "
        "FLUX_SERVE_SIGNING_KEY in the environment overrides it.",
    )


class MetadataConfig(Section):
    """What image files say about themselves, in XMP."""

    enabled: bool = Field(
        True,
        description="Write model, seed, steps, request id and that a model made the image "
        "(IPTC's `trainedAlgorithmicMedia`).",
    )
    prompt: bool = Field(False, description="Write the prompt, too: whoever has the file reads it.")


class LimitsConfig(Section):
    """What the gateway bounds."""

    body_max_bytes: PositiveInt = Field(
        524_288,
        description="Largest request body; the longest prompt, all escaped, takes 384,000.",
    )
    body_timeout_s: PositiveFloat = Field(
        10, description="How long a client may take to send its body."
    )
    request_timeout_s: PositiveFloat = Field(
        300, description="Deadline of a generation, queueing included; then 504 and no charge."
    )


class MetricsConfig(Section):
    """What Prometheus is told, beside what always is; see metrics.md."""

    interval_s: PositiveFloat = Field(
        15, description="How often each gateway reads open holds and replicas for their gauges."
    )
    by_account: bool = Field(
        False, description="Count captured units by account id, too: a series for each account."
    )


class DevelopmentConfig(Section):
    """One ready-made account to try things out; refused unless HTTP is on loopback only."""

    key: str = Field(
        min_length=8, description="API key, in clear, which is why it opens loopback only."
    )
    account: str = Field("development", min_length=1, description="Account it belongs to.")
    granted_units: PositiveInt = Field(
        10_000_000_000, description="Compute units granted when the account is made."
    )


class AppConfig(Section):
    """Root of the configuration: `applications[].args` of a Serve config file."""

    public_url: str = Field(
        "http://127.0.0.1:8000",
        pattern=r"^https?://[^/?#\s]+[^?#\s]*$",
        description="How clients reach the server; image URLs start with it.",
    )
    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)] = Field(
        description="The served models; the first is the default."
    )
    ledger: LedgerConfig = Field(LedgerConfig(), description="Accounts and compute units.")
    store: StoreConfig | None = Field(
        StoreConfig(), description="Image store; null serves `b64_json` only."
    )
    metadata: MetadataConfig = Field(MetadataConfig(), description="Metadata in image files.")
    limits: LimitsConfig = Field(LimitsConfig(), description="Bounds on requests.")
    metrics: MetricsConfig = Field(MetricsConfig(), description="Metrics.")
    development: DevelopmentConfig | None = Field(
        None, description="Development account and key; loopback only."
    )
    allow_simulated: bool = Field(
        False,
        description="Let other machines than this one reach models with a `simulated:` source: "
        "their clients pay compute units for placeholders.",
    )
    log_prompts: bool = Field(False, description="Write full prompts into logs.")

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        names = [name for model in self.models for name in model.names]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"model names used twice: {repeated}")
        if len({model.deployment_name for model in self.models}) < len(self.models):
            raise ValueError("two model ids end alike, so their deployments would share a name")
        if self.ledger.hold_ttl_s <= self.limits.request_timeout_s:
            raise ValueError("ledger.hold_ttl_s must exceed limits.request_timeout_s")
        return self
