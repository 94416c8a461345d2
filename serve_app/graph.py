"""The Serve graph: the only place that wires concrete parts together.

Data flow: YAML `args` -> Ray Serve -> `build(AppConfig)` -> Gateway -> one FluxModel per model.
Identity (models, ledger, store) is in `args`, and changing it restarts the application; tunables go
into `deployments:` entries, which change in place.
"""

from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from serve_app.config import AppConfig, ModelConfig, TracingConfig
from serve_app.deployments.gateway import ACTOR_OPTIONS, Gateway
from serve_app.deployments.model import FluxModel
from serve_app.deployments.ray_compat import DIRECT_INGRESS, serve_client
from serve_app.engine.source import simulated_problem
from serve_app.errors import ConfigError
from serve_app.loopback import is_loopback

GATEWAY_MAX_ONGOING = 1000
"""Requests in a gateway: nearly all wait for pictures, and each costs little while waiting."""
MODEL_MAX_ONGOING = 64
"""Jobs in a replica: at least twice the prompt batch, or handles poll instead of feeding it."""
MODEL_MAX_QUEUED = 256
"""Jobs that wait in a gateway for a free replica; more are answered 503 at once."""
ROUTER_INITIAL_BACKOFF_S = 0.005
ROUTER_MAX_BACKOFF_S = 0.02
"""Serve's default of 0.5 s leaves a replica idle that long after it became free."""
EVERY_INTERFACE = "0.0.0.0"
SHUTDOWN_MARGIN_S = 20
"""Beyond the longest job, so that an update or scale-down loses none."""


def build(args: AppConfig) -> serve.Application:
    """The application that a Serve config file names in `import_path: serve_app.graph:build`.

    Raises:
        ConfigError: If the development key, or a simulated model, would be reachable from other
            machines.
    """
    host = serving_host()
    refuse_development(args, host)
    refuse_simulated(args, host)
    shutdown_s = args.limits.request_timeout_s + SHUTDOWN_MARGIN_S
    models = {model.id: _model(model, shutdown_s, args.tracing) for model in args.models}
    gateway = Gateway.options(
        max_ongoing_requests=GATEWAY_MAX_ONGOING,
        graceful_shutdown_timeout_s=shutdown_s,
        ray_actor_options=ACTOR_OPTIONS,
    )
    application: serve.Application = gateway.bind(args, models)
    return application


def refuse_development(args: AppConfig, host: str | None) -> None:
    """`check-config` says the same of a file; this also holds for a file that nobody checked.

    A cluster listens where its first config file said, so the file of this application cannot tell.
    """
    if args.development is not None and host is not None and not is_loopback(host):
        raise ConfigError(
            f"args.development: a development key needs Serve on loopback, not on {host!r}"
        )


def refuse_simulated(args: AppConfig, host: str | None) -> None:
    """Nobody shall take placeholders for a service, unless `allow_simulated` says so."""
    if host is not None and (problem := simulated_problem(args, host)):
        raise ConfigError(problem)


def serving_host() -> str | None:
    """Where the running Serve listens; None outside one, and asking starts none."""
    if not ray.is_initialized():
        return None
    if DIRECT_INGRESS:  # HAProxy mode, too: each gateway opens its own port
        return EVERY_INTERFACE
    client = serve_client()
    return None if client is None else client.http_config.host


def _model(
    model: ModelConfig, shutdown_s: float, tracing: TracingConfig | None = None
) -> serve.Application:
    options: dict[str, Any] = {"num_cpus": model.num_cpus, "num_gpus": model.num_gpus}
    if model.accelerator_type is not None:
        options["accelerator_type"] = model.accelerator_type
    if model.resources:
        options["resources"] = dict(model.resources)
    deployment = serve.deployment(
        FluxModel,
        name=model.deployment_name,
        ray_actor_options=options,
        max_ongoing_requests=MODEL_MAX_ONGOING,
        max_queued_requests=MODEL_MAX_QUEUED,
        graceful_shutdown_timeout_s=shutdown_s,
        request_router_config=RequestRouterConfig(
            initial_backoff_s=ROUTER_INITIAL_BACKOFF_S, max_backoff_s=ROUTER_MAX_BACKOFF_S
        ),
    )
    application: serve.Application = deployment.bind(model, tracing)
    return application
