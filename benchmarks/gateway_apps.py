"""What `benchmarks.gateway` puts under load: plain Starlette, a bare Serve graph, and our gateway.

Data flow: the same reply everywhere, the JSON of one tiny image. `plain` sends it from one process,
`bare` fetches it from a second deployment, and ours does all of a paid generation over an engine
that draws nothing: `Still` stands in for `FluxModel`, here only and never in the product.
"""

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.serve._private.constants import RAY_SERVE_USE_GRPC_BY_DEFAULT
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from serve_app.config import AppConfig
from serve_app.deployments.beats import Beat, with_beats
from serve_app.deployments.gateway import ACTOR_OPTIONS, Gateway
from serve_app.engine.job import Event, Finished, GenerationJob, Queued, Timings
from serve_app.engine.progress import EventFilter
from serve_app.graph import GATEWAY_MAX_ONGOING, MODEL_MAX_ONGOING

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP8z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
"""A PNG of one pixel."""
REPLY_BYTES = 512
"""About what our own reply takes with that image."""


def reply() -> bytes:
    """A reply of the same size as ours."""
    body = {"created": 1, "data": [{"b64_json": base64.b64encode(PIXEL).decode()}], "pad": ""}
    body["pad"] = "." * (REPLY_BYTES - len(json.dumps(body)))
    return json.dumps(body).encode()


async def _answer(request: Request) -> Response:
    await request.body()
    return Response(reply(), media_type="application/json")


plain = Starlette(routes=[Route("/", _answer, methods=["POST"])])


class _BareModel:
    async def generate(self, body: bytes) -> bytes:
        return reply()


class _BareIngress:
    def __init__(self, model: DeploymentHandle) -> None:
        # The handle was made elsewhere, with the transport of that process.
        self._model = model.options(_by_reference=not RAY_SERVE_USE_GRPC_BY_DEFAULT)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return Starlette(routes=[Route("/", self.answer, methods=["POST"])])

    async def answer(self, request: Request) -> Response:
        body = await request.body()
        return Response(await self._model.generate.remote(body), media_type="application/json")


BareModel = serve.deployment(name="BareModel", max_ongoing_requests=MODEL_MAX_ONGOING)(_BareModel)
BareIngress = serve.deployment(name="BareIngress", max_ongoing_requests=GATEWAY_MAX_ONGOING)(
    serve.ingress()(_BareIngress)
)


def bare(options: dict[str, Any]) -> serve.Application:
    """The least that Serve can do with two deployments; `options` are those of the first actor."""
    model = BareModel.options(ray_actor_options={"num_cpus": 0}).bind()
    application: serve.Application = BareIngress.options(ray_actor_options=options).bind(model)
    return application


class Still:
    """Answers every job at once with one pixel an image."""

    async def stream(self, job: GenerationJob) -> AsyncGenerator[Event | Beat, None]:
        async with aclosing(with_beats(self._draw(job))) as messages:
            async for message in messages:
                yield message

    async def _draw(self, job: GenerationJob) -> AsyncGenerator[Event, None]:
        leaving = EventFilter(job)
        if leaving.passes(queued := Queued(job.job_id, 0)):
            yield queued
        for index, seed in enumerate(job.seeds):
            yield Finished(job.job_id, index, seed, PIXEL, Timings(0, 0, 0, 0, 0))


def ours(args: dict[str, Any]) -> serve.Application:
    """The gateway as `graph.build` binds it, over `Still`."""
    config = AppConfig.model_validate(args)
    still = serve.deployment(
        Still,
        name=config.models[0].deployment_name,
        max_ongoing_requests=MODEL_MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
    )
    gateway = Gateway.options(
        max_ongoing_requests=GATEWAY_MAX_ONGOING, ray_actor_options=ACTOR_OPTIONS
    )
    application: serve.Application = gateway.bind(config, {config.models[0].id: still.bind()})
    return application
