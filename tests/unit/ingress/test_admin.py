"""The operator's endpoints: who may ask, and what the fleet is said to be doing."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from scripted import UNITS_1024, Connection, World, error_of
from waiting import within

from serve_app.engine.job import GenerationJob, GenerationResult
from serve_app.errors import Unavailable

MakeWorld = Callable[..., Awaitable[World]]
STATUS = "/admin/v1/status"
REPLICAS = {"running": 2, "starting": 1, "stopping": 0, "target": 3}


async def admin_key(world: World, *scopes: str) -> str:
    made = await world.ledger.admin.create_key("alice", scopes=scopes or ["admin"])
    return made.secret


async def status(world: World) -> dict[str, Any]:
    """The one model's status, asked with a key that opens nothing else."""
    reply = await world.client(await admin_key(world)).get(STATUS)
    assert reply.status_code == 200, reply.text
    (model,) = reply.json()["models"]
    found: dict[str, Any] = model
    return found


async def test_an_idle_model_shows_its_replicas_and_no_work(world: World) -> None:
    assert await status(world) == {
        "id": "flux-mini",
        "replicas": REPLICAS,
        "num_gpus": 0.0,
        "open_holds": 0,
        "held_images": 0,
        "held_units": 0,
    }


async def test_work_is_what_the_open_holds_hold_and_ends_with_them(world: World) -> None:
    drawing = asyncio.Semaphore(0)

    async def draw(job: GenerationJob) -> GenerationResult:
        drawing.release()
        return await world.generator.hang(job)

    world.generator.act = draw
    waiting = [Connection(world, {"prompt": "x", "n": n}) for n in (1, 3)]
    tasks = [connection.open() for connection in waiting]
    async with within("both jobs to be drawn"):
        for _ in waiting:  # a job is held before it is drawn
            await drawing.acquire()
    found = await status(world)
    assert (found["open_holds"], found["held_images"]) == (2, 4)
    assert found["held_units"] == 4 * UNITS_1024
    for connection in waiting:
        connection.hang_up()
    await asyncio.gather(*tasks, return_exceptions=True)
    await world.service.drain()
    found = await status(world)
    assert (found["open_holds"], found["held_images"], found["held_units"]) == (0, 0, 0)


async def test_captured_work_is_done_work(world: World) -> None:
    await world.draw(n=2)
    assert (await status(world))["open_holds"] == 0


async def test_a_model_that_is_not_deployed_has_no_target(world: World) -> None:
    nothing = world.replicas["flux-mini"].model_copy(update={"running": 0, "target": None})
    world.replicas["flux-mini"] = nothing
    assert (await status(world))["replicas"] == {**REPLICAS, "running": 0, "target": None}


async def test_every_model_is_listed_in_the_configs_order(make_world: MakeWorld) -> None:
    models = [{"id": "b"}, {"id": "a", "num_gpus": 0.5}]
    world = await make_world(models=[{**one, "source": "random:tiny-schnell"} for one in models])
    world.replicas = {name: world.replicas["flux-mini"] for name in ("a", "b")}
    reply = await world.client(await admin_key(world)).get(STATUS)
    listed = [(model["id"], model["num_gpus"]) for model in reply.json()["models"]]
    assert listed == [("b", 0.0), ("a", 0.5)]


async def test_a_key_for_images_is_refused(world: World) -> None:
    reply = await world.http.get(STATUS)
    assert (reply.status_code, error_of(reply)["code"]) == (403, "insufficient_scope")


async def test_a_key_for_the_status_only_draws_nothing(world: World) -> None:
    http = world.client(await admin_key(world))
    reply = await http.post("/v1/images/generations", json={"prompt": "x"})
    assert (reply.status_code, error_of(reply)["code"]) == (403, "insufficient_scope")
    assert world.generator.jobs == []


@pytest.mark.parametrize("key", [None, "sk-wrong"])
async def test_without_a_good_key_the_answer_is_401(world: World, key: str | None) -> None:
    assert (await world.client(key).get(STATUS)).status_code == 401


async def test_a_controller_that_does_not_answer_is_a_503(world: World) -> None:
    async def silent() -> Any:
        raise Unavailable("The replicas are not known right now.")

    world.ask_fleet = silent
    reply = await world.client(await admin_key(world)).get(STATUS)
    assert (reply.status_code, error_of(reply)["code"]) == (503, "service_unavailable")
    assert int(reply.headers["retry-after"]) > 0
