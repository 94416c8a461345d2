"""The whole graph on a real Serve cluster: what happens when clients leave and replicas die."""

import asyncio
import copy
import io
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import psutil
import pytest
import ray
from PIL import Image

from tests.integration.conftest import (
    MINI,
    STEPS_MAX,
    App,
    Apps,
    Cluster,
    busy_replica,
    error_of,
    eventually,
    idle,
    kill_busy_replica,
    until_healthy,
)
from tests.integration.test_events import opened
from tests.machine import MACHINE
from tests.otlp_receiver import named

pytestmark = pytest.mark.serve

SMALL = {"prompt": "a red circle on a blue background", "size": "256x256"}
LONG = {**SMALL, "size": "512x512", "num_inference_steps": 50}
"""Seconds on two cores: long enough to pull the plug in the middle."""
ENDLESS = {**LONG, "size": "1024x1024", "num_inference_steps": STEPS_MAX, "n": 2}
"""Minutes on two cores, for those that are broken off."""
UNITS = 256 * 256


def post(app: App, body: dict[str, Any], **options: Any) -> httpx.Response:
    url = f"{app.url}/v1/images/generations"
    return httpx.post(url, json=body, headers=app.headers, timeout=MACHINE.allow(300), **options)


def test_a_url_under_a_route_prefix_downloads(strict: App) -> None:
    url = post(strict, SMALL).raise_for_status().json()["data"][0]["url"]
    assert url.startswith(strict.url)
    image = Image.open(
        io.BytesIO(httpx.get(url, timeout=MACHINE.allow()).raise_for_status().content)
    )
    assert image.size == (256, 256)


def test_a_schnell_shaped_folder_is_served_under_its_name(main: App) -> None:
    body = {"model": "black-forest-labs/FLUX.1-schnell", "prompt": "noise", "size": "80x64"}
    reply = post(main, body).raise_for_status()
    assert reply.headers["x-model"] == "black-forest-labs/FLUX.1-schnell"
    url = reply.json()["data"][0]["url"]
    assert Image.open(io.BytesIO(httpx.get(url, timeout=MACHINE.allow()).content)).size == (80, 64)
    model = httpx.get(
        f"{main.url}/v1/models/black-forest-labs%2FFLUX.1-schnell",
        headers=main.headers,
        timeout=MACHINE.allow(),
    ).json()
    assert model["capabilities"]["size_multiple"] == 16
    assert model["capabilities"]["text_tokens_max"] == 256


def test_an_image_beyond_serves_own_limit_of_a_message_arrives(main: App) -> None:
    """A noisy picture, which PNG cannot make small. The limit is gRPC's, 4 MiB by default."""
    body = {"model": "black-forest-labs/FLUX.1-schnell", "prompt": "noise", "size": "1536x1536"}
    reply = post(main, {**body, "num_inference_steps": 1}).raise_for_status()
    data = (
        httpx.get(reply.json()["data"][0]["url"], timeout=MACHINE.allow())
        .raise_for_status()
        .content
    )
    assert len(data) > 4 * 2**20
    assert Image.open(io.BytesIO(data)).size == (1536, 1536)


def test_jobs_go_to_replicas_by_serves_grpc(main: App) -> None:
    """Seen from outside: Ray's own calls use the one port by which Ray knows the process."""
    for _ in range(4):
        post(main, SMALL).raise_for_status()
    actors = [one for one in ray._private.state.actors().values() if one["State"] == "ALIVE"]
    models = [one for one in actors if one["Name"].startswith(f"SERVE_REPLICA::main#{MINI}#")]
    (gateway,) = (one for one in actors if one["Name"].startswith("SERVE_REPLICA::main#Gateway#"))
    serves = {
        port
        for model in models
        for port in listening(model["Pid"])
        if port != model["Address"]["Port"]
    }
    called = psutil.Process(gateway["Pid"]).net_connections("tcp")
    assert any(one.raddr and one.raddr.port in serves for one in called)


