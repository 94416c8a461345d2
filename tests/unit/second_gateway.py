"""One more gateway of the same fleet: the same ledger and store, all else its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from scripted import ScriptedGenerator, ShakyLedger, World, catalogue

from serve_app.ingress.app import create_app
from serve_app.metering.sql import SqlLedger
from serve_app.service import ImageService
from serve_app.storage.store import ImageStore


@asynccontextmanager
async def second_gateway(world: World) -> AsyncIterator[World]:
    config = world.config
    ledger, generator = await SqlLedger.open(config.ledger), ScriptedGenerator()
    store = ImageStore.open(config.store, config.public_url) if config.store else None
    generators = {model.id: generator for model in config.models}
    shaky = ShakyLedger(ledger)
    service = ImageService(config, catalogue(config), shaky, store, generators)

    async def why_not_ready() -> str | None:
        return None

    other = replace(
        world,
        ledger=ledger,
        shaky=shaky,
        store=store,
        generator=generator,
        service=service,
        app=create_app(service, why_not_ready, ledger.admin, world.fleet),
        clients=[],
    )
    try:
        yield other
    finally:
        for client in other.clients:
            await client.aclose()
        await service.drain()
        await ledger.close()
