"""Autoscaling on a real Serve cluster: made-up GPUs, simulated models, the real policy and queues.

One application, `elastic`, joins the cluster for these tests and leaves it afterwards. They run in
order: from nothing to four replicas, and back to nothing.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any

import httpx
import pytest
from ray import serve

from serve_app.engine.board import RETRY_AFTER_MAX_S
from tests.cluster import app_of
from tests.integration.conftest import (
    QUICK,
    App,
    Cluster,
    application,
    error_of,
    eventually,
    settled,
)
from tests.integration.test_events import opened
from tests.machine import MACHINE

pytestmark = pytest.mark.serve

MODEL = "FluxModel-elastic"
REPLICAS_MAX = 4
TIMEOUT_S = 90.0
"""Of a request, times as much as this machine is slow: so are the simulated GPUs."""
BURST = 20
"""Large images, 70 device seconds: other replicas can start, and one alone would do it in time."""
LARGE = {"prompt": "a large image", "size": "1024x1024", "num_inference_steps": 28}
"""3.5 device seconds each."""
SMALL = {"prompt": "a thumbnail", "size": "256x256"}
SCALING = {
    "min_replicas": 0,
    "max_replicas": REPLICAS_MAX,
    "policy": {
        "policy_function": "serve_app.deployments.autoscaling:ComputeBacklogPolicy",
        "policy_kwargs": {"target_queue_s": 4, "hold_s": 5, "idle_to_zero_s": 5},
    },
    "upscale_delay_s": 0,
    "downscale_delay_s": 0,
    "look_back_period_s": 1,
    "metrics_interval_s": 0.5,
}


@pytest.fixture(scope="module")
def elastic(cluster: Cluster) -> Iterator[App]:
    model = {
        "id": "elastic",
        "source": "simulated:h200:schnell",
        "num_gpus": 1,
        "num_cpus": 0.1,
        "engine": {
            "warm_up_sizes": ["256x256", "1024x1024"],
            # Longer to load than a stream's first heartbeat takes.
            "simulation": {"load_s": 12, "time_scale": MACHINE.slowness},
        },
    }
    made = application(
        cluster.folder,
        "elastic",
        cluster.url,
        {"name": MODEL, "autoscaling_config": SCALING, "max_ongoing_requests": 4, **QUICK},
        models=[model],
        limits={"request_timeout_s": MACHINE.allow(TIMEOUT_S)},
        ledger={"hold_ttl_s": ceil(MACHINE.allow(TIMEOUT_S)) + 1},
    )
    cluster.deploy(made)
    app = app_of(made)
    yield app
    settled(app)
    cluster.remove("elastic")


def running(app: App) -> int:
    return app.running(MODEL)


def post(app: App, body: dict[str, Any], path: str = "generations") -> httpx.Response:
    url = f"{app.url}/v1/images/{path}"
    return httpx.post(url, json=body, headers=app.headers, timeout=2 * MACHINE.allow(TIMEOUT_S))


def test_a_quote_of_a_model_at_rest_starts_no_replica(elastic: App) -> None:
    reply = post(elastic, LARGE, "quote")
    assert reply.status_code == 200
    assert reply.json().get("estimated_s") is None
    deployment = serve.status().applications[elastic.name].deployments[MODEL]
    assert not deployment.replica_states


def test_a_stream_that_wakes_a_model_hears_heartbeats_until_it_draws(elastic: App) -> None:
    assert running(elastic) == 0
    with opened(elastic, {**SMALL, "stream": True}) as reply:
        assert reply.status_code == 200
        lines = reply.iter_lines()
        assert next(lines) == ": keep-alive"
        assert running(elastic) == 0
        assert any(line == "event: image_generation.completed" for line in lines)


def test_a_burst_of_large_images_starts_all_replicas_while_it_lasts_and_none_is_lost(
    elastic: App,
) -> None:
    eventually(lambda: running(elastic) >= 1, "a replica serves")
    with ThreadPoolExecutor(BURST) as clients:
        replies = [clients.submit(post, elastic, LARGE) for _ in range(BURST)]
        eventually(lambda: running(elastic) == REPLICAS_MAX, "all replicas serve", 120)
        assert not all(reply.done() for reply in replies)
    assert [reply.result().status_code for reply in replies] == [200] * BURST


async def refused_first(app: App, count: int) -> httpx.Response:
    """Send many at once; the first refusal, after which the others are called off."""
    at_once = httpx.Limits(max_connections=count)  # httpx would keep some for later
    async with httpx.AsyncClient(
        headers=app.headers, timeout=2 * MACHINE.allow(TIMEOUT_S), limits=at_once
    ) as client:
        url = f"{app.url}/v1/images/generations"
        sent = [asyncio.create_task(client.post(url, json=LARGE)) for _ in range(count)]
        refused = None
        for reply in asyncio.as_completed(sent):
            if (answer := await reply).status_code != 200:
                refused = answer
                break
        for task in sent:
            task.cancel()
        await asyncio.gather(*sent, return_exceptions=True)
    assert refused is not None, "all were served"
    return refused


def test_more_than_all_replicas_can_finish_in_time_is_refused_with_a_time_to_return(
    elastic: App,
) -> None:
    """180 large images are 630 device seconds: 157 s for four replicas, and a job has 90.

    A slow machine has slow GPUs and long deadlines, in the same proportion.
    """
    before = elastic.ledger_totals()["captured"]
    reply = asyncio.run(refused_first(elastic, 180))
    assert reply.status_code == 503
    assert error_of(reply)["code"] == "server_is_overloaded"
    # The work in front of it, at up to four device seconds a second: longer than its deadline.
    least_s = min(MACHINE.allow(TIMEOUT_S), RETRY_AFTER_MAX_S)
    assert least_s <= int(reply.headers["retry-after"]) <= RETRY_AFTER_MAX_S
    paid = settled(elastic, "the others are released") - before
    assert paid % (1024 * 1024 * 28 // 4) == 0
    assert paid < 180 * 1024 * 1024 * 28 // 4


def test_when_nothing_comes_any_more_the_replicas_stop_one_and_all(elastic: App) -> None:
    eventually(lambda: running(elastic) == 0, "scaled to zero", 120)
    assert post(elastic, SMALL).status_code == 200