def listening(pid: int) -> set[int]:
    open_ = psutil.Process(pid).net_connections("tcp")
    return {one.laddr.port for one in open_ if one.status == psutil.CONN_LISTEN}


def test_its_replica_holds_exactly_the_gpu_it_was_given(main: App) -> None:
    def held() -> float:
        return float(ray.cluster_resources()["GPU"] - ray.available_resources().get("GPU", 0))

    eventually(lambda: held() == 1, "the replicas of other tests have given back theirs")


def test_many_clients_at_once_each_get_their_own_picture_and_pay_for_it(main: App) -> None:
    before = main.ledger_totals()["captured"]
    seeds = range(12)
    with ThreadPoolExecutor(len(seeds)) as pool:
        replies = list(pool.map(lambda seed: post(main, {**SMALL, "seed": seed}), seeds))
    assert [reply.status_code for reply in replies] == [200] * len(seeds)
    assert [reply.json()["seeds"] for reply in replies] == [[seed] for seed in seeds]
    assert main.ledger_totals()["captured"] - before == len(seeds) * UNITS


def test_a_client_that_leaves_stops_the_drawing_and_pays_nothing(main: App) -> None:
    before = main.ledger_totals()["captured"]

    async def leave() -> None:
        async with httpx.AsyncClient(timeout=MACHINE.allow(300)) as client:
            request = asyncio.create_task(
                client.post(f"{main.url}/v1/images/generations", json=ENDLESS, headers=main.headers)
            )
            await asyncio.to_thread(eventually, lambda: busy_replica(main), "a replica draws")
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

    asyncio.run(leave())
    eventually(lambda: idle(main), "the replicas are idle again")
    eventually(lambda: main.ledger_totals(verified=False)["held"] == 0, "the hold is released")
    assert main.ledger_totals()["captured"] == before


def test_the_status_shows_replicas_and_the_work_of_the_whole_fleet(main: App) -> None:
    def models() -> dict[str, Any]:
        reply = httpx.get(
            f"{main.url}/admin/v1/status", headers=main.headers, timeout=MACHINE.allow()
        ).raise_for_status()
        return {model["id"]: model for model in reply.json()["models"]}

    eventually(lambda: models()["flux-mini"]["replicas"]["running"] == 2, "two replicas")
    found = models()
    assert found["flux-mini"]["replicas"] == {
        "running": 2,
        "starting": 0,
        "stopping": 0,
        "target": 2,
    }
    assert found["flux-mini"]["open_holds"] == 0
    # Many seconds, yet not so many that the second one would be refused for its deadline.
    body = {**LONG, "size": "1024x1024", "n": 2, "stream": True}
    with opened(main, body) as one, opened(main, body) as other:
        assert (one.status_code, other.status_code) == (200, 200)
        working = eventually(
            lambda: (now := models()["flux-mini"])["open_holds"] == 2 and now, "both are held"
        )
    assert working["held_images"] == 4
    assert working["held_units"] == 4 * 1024 * 1024 * 50 // 4
    eventually(lambda: models()["flux-mini"]["open_holds"] == 0, "neither is held")


def test_a_replica_that_dies_is_replaced_by_another_within_the_request(
    apps: Apps, main: App
) -> None:
    until_healthy(main)
    before = main.ledger_totals()["captured"]
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(post, main, LONG)
        kill_busy_replica(main)
        reply = pending.result()
    assert reply.status_code == 200, reply.text
    assert main.ledger_totals()["captured"] - before == int(reply.headers["x-compute-units"])
    request_id = reply.headers["x-request-id"]
    (request,) = eventually(
        lambda: apps.receiver.having("POST /v1/images/generations", request_id=request_id),
        "the request's span",
    )
    spans = apps.receiver.until(
        lambda found: (
            [span.name for span in found].count("job") == 2
            and "draw" in {span.name for span in found}
        ),
        request.trace_id,
    )
    died, drew = sorted(
        (span for span in spans if span.name == "job"),
        key=lambda span: span.attributes["flux_serve.attempt"],
    )
    assert (died.failed, drew.failed) == (True, False)
    assert died.attributes["error.type"].startswith("Actor")
    assert named(spans, "draw").parent_id == drew.span_id


