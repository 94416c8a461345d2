"""Ray puts gateways and models where cluster.yaml means them to be: seen on real Ray nodes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port
from tests.kubernetes.cluster_kit import (
    CONTAINER,
    GATEWAYS,
    HEAD,
    MODELS,
    ROOT,
    at,
    load,
    serve_config,
)

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]  # four Ray nodes on two cores


def ray_nodes() -> list[dict[str, Any]]:
    """What KubeRay starts at first: the head, `minReplicas` gateway pods, and one GPU pod."""
    objects = load()
    resources = at(objects, f"{GATEWAYS}:resources")
    custom = {name: float(value) for name, value in resources.items() if name != "CPU"}
    limits = at(objects, f"{MODELS}:{CONTAINER}:resources:limits")
    gateway = {"group": "gateway", "num_cpus": int(resources["CPU"]), "resources": custom}
    model = {"num_cpus": int(limits["cpu"]), "num_gpus": int(limits["nvidia.com/gpu"])}
    return [
        {"group": "head", "num_cpus": int(at(objects, f"{HEAD}:rayStartParams:num-cpus"))},
        *[gateway] * at(objects, f"{GATEWAYS}:minReplicas"),
        {"group": "model", **model},
    ]


def small_config(folder: Path) -> dict[str, Any]:
    """`serveConfigV2` with flux-mini in the place of FLUX, as many GPUs and CPUs as that wants."""
    config = serve_config(load())
    config["http_options"] = {"host": "127.0.0.1", "port": free_port()}
    (application,) = config["applications"]
    args = application["args"]
    (model,) = args["models"]
    asks = {name: model[name] for name in ("num_gpus", "num_cpus")}
    args["models"] = [{"id": "flux-mini", **asks}]
    args["ledger"] = {"url": f"sqlite+aiosqlite:///{folder}/ledger.db", "migrate_on_start": True}
    args["store"] = None
    for one in application["deployments"]:
        one["name"] = one["name"].replace("FLUX.1-schnell", "flux-mini")
    return config


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Ray's unix sockets need a short path, which pytest's own temporary folders are not."""
    with tempfile.TemporaryDirectory(prefix="fp-", ignore_cleanup_errors=True) as name:
        (Path(name) / "ray").mkdir()
        yield Path(name)


def test_gateways_go_to_cpu_pods_and_models_to_gpu_pods(short_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kubernetes.placement"],
        input=json.dumps({"nodes": ray_nodes(), "config": small_config(short_path)}),
        env={**os.environ, "RAY_TMPDIR": str(short_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=540,  # the process has a deadline of its own, and stops its nodes then
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("PLACED ")]
    assert lines, done.stderr[-4000:]
    placed = json.loads(lines[0].removeprefix("PLACED "))
    assert placed == {"Gateway": ["gateway", "gateway"], "FluxModel-flux-mini": ["model"]}
