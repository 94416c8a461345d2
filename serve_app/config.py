"""AppConfig: everything an operator may set, as one frozen tree.

Data flow: YAML `applications[].args` -> `AppConfig` (Ray Serve validates it into this type) ->
`graph.build`. Units stand in the names. Unknown keys are refused. Secrets are read from the
environment or from files, never from YAML, apart from the development key, which opens loopback
only.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from serve_app.engineconfig import (
    BatchingConfig,
    EngineConfig,
    OptimizeConfig,
    Precision,
    Section,
    Size,
)
from serve_app.modelconfig import ModelConfig, ModelName, Quality

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
    "TracingConfig",
]


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


class TracingConfig(Section):
    """OpenTelemetry traces over OTLP/HTTP; they need the extra `otel`. See tracing.md."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/?#\s]+[^?#\s]*$",
        description="Base URL of a collector; `/v1/traces` is added. null takes "
        "OTEL_EXPORTER_OTLP_ENDPOINT, else `http://localhost:4318`.",
    )
    service_name: str | None = Field(
        None,
        min_length=1,
        description="Name of the service in traces; null takes OTEL_SERVICE_NAME, else "
        "`flux-serve`.",
    )
    sample_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the traces that begin here to keep; null takes OTEL_TRACES_SAMPLER, "
        "else all.",
    )
    follow_clients: bool = Field(
        True,
        description="Continue the trace that a client names in `traceparent`, and keep it if the "
        "client does. false begins one of our own, linked to it.",
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
    tracing: TracingConfig | None = Field(None, description="Traces; null makes none.")
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