def test_openais_own_retries_after_two_deaths_charge_once(main: App) -> None:
    """Two deaths exhaust the server's retry (500, unbilled); the client then retries by itself."""
    until_healthy(main)
    before = main.ledger_totals()["captured"]
    with (
        openai.OpenAI(
            base_url=f"{main.url}/v1", api_key=main.key, timeout=MACHINE.allow(300)
        ) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        pending = pool.submit(
            client.images.with_raw_response.generate,
            prompt="a red circle",
            size="512x512",
            extra_body={"num_inference_steps": 100},
        )
        first = kill_busy_replica(main)
        eventually(lambda: busy_replica(main) not in (None, first), "another replica took over")
        kill_busy_replica(main)
        reply = pending.result()
    assert int(reply.retries_taken) >= 1
    assert main.ledger_totals()["captured"] - before == 512 * 512 * 100 // 4


def test_a_deadline_is_a_504_and_charges_nothing(strict: App) -> None:
    before = strict.ledger_totals()["captured"]
    reply = post(strict, ENDLESS)
    assert reply.status_code == 504
    assert error_of(reply)["code"] == "timeout"
    assert strict.ledger_totals() == {"captured": before, "held": 0}


def test_a_full_queue_is_a_503_with_retry_after_and_charges_nothing(strict: App) -> None:
    before = strict.ledger_totals()["captured"]
    reply = post(strict, {**SMALL, "n": 3})
    assert reply.status_code == 503
    assert error_of(reply)["code"] == "server_is_overloaded"
    assert 0 < int(reply.headers["retry-after"]) <= 120
    assert strict.ledger_totals() == {"captured": before, "held": 0}


def test_a_locked_ledger_is_a_503_and_recovers_by_itself(strict: App) -> None:
    database = sqlite3.connect(strict.ledger_url.removeprefix("sqlite+aiosqlite:///"))
    database.isolation_level = None
    try:
        database.execute("BEGIN EXCLUSIVE")
        reply = post(strict, SMALL)
        assert reply.status_code == 503
        assert error_of(reply)["code"] == "ledger_unavailable"
        assert reply.headers["retry-after"]
    finally:
        database.execute("ROLLBACK")
        database.close()
    assert post(strict, SMALL).status_code == 200


def test_control_headers_from_outside_have_no_effect(main: App) -> None:
    hostile = {"x-request-timeout-seconds": "0.001", "x-request-disconnect-disabled": "?1"}
    reply = httpx.post(
        f"{main.url}/v1/images/generations",
        json=SMALL,
        headers={**main.headers, **hostile},
        timeout=MACHINE.allow(),
    )
    assert reply.status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PATCH"])
def test_every_unknown_path_answers_in_openais_shape(main: App, method: str) -> None:
    for path in ("/v1", "/v1/nothing", "/v1/images/generations/", "/%2e%2e/etc/passwd"):
        reply = httpx.request(method, f"{main.url}{path}", timeout=MACHINE.allow())
        assert reply.status_code == 404
        assert error_of(reply)["code"] == "unknown_url"


def test_a_request_id_from_the_client_comes_back(main: App) -> None:
    reply = httpx.get(
        f"{main.url}/health", headers={"x-request-id": "mine-1"}, timeout=MACHINE.allow()
    )
    assert reply.headers.get_list("x-request-id") == ["mine-1"]
    assert reply.json() == {"message": "ok"}


def test_batching_knobs_change_in_place(cluster: Cluster, main: App) -> None:
    until_healthy(main)
    before = set(main.replicas(MINI))
    application = copy.deepcopy(cluster.applications["main"])
    application["deployments"][0]["user_config"] = {
        "max_batch_size": 2,
        "batch_wait_timeout_s": 0.0,
    }
    cluster.deploy(application)
    assert post(main, SMALL).status_code == 200
    assert set(main.replicas(MINI)) == before
