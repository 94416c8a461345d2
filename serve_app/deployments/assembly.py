"""The parts of a gateway: ledger, store, model handles, service and HTTP application, wired.

Data flow: `AppConfig` and handles -> `assemble` -> `Assembly`, which `Gateway` runs. A module of
its own, as it loads SQLAlchemy and everything else: Serve builds the graph in a process that needs
only the classes of deployments, and a start waits for that. `graph` must not import this.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serve_app.config import AppConfig
from serve_app.deployments.fleet import Fleet
from serve_app.deployments.gatewaywatch import watch_forever
from serve_app.deployments.generator import HandleGenerator
from serve_app.deployments.readiness import Readiness
from serve_app.engine.source import model_info
from serve_app.ingress.app import create_app
from serve_app.measured import MeasuredGenerator
from serve_app.metering.measured import MeasuredLedger
from serve_app.metering.sql import SqlLedger
from serve_app.metrics import REPLICA_DEATHS, Recorder
from serve_app.plan import Catalogue, ServedModel
from serve_app.service import ImageService
from serve_app.storage.store import ImageStore
from serve_app.storage.sweep import sweep_forever
from serve_app.tracing import Tracer


@dataclass(frozen=True)
class Assembly:
    """What one gateway consists of."""

    config: AppConfig
    record: Recorder
    ledger: SqlLedger
    store: ImageStore | None
    fleet: Fleet
    ready: Readiness
    service: ImageService

    def watch(self) -> Coroutine[Any, Any, None]:
        """Record gauges for ever."""
        return watch_forever(self.ledger, self.fleet, self.record, self.config)

    def sweep_images(self) -> Coroutine[Any, Any, None] | None:
        """Delete expired images for ever; None where there is nothing to do."""
        section = self.config.store
        if self.store is None or section is None or section.sweep_interval_s is None:
            return None
        return sweep_forever(self.store, section.sweep_interval_s)

    def app(self, tracer: Tracer) -> ASGIApp:
        """The HTTP application."""
        return create_app(
            self.service, self.ready, self.ledger.admin, self.fleet, self.record, tracer
        )


async def assemble(
    config: AppConfig, models: dict[str, DeploymentHandle], record: Recorder
) -> Assembly:
    """Open ledger and store, and wire everything."""
    ledger = await SqlLedger.open(config.ledger)
    if config.development is not None:
        await ledger.admin.ensure_development(config.development)
    store = None
    if config.store is not None:
        store = ImageStore.open(config.store, config.public_url, record=record)
    served = [
        ServedModel(model, await asyncio.to_thread(model_info, model.source, model.text_tokens_max))
        for model in config.models
    ]
    fleet = Fleet(config.models)
    generators = {
        name: MeasuredGenerator(
            HandleGenerator(
                handle,
                partial(fleet.bounds, name),
                partial(record.count, REPLICA_DEATHS, model=name),
            ),
            name,
            record,
        )
        for name, handle in models.items()
    }
    measured = MeasuredLedger(ledger, record, by_account=config.metrics.by_account)
    service = ImageService(config, Catalogue(tuple(served)), measured, store, generators)
    return Assembly(config, record, ledger, store, fleet, Readiness(fleet), service)
