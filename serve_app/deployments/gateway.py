"""Gateway: the ingress deployment. Owns the ledger, the store and the HTTP application.

Data flow: Serve's proxy -> ASGI app (`ingress.create_app`) -> `ImageService` -> model handles.
Holds no request state, so any number of replicas may run; each of them sweeps expired holds,
old replies and images.
"""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import AppConfig
from serve_app.deployments.logs import flush_logs, join_serves_logs
from serve_app.deployments.proxy import warn_if_unguarded
from serve_app.deployments.ray_compat import DIRECT_INGRESS
from serve_app.deployments.rayrecorder import gateway_recorder
from serve_app.deployments.traces import LIBRARY_LOGGER, open_tracer
from serve_app.errors import AppError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

logger = logging.getLogger(__name__)

ONE_LOOP = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""Serve's replica code, ours and the router's on one event loop: three loops in three threads wake
each other for every message, and share one interpreter (ADR 0023)."""
GRPC = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "1073741824",
    "RAY_grpc_client_keepalive_timeout_ms": "20000",
    "no_grpc_proxy": "0.0.0.0/0,::/0",
}
"""Jobs go to replicas by gRPC on that loop, not by actor calls through Ray's threads (ADR 0025).
An image is one message, for which Serve's 4 MiB are too few. A machine that does not acknowledge is
given up after 20 s, not Ray's 120. A site's `http_proxy` is not for calls inside the cluster, but
gRPC would use it."""
ACTOR_OPTIONS = {"num_cpus": 0, "runtime_env": {"env_vars": ONE_LOOP | GRPC}}
"""Waiting needs no CPU. A `ray_actor_options` in a configuration replaces all of it."""
FLUSH_S = 1.0
"""How long metrics gather: far less than Ray takes to send them on (10 s)."""
DRAIN_S = 10.0
"""How long a stopping gateway waits for resolutions under way; the rest is left to expiry."""


class _Gateway:
    # Serve awaits an async constructor; mypy knows only Python's own rule.
    async def __init__(  # type: ignore[misc]
        self, config: AppConfig, models: dict[str, DeploymentHandle]
    ) -> None:
        join_serves_logs(also=(LIBRARY_LOGGER,), gather=True)
        self.tracer = open_tracer(config.tracing)
        warn_if_unguarded(DIRECT_INGRESS)
        from serve_app.deployments.assembly import assemble  # not above: see its docstring

        self.config = config
        self.record = gateway_recorder()
        self.parts = await assemble(config, models, self.record)
        self.ledger, self.fleet = self.parts.ledger, self.parts.fleet
        self.service = self.parts.service
        self._watcher = asyncio.create_task(self.parts.watch())
        self._ready_watcher = asyncio.create_task(self.parts.ready.watch())
        self._sweeper = asyncio.create_task(self._sweep_holds())
        self._beater = asyncio.create_task(self._beat())
        self._flusher = asyncio.create_task(self._flush())
        sweeping = self.parts.sweep_images()
        self._image_sweeper = asyncio.create_task(sweeping) if sweeping is not None else None

    def __serve_build_asgi_app__(self) -> "ASGIApp":
        return self.parts.app(self.tracer)

    async def _sweep_holds(self) -> None:
        """Expire holds that a crash left open, forget old replies: at start, then regularly."""
        store = self.config.store
        while True:
            try:
                expired = await self.service.ledger.expire_holds()
                if expired:
                    logger.warning("expired %d unresolved holds", expired)
                if store is not None:
                    ttl = timedelta(seconds=store.idempotency_ttl_s)
                    await self.ledger.forget_replies(datetime.now(UTC) - ttl)
            except AppError:
                logger.warning("expired holds were not swept: the ledger is unavailable")
            await asyncio.sleep(self.config.ledger.sweep_interval_s)

    async def _beat(self) -> None:
        """Let the other gateways know that this one lives, and end what those left that died."""
        from serve_app.metering.leases import BEATS

        while True:
            try:
                taken = await self.service.ledger.beat()
                if taken.expired:
                    logger.warning("released %d holds of gateways that died", taken.expired)
                if taken.refunded:
                    logger.warning("refunded %d charges of gateways that died", taken.refunded)
            except AppError:
                logger.warning("gave no sign of life: the ledger is unavailable")
            except Exception:  # of one broken row; without a sign of life all its holds would go
                logger.exception("a beat failed")
            await asyncio.sleep(self.config.ledger.gateway_lease_s / BEATS)

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                self.record.flush()
            except Exception:  # a metric that Ray refuses must not stop all others
                logger.exception("metrics were lost")

    async def __del__(self) -> None:
        """Serve awaits this once the gateway has drained its requests."""
        if not hasattr(self, "_sweeper"):
            flush_logs()
            return  # the constructor failed
        self._sweeper.cancel()
        self._beater.cancel()
        self._flusher.cancel()
        self._watcher.cancel()
        self._ready_watcher.cancel()
        if self._image_sweeper is not None:
            self._image_sweeper.cancel()
        try:
            async with asyncio.timeout(DRAIN_S):
                await self.service.drain()
                await self.ledger.close()
        except TimeoutError:
            logger.warning("stopped with unresolved holds: they expire by themselves")
        self.record.flush()
        await asyncio.to_thread(self.tracer.close)
        flush_logs()


Gateway = serve.deployment(name="Gateway")(serve.ingress()(_Gateway))
