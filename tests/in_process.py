"""configs/local.yaml served by this test process, without Ray: for what Serve has no part in.

Data flow: a thread with an event loop -> the real ledger, image store, engine and HTTP application
-> uvicorn on a free port of loopback -> clients, as they come to any server.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path

import uvicorn
import yaml

from serve_app.adminschema import ReplicaStatus
from serve_app.config import AppConfig
from serve_app.configfile import load_app_config
from serve_app.engine.core import EngineCore
from serve_app.engine.job import Event, GenerationJob, GenerationResult
from serve_app.engine.open import open_engine
from serve_app.engine.progress import EventFilter
from serve_app.engine.source import model_info
from serve_app.ingress.app import create_app
from serve_app.metering.leases import BEATS
from serve_app.metering.sql import SqlLedger
from serve_app.plan import Catalogue, ServedModel
from serve_app.service import ImageService
from serve_app.storage.store import ImageStore
from tests.conftest import ROOT, Served
from tests.machine import MACHINE, eventually

START_S = 60.0


class EngineGenerator:
    """An engine in the place of a handle to its replicas."""

    def __init__(self, engine: EngineCore) -> None:
        self._engine = engine

    async def generate(self, job: GenerationJob) -> GenerationResult:
        return await self._engine.generate(job)

    async def stream(self, job: GenerationJob) -> AsyncGenerator[Event, None]:
        leaving = EventFilter(job)
        async with aclosing(self._engine.submit(job)) as events:
            async for event in events:
                if leaving.passes(event):
                    yield event

    async def estimate(self, job: GenerationJob) -> float | None:
        return self._engine.estimate(job)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Serve the file until the block ends."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    served = _written(folder, f"http://127.0.0.1:{listener.getsockname()[1]}")
    running = Running(load_app_config(served.config), listener)
    running.start()
    try:
        yield served
    finally:
        running.stop()


def _written(folder: Path, url: str) -> Served:
    """The shipped file with this address, and with folders that do not depend on where one is."""
    data = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    (application,) = data["applications"]
    args = application["args"]
    args["public_url"] = url
    args["ledger"]["url"] = f"sqlite+aiosqlite:///{folder}/data/ledger.db"
    args["store"] |= {
        "url": f"file://{folder}/data/images",
        "signing_key_file": f"{folder}/data/signing.key",
    }
    config = folder / "local.yaml"
    config.write_text(yaml.safe_dump(data))
    return Served(url, args["development"]["key"], folder, config)


class Running:
    """The server and its thread."""

    def __init__(self, config: AppConfig, listener: socket.socket) -> None:
        self._config = config
        self._listener = listener
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=asyncio.run, args=[self._serve()], daemon=True)

    def start(self) -> None:
        self._thread.start()
        eventually(self._started, "the server starts", START_S)

    def stop(self) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(MACHINE.allow(START_S))
        assert not self._thread.is_alive()

    def _started(self) -> bool:
        assert self._thread.is_alive()
        return self._server is not None and self._server.started

    async def _serve(self) -> None:
        config = self._config
        ledger = await SqlLedger.open(config.ledger)
        assert config.development is not None
        assert config.store is not None
        await ledger.admin.ensure_development(config.development)
        store = ImageStore.open(config.store, config.public_url)
        (model,) = config.models
        info = model_info(model.source, model.text_tokens_max)
        engine = await asyncio.to_thread(
            open_engine, model.source, model.engine, model.text_tokens_max
        )
        catalogue = Catalogue((ServedModel(model, info),))
        generators = {model.id: EngineGenerator(engine)}
        service = ImageService(config, catalogue, ledger, store, generators)

        async def fleet() -> Mapping[str, ReplicaStatus]:
            return {model.id: ReplicaStatus(running=1, starting=0, stopping=0, target=1)}

        app = create_app(service, _ready, ledger.admin, fleet)
        beating = asyncio.create_task(_beat(service, config.ledger.gateway_lease_s / BEATS))
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            beating.cancel()
            await service.drain()
            await engine.close()
            await ledger.close()


async def _ready() -> str | None:
    return None


async def _beat(service: ImageService, interval_s: float) -> None:
    while True:
        await service.ledger.beat()
        await asyncio.sleep(interval_s)
