"""Every private name of Ray that flux-serve uses, with the reason for each.

An upgrade of Ray begins here: `tests/unit/deployments/test_ray_compat.py` names the version that
this was written for, and fails when a name moves or another module uses one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import services
from ray._private.state import available_resources_per_node
from ray.serve._private import api
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.constants import (
    RAY_SERVE_ENABLE_DIRECT_INGRESS as DIRECT_INGRESS,
)
from ray.serve._private.constants import (
    RAY_SERVE_USE_GRPC_BY_DEFAULT as GRPC_BY_DEFAULT,
)
from ray.serve._private.constants import SERVE_LOGGER_NAME, SERVE_NAMESPACE
from ray.serve.config import ControllerOptions
from ray.serve.context import _get_global_client, _set_global_client
from ray.serve.schema import ServeDeploySchema

VERSION = "2.60"
__all__ = [
    "DIRECT_INGRESS",  # HAProxy mode, too: each gateway opens a port of its own
    "GRPC_BY_DEFAULT",  # what handles use: Serve reads it from the environment, and tells nobody
    "SERVE_LOGGER_NAME",  # Serve's handlers write our log lines, too
    "SERVE_NAMESPACE",  # `serve run` connects with it, so we do
    "VERSION",
    "ServeControllerClient",
    "ask_for_details",
    "available_resources_per_node",  # `ray.nodes` has totals only
    "serve_client",
    "start_serve",
    "without_dashboard",
]


def serve_client() -> ServeControllerClient | None:
    """The client of the running Serve; None where there is none. Alone, Ray would start one."""
    if not ray.is_initialized():
        return None
    return _get_global_client(raise_if_no_controller_running=False)


def ask_for_details() -> ray.ObjectRef:
    """Ask Serve's controller for `ServeInstanceDetails`, as a dict.

    `serve.status` leaves out targets, and the client's own `get_serve_details` waits for ever.

    Raises:
        RayServeException: Serve does not run.
    """
    return _get_global_client()._controller.get_serve_instance_details.remote()


@contextmanager
def without_dashboard() -> Iterator[None]:
    """Make `ray.init` start no dashboard process at all.

    With `include_dashboard=False` alone, Ray still starts one and waits for it. It would only
    report usage statistics, which `ray.init` turns off. Ray continues without this process, with
    the values below, where it fails to start.
    """
    start = services.start_api_server
    services.start_api_server = lambda *_, **__: (None, None)
    try:
        yield
    finally:
        services.start_api_server = start


def start_serve(config: ServeDeploySchema) -> tuple[ServeControllerClient, list[ray.ObjectRef]]:
    """Return a client and the proxies' readiness; `serve.start` would wait for that first."""
    options: dict[str, Any] = {
        "http_options": config.http_options.model_dump(),
        "grpc_options": config.grpc_options.model_dump(),
        "proxy_location": config.proxy_location,
    }
    controller_options = config.controller_options or ControllerOptions()
    if serve_client() is not None:  # a running cluster
        return api.serve_start(controller_options=controller_options, **options), []
    controller, proxies = api._create_controller_and_proxy_refs(
        global_logging_config=None,
        global_tracing_config=None,
        controller_options=controller_options,
        **options,
    )
    client = ServeControllerClient(controller)
    _set_global_client(client)
    return client, proxies
