"""Two applications on the shared cluster, and how tests look into them and break them.

`main` has flux-mini on two replicas, and a random FLUX.1-schnell-shaped folder pinned to a fake
GPU; `strict` has tiny limits. Both are deployed when the first test asks for one of them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from serve_app.engine.random_weights import build_random_flux
from tests.cluster import DEPLOY_S, KEY, QUICK, App, Cluster, app_of, application, settled
from tests.machine import MACHINE, eventually
from tests.otlp_receiver import Receiver

__all__ = ["KEY", "QUICK", "App", "Cluster", "application", "eventually", "settled"]

MINI = "FluxModel-flux-mini"
STEPS_MAX = 200
"""Jobs that tests break off take so many: none is done before, on however fast a machine."""
REQUEST_S = 3600
"""Deadline of a request to `main`, which refuses what it expects to take longer: on a slow machine
that would be the jobs that tests break off."""
STRICT_S = 2.0
ANSWER_S = 2.0
"""How long a replica that serves may take to say whether it has a job."""


def error_of(reply: httpx.Response) -> dict[str, Any]:
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert len(reply.headers.get_list("x-request-id")) == 1
    found: dict[str, Any] = body["error"]
    return found


def busy_replica(app: App) -> str | None:
    """Name of a replica that has a job now; a starting one, which answers nobody, is passed over.

    All are asked at once: what is looked for may be over soon.
    """
    asked = {
        actor.get_num_ongoing_requests.remote(): name for name, actor in app.replicas(MINI).items()
    }
    waiting, deadline = list(asked), time.monotonic() + MACHINE.allow(ANSWER_S)
    while waiting and (left_s := deadline - time.monotonic()) > 0:
        answered, waiting = ray.wait(waiting, timeout=left_s)
        for reference in answered:
            try:
                if ray.get(reference):
                    return asked[reference]
            except ray.exceptions.RayError:
                continue  # it died meanwhile
    return None


def idle(app: App) -> bool:
    """Whether every replica that serves answers that it has no job."""
    try:
        asked = [one.get_num_ongoing_requests.remote() for one in app.replicas(MINI).values()]
        return not any(ray.get(asked, timeout=MACHINE.allow(10)))
    except ray.exceptions.RayError:
        return False  # one is starting, or died meanwhile


def healthy(app: App) -> bool:
    """Whether both replicas are up: a starting one would answer no question.

    They are counted, too: Serve's controller notices a death only at its next health check.
    """
    state = serve.status().applications[app.name].deployments[MINI]
    return state.status == "HEALTHY" and len(app.replicas(MINI)) == 2


def until_healthy(app: App) -> None:
    """The replicas that other tests killed are replaced: as slow as a deployment of the model."""
    eventually(lambda: healthy(app), "both replicas are up", DEPLOY_S)


def kill_busy_replica(app: App) -> str:
    name = eventually(lambda: busy_replica(app), "a replica draws")
    ray.kill(app.replicas(MINI)[name], no_restart=True)
    return str(name)


@dataclass(frozen=True)
class Apps:
    """The two applications; `receiver` gets the spans of `main`."""

    main: App
    strict: App
    receiver: Receiver


def _main(cluster: Cluster, collector: str) -> dict[str, Any]:
    small = {"torch_threads": 1}
    # One image after another: those that a stream waits for are all to come when the first is here.
    in_turn = {**small, "step_batch_samples": {"256x256": 1}}
    models = [
        {"id": "flux-mini", "engine": in_turn, "num_cpus": 0.1, "max_steps": STEPS_MAX},
        {
            "id": "black-forest-labs/FLUX.1-schnell",
            "source": str(cluster.folder / "schnell"),
            "num_cpus": 0.1,
            "min_edge_px": 64,
            "engine": small,
        },
    ]
    return {
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        **application(
            cluster.folder,
            "main",
            cluster.url,
            {"name": MINI, "num_replicas": 2, **QUICK},
            {"name": "Gateway", **QUICK},
            metrics={"interval_s": 0.5, "by_account": True},
            tracing={"endpoint": collector},
            limits={"request_timeout_s": REQUEST_S},
            ledger={"hold_ttl_s": REQUEST_S + 1},
            models=models,
        ),
    }


def _strict(cluster: Cluster) -> dict[str, Any]:
    model = {
        "id": "flux-mini",
        "num_cpus": 0.1,
        "max_steps": STEPS_MAX,
        "engine": {"torch_threads": 1, "queue_max_samples": 2},
    }
    return application(
        cluster.folder,
        "strict",
        cluster.url,
        models=[model],
        limits={"request_timeout_s": MACHINE.allow(STRICT_S)},
        ledger={"busy_timeout_s": 0.5},
    )


@pytest.fixture(scope="session")
def apps(cluster: Cluster) -> Iterator[Apps]:
    with Receiver() as receiver:
        build_random_flux(cluster.folder / "schnell", "schnell", "tiny")
        both = _main(cluster, receiver.url), _strict(cluster)
        cluster.deploy(*both)
        yield Apps(app_of(both[0]), app_of(both[1]), receiver)


@pytest.fixture
def main(apps: Apps) -> Iterator[App]:
    """The main application; afterwards nothing is held."""
    yield apps.main
    settled(apps.main)


@pytest.fixture
def strict(apps: Apps) -> Iterator[App]:
    yield apps.strict
    settled(apps.strict)
