"""What a measured gateway says of its jobs is what happened: real ledger, store and HTTP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from recorded import Recorded
from scripted import UNITS_1024, World, catalogue

from serve_app import metrics
from serve_app.errors import GenerationFailed
from serve_app.ingress.app import create_app
from serve_app.measured import MeasuredGenerator
from serve_app.metering import deliveries
from serve_app.metering.database import Database
from serve_app.metering.leases import Watch
from serve_app.metering.measured import MeasuredLedger
from serve_app.metering.sql import SqlLedger
from serve_app.service import ImageService
from serve_app.storage.store import ImageStore

GENERATIONS = "/v1/images/generations"
BODY = {"prompt": "a red circle"}
MakeWorld = Callable[..., Awaitable[World]]


class Measured:
    """A world with a recorder in every place where the gateway puts one."""

    def __init__(self, world: World, *, by_account: bool = False) -> None:
        self.world, self.recorded = world, Recorded()
        config = world.config
        assert config.store is not None
        store = ImageStore.open(config.store, config.public_url, record=self.recorded)
        ledger = MeasuredLedger(world.shaky, self.recorded, by_account=by_account)
        generator = MeasuredGenerator(world.generator, "flux-mini", self.recorded)
        models = {"flux-mini": generator}
        self.service = ImageService(config, catalogue(config), ledger, store, models)

        async def nobody() -> Any:
            return {}

        async def ready() -> bool:
            return True

        app = create_app(self.service, ready, world.ledger.admin, nobody, self.recorded)
        transport = httpx.ASGITransport(app)
        headers = {"authorization": f"Bearer {world.key}"}
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)
        world.clients.append(self.http)

    def counts(self, metric: metrics.Metric) -> dict[tuple[str, ...], float]:
        return dict(self.recorded.counts[metric])

    def seen(self, metric: metrics.Metric) -> dict[tuple[str, ...], int]:
        return {labels: len(found) for labels, found in self.recorded.values[metric].items()}


@pytest.fixture
async def measured(world: World) -> AsyncIterator[Measured]:
    made = Measured(world)
    yield made
    await made.service.drain()


async def test_a_job_is_counted_with_its_images_and_units(measured: Measured) -> None:
    reply = await measured.http.post(GENERATIONS, json={**BODY, "n": 3})
    assert reply.status_code == 200
    assert measured.counts(metrics.IMAGES) == {("flux-mini",): 3}
    assert measured.counts(metrics.UNITS_CAPTURED) == {("flux-mini",): 3 * UNITS_1024}
    assert measured.counts(metrics.HOLDS) == {("flux-mini",): 1}
    assert measured.counts(metrics.HOLDS_ENDED) == {("flux-mini", "captured"): 1}
    assert measured.counts(metrics.JOBS) == {("flux-mini", "json", "ok"): 1}
    assert measured.counts(metrics.REQUESTS) == {(GENERATIONS, "POST", "200"): 1}
    assert measured.seen(metrics.JOB_SECONDS) == {("flux-mini", "json"): 1}
    assert measured.seen(metrics.STORE_PUT_SECONDS) == {(): 3}
    ledger = measured.seen(metrics.LEDGER_SECONDS)
    assert ledger == {("authenticate",): 1, ("hold",): 1, ("capture",): 1}
    assert measured.counts(metrics.ERRORS) == {}


async def test_a_stream_tells_when_its_first_preview_and_image_came(measured: Measured) -> None:
    body = {**BODY, "n": 2, "stream": True, "partial_images": 2}
    reply = await measured.http.post(GENERATIONS, json=body)
    assert reply.text.count("event: image_generation.completed") == 2
    assert measured.seen(metrics.FIRST_PREVIEW_SECONDS) == {("flux-mini",): 1}
    assert measured.seen(metrics.FIRST_IMAGE_SECONDS) == {("flux-mini",): 1}
    assert measured.seen(metrics.JOB_SECONDS) == {("flux-mini", "stream"): 1}
    assert measured.counts(metrics.JOBS) == {("flux-mini", "stream", "ok"): 1}
    assert measured.counts(metrics.IMAGES) == {("flux-mini",): 2}


async def test_a_stream_that_fails_halfway_counts_what_was_delivered(measured: Measured) -> None:
    generator = measured.world.generator
    failing = generator.failing(GenerationFailed("broken"))
    generator.play = generator.showing_before(1, failing)
    await measured.http.post(GENERATIONS, json={**BODY, "n": 2, "stream": True})
    await measured.service.drain()
    assert measured.counts(metrics.JOBS) == {("flux-mini", "stream", "generation_failed"): 1}
    assert measured.counts(metrics.ERRORS) == {(GENERATIONS, "generation_failed"): 1}
    assert measured.counts(metrics.REQUESTS) == {(GENERATIONS, "POST", "200"): 1}
    assert measured.counts(metrics.IMAGES) == {("flux-mini",): 1}
    assert measured.counts(metrics.UNITS_CAPTURED) == {("flux-mini",): UNITS_1024}


async def test_a_job_that_fails_is_released_and_named(measured: Measured) -> None:
    measured.world.generator.act = measured.world.generator.failing(GenerationFailed("broken"))
    assert (await measured.http.post(GENERATIONS, json=BODY)).status_code == 500
    assert measured.counts(metrics.JOBS) == {("flux-mini", "json", "generation_failed"): 1}
    assert measured.counts(metrics.HOLDS_ENDED) == {("flux-mini", "released"): 1}
    assert measured.counts(metrics.ERRORS) == {(GENERATIONS, "generation_failed"): 1}
    assert measured.counts(metrics.IMAGES) == measured.counts(metrics.UNITS_CAPTURED) == {}


async def test_a_cancelled_job_is_no_failure_of_the_model(measured: Measured) -> None:
    measured.world.generator.act = measured.world.generator.hang
    work = asyncio.create_task(measured.http.post(GENERATIONS, json=BODY))
    await measured.world.generator.hanging.wait()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await measured.service.drain()
    assert measured.counts(metrics.JOBS) == {("flux-mini", "json", "cancelled"): 1}
    assert measured.counts(metrics.REQUESTS) == {(GENERATIONS, "POST", "499"): 1}
    assert measured.counts(metrics.HOLDS_ENDED) == {("flux-mini", "released"): 1}


async def test_a_capture_whose_answer_was_lost_counts_once(measured: Measured) -> None:
    measured.world.shaky.lose_answers["capture"] = 2
    reply = await measured.http.post(GENERATIONS, json=BODY)
    assert reply.status_code == 200
    assert measured.counts(metrics.UNITS_CAPTURED) == {("flux-mini",): UNITS_1024}
    assert measured.counts(metrics.LEDGER_OUTAGES) == {("capture",): 2}


async def test_charges_that_are_given_back_for_a_dead_gateway_are_counted(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "GATHER_S", 3600)  # it dies before it has confirmed
    world, nobody_waits = measured.world, Watch(lease_s=0)
    await world.ledger.beat()
    assert (await measured.http.post(GENERATIONS, json=BODY)).status_code == 200
    other = SqlLedger(Database(world.config.ledger), watch=nobody_waits)
    await MeasuredLedger(other, measured.recorded).beat()
    await other.close()
    assert measured.counts(metrics.HOLDS_REFUNDED) == {(): 1}
    assert measured.counts(metrics.UNITS_REFUNDED) == {(): UNITS_1024}
    assert await world.charged() == 0


async def test_a_replay_is_counted_and_charges_nothing(measured: Measured) -> None:
    for _ in range(3):
        headers = {"idempotency-key": "once"}
        reply = await measured.http.post(GENERATIONS, json=BODY, headers=headers)
        assert reply.status_code == 200
    assert measured.counts(metrics.REPLAYS) == {(): 2}
    assert measured.counts(metrics.UNITS_CAPTURED) == {("flux-mini",): UNITS_1024}
    assert sum(measured.counts(metrics.JOBS).values()) == 1


@pytest.mark.parametrize(
    ("path", "body", "route", "status", "code"),
    [
        (GENERATIONS, {"prompt": 7}, GENERATIONS, "400", "invalid_type"),
        (GENERATIONS, {**BODY, "model": "dall-e"}, GENERATIONS, "404", "model_not_found"),
        ("/v1/models/some/model", None, "/v1/models/{model_id}", "404", "model_not_found"),
        ("/v1/images/x/content", None, "/v1/images/{image_id}/content", "404", "image_not_found"),
        ("/wp-login.php", None, "other", "404", "unknown_url"),
        ("/wp-login.php%0A", None, "other", "404", "unknown_url"),
    ],
)
async def test_an_error_is_counted_by_route_and_code(
    measured: Measured, path: str, body: Any, route: str, status: str, code: str
) -> None:
    method = "GET" if body is None else "POST"
    await measured.http.request(method, path, json=body)
    assert measured.counts(metrics.REQUESTS) == {(route, method, status): 1}
    assert measured.counts(metrics.ERRORS) == {(route, code): 1}


async def test_a_made_up_method_makes_no_new_series(measured: Measured) -> None:
    for method in ("BREW", "STEEP"):
        await measured.http.request(method, "/nowhere")
    assert measured.counts(metrics.REQUESTS) == {("other", "other", "404"): 2}


async def test_a_store_that_fails_is_counted(measured: Measured, tmp_path: Path) -> None:
    images = tmp_path / "world-0" / "images"
    images.rmdir()
    images.write_text("no folder any more")
    reply = await measured.http.post(GENERATIONS, json={**BODY, "response_format": "url"})
    assert reply.status_code == 503
    assert measured.counts(metrics.STORE_FAILURES) == {("put",): 1}
    assert measured.counts(metrics.ERRORS) == {(GENERATIONS, "store_unavailable"): 1}


async def test_accounts_are_named_only_where_that_is_asked_for(make_world: MakeWorld) -> None:
    for by_account in (False, True):
        measured = Measured(await make_world(), by_account=by_account)
        await measured.http.post(GENERATIONS, json=BODY)
        account = (measured.world.principal.account_id,)
        expected = {account: UNITS_1024} if by_account else {}
        assert measured.counts(metrics.ACCOUNT_UNITS) == expected
