"""From a client that hangs up down to the device, in one process: at most one step is wasted."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from engine_kit import Gate, MakeEngine, make_job, until
from scripted import Connection, World

from serve_app.engine.engine import Engine
from serve_app.engine.job import Event, GenerationJob, GenerationResult

STREAM = {"prompt": "a red circle", "size": "128x128", "stream": True, "seed": 1}
STEPS = 8
UNITS = 128 * 128 * STEPS // 4


class InProcess:
    """An engine as the service's generator."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def generate(self, job: GenerationJob) -> GenerationResult:
        return await self.engine.generate(job)

    def stream(self, job: GenerationJob) -> AsyncGenerator[Event, None]:
        return self.engine.submit(job)


def serve_with(world: World, engine: Engine) -> None:
    world.service._generators = {"flux-mini": InProcess(engine)}


async def leave(connection: Connection, request: "asyncio.Task[None]", how: str) -> None:
    if how == "the server says so":
        connection.hang_up()
        await request
    else:
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request


async def calls_of_a_step(engine: Engine, gate: Gate) -> int:
    """Transformer calls until the device is free for others, their first step included."""
    gate.open()
    await engine.generate(make_job("others", steps=1))
    return gate.calls


@pytest.mark.parametrize("how", ["the server says so", "the server cancels the handler"])
async def test_a_client_that_leaves_at_a_preview_wastes_one_step_at_most(
    world: World, make_engine: MakeEngine, gate: Gate, how: str
) -> None:
    engine = make_engine()
    serve_with(world, engine)
    gate.close()
    for _ in range(STEPS // 2):
        gate.let_one_through()
    body = {**STREAM, "num_inference_steps": STEPS, "partial_images": 1}
    connection = Connection(world, body)
    request = connection.open()
    await until(lambda: b"partial_image" in connection.body and gate.calls > STEPS // 2)
    await leave(connection, request, how)
    under_way = STEPS // 2 + 1
    assert await calls_of_a_step(engine, gate) == under_way + 1
    assert engine.stats().samples_running == engine.stats().samples_queued == 0
    balance = await world.balance()
    assert (balance.held, balance.captured) == (0, 0)


async def test_a_client_that_leaves_after_its_first_image_pays_for_that_one(
    world: World, make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine(step_batch_max_samples=1)
    serve_with(world, engine)
    gate.close()
    for _ in range(STEPS):
        gate.let_one_through()
    connection = Connection(world, {**STREAM, "num_inference_steps": STEPS, "n": 3})
    request = connection.open()
    await until(lambda: b"completed" in connection.body and gate.calls > STEPS)
    await leave(connection, request, "the server says so")
    under_way = STEPS + 1
    assert await calls_of_a_step(engine, gate) == under_way + 1
    await world.service.drain()
    balance = await world.balance()
    assert (balance.held, balance.captured) == (0, UNITS)
