"""Ray, Serve and the applications of one config file, in the foreground of this process.

Data flow: config file -> `ray.init` -> Serve's controller -> applications, while the proxy starts
-> SIGINT -> delete the applications, so that replicas finish their jobs while the proxy still
answers -> stop Serve and Ray. Like Ray's `serve run FILE`, except that Ray's dashboard is off by
default, applications start before the proxy is ready, and running jobs finish. `serve run` stops
the proxy first, and each running job loses its client. A second SIGINT stops at once.
"""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeDeploySchema

from serve_app.configfile import read_yaml
from serve_app.deployments.ray_compat import (
    SERVE_NAMESPACE,
    serve_client,
    start_serve,
    without_dashboard,
)

POLL_S = 0.2
IDLE_S = 10.0
ENVIRONMENT = {
    # Ray would start one worker process per CPU. They stay idle: Serve's actors have a runtime
    # environment, so each gets a new process.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    # Serve replaces a proxy that is not ready after 3 times 5 s. A slow machine would start one
    # after the other, and serve nothing for minutes.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
}
"""Defaults for Ray's processes, which inherit this environment."""
PROXY_READY_S = 300.0
"""`serve run` gives the proxy 60 s, but does nothing else meanwhile."""
NEW_CLUSTER = (None, "", "local")
"""Values of RAY_ADDRESS with which `ray.init` may start a cluster."""


def run(path: Path, *, dashboard: bool) -> int:
    """Serve a valid config file until SIGINT; returns the exit status."""
    signal.signal(signal.SIGINT, _stop)
    try:
        start_ray(dashboard=dashboard)
        deploy(ServeDeploySchema.model_validate(read_yaml(path)))
        while True:
            time.sleep(IDLE_S)  # Ray prints logs meanwhile
    except KeyboardInterrupt:
        return 0
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()


def start_ray(*, dashboard: bool) -> None:
    """Start a cluster, or connect to the one that RAY_ADDRESS names."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    if address not in NEW_CLUSTER:
        ray.init(address=address, namespace=SERVE_NAMESPACE)
        return
    if dashboard:
        ray.init(address=address, namespace=SERVE_NAMESPACE)
        return
    with without_dashboard():
        ray.init(address=address, namespace=SERVE_NAMESPACE, include_dashboard=False)
    for node in ray.nodes():  # the dashboard would write them to a file for Prometheus
        where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        print(f"Metrics for Prometheus: {where}", flush=True)  # noqa: T201


def deploy(config: ServeDeploySchema) -> None:
    """Start Serve and its applications; returns when the proxy is ready."""
    client, proxies = start_serve(config)
    client.deploy_apps(config)  # does not wait for them
    ray.get(proxies, timeout=PROXY_READY_S)


def drain() -> None:
    """Take no more requests, and return when those under way are done.

    Each replica bounds it: `graceful_shutdown_timeout_s`, which `graph` sets.
    """
    if serve_client() is None:
        return  # stopped while starting
    for name in serve.status().applications:
        serve.delete(name, _blocking=False)
    while serve.status().applications:
        time.sleep(POLL_S)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one
    print("Finishing the jobs under way; Ctrl-C again stops at once.", flush=True)  # noqa: T201
    try:
        drain()
    except (RayError, RayServeException) as exc:
        print(f"Serve did not drain: {exc}", file=sys.stderr, flush=True)  # noqa: T201
    raise KeyboardInterrupt
