"""The endpoints: each reads its input, calls the service, shapes the answer.

Data flow: Starlette request -> `authenticate` -> `read_json_object` -> `parse_request` ->
`ImageService` -> wire model. Handlers decide nothing about money, models or images.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve_app.delivery import Delivery
from serve_app.errors import BadSignature, ImageNotFound, Unavailable
from serve_app.idempotency import HEADER, key_from
from serve_app.ingress.auth import RecentKeys, authenticate
from serve_app.ingress.body import read_json_object
from serve_app.ingress.disconnect import Finally, until_disconnect
from serve_app.ingress.headers import job_headers
from serve_app.ingress.openapi import openapi_document
from serve_app.ingress.sse import EventStream
from serve_app.metering.types import Principal
from serve_app.plan import ServedModel
from serve_app.schema import (
    AccountResponse,
    HealthResponse,
    ImageData,
    ImageRequest,
    ImagesResponse,
    ModelCapabilities,
    ModelList,
    ModelObject,
    QuoteResponse,
    Usage,
    parse_request,
)
from serve_app.service import ImageService


@dataclass
class Api:
    """What the handlers share. `why_not_ready` is None when a model can serve."""

    service: ImageService
    why_not_ready: Callable[[], Awaitable[str | None]]
    started_s: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._keys = RecentKeys(lambda secret: self.service.ledger.authenticate(secret))

    def routes(self) -> list[Route]:
        return [
            Route("/v1/images/generations", self.generate, methods=["POST"]),
            Route("/v1/images/quote", self.quote, methods=["POST"]),
            Route("/v1/images/{image_id}/content", self.content, methods=["GET"]),
            Route("/v1/account", self.account, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model_id:path}", self.model, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
        ]

    async def _principal(self, request: Request) -> Principal:
        development = self.service.config.development is not None
        return await authenticate(request, self._keys, development=development)

    async def generate(self, request: Request) -> Finally | EventStream:
        service = self.service
        principal = await self._principal(request)
        key = key_from(request.headers.getlist(HEADER))
        body = await read_json_object(request, service.config.limits)
        wanted = parse_request(ImageRequest, body)
        request_id = request.state.request_id
        if wanted.stream:
            return EventStream(service.stream(principal, wanted, request_id, key))
        work = service.generate(principal, wanted, request_id, key)
        delivery = await until_disconnect(request.receive, work, service.sent)
        headers = job_headers(
            delivery.plan.model.config.id,
            delivery.units,
            delivery.available_units,
            delivery.rate,
            replayed=delivery.replayed,
        )
        reply = _json(_images_response(delivery), headers)
        return Finally(reply, partial(service.sent, delivery))

    async def quote(self, request: Request) -> Response:
        principal = await self._principal(request)
        body = await read_json_object(request, self.service.config.limits)
        quote = await self.service.quote(principal, parse_request(ImageRequest, body))
        plan = quote.plan
        answer = QuoteResponse(
            model=plan.model.config.id,
            size=plan.size,
            steps=plan.steps,
            n=plan.n,
            units=plan.units,
            affordable=quote.affordable,
            estimated_s=None if quote.estimated_s is None else round(quote.estimated_s, 2),
        )
        return _json(answer)

    async def content(self, request: Request) -> Response:
        store = self.service.store
        image_id = request.path_params["image_id"]
        query = request.query_params
        if store is None:
            raise ImageNotFound("This server keeps no images.")
        if len(query.multi_items()) != len(query):  # whoever reads the other one is deceived
            raise BadSignature("The image URL names a parameter twice.")
        image = await store.read(image_id, query.get("exp", ""), query.get("sig", ""))
        # A signed URL is a secret: shared caches must not keep what it opens.
        left_s = max(0, int(query["exp"]) - int(time.time()))
        headers = {"cache-control": f"private, max-age={left_s}, immutable"}
        return Response(image.data, media_type=image.content_type, headers=headers)

    async def account(self, request: Request) -> Response:
        principal = await self._principal(request)
        balance = await self.service.ledger.balance(principal.account_id)
        return _json(
            AccountResponse(
                id=balance.id,
                name=balance.name,
                granted=balance.granted,
                captured=balance.captured,
                held=balance.held,
                available=balance.available,
            )
        )

    async def models(self, request: Request) -> Response:
        principal = await self._principal(request)
        models = self.service.catalogue.among(principal.models)
        return _json(ModelList(data=[self._model_object(model) for model in models]))

    async def model(self, request: Request) -> Response:
        principal = await self._principal(request)
        name = request.path_params["model_id"]
        return _json(self._model_object(self.service.catalogue.find(name, principal.models)))

    async def health(self, request: Request) -> Response:
        return _json(HealthResponse(message="ok"))

    async def ready(self, request: Request) -> Response:
        await self.service.ledger.ping()
        if reason := await self.why_not_ready():
            raise Unavailable(reason)
        return _json(HealthResponse(message="ready"))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi_document(self.service.config.public_url))

    def _model_object(self, model: ServedModel) -> ModelObject:
        config, info = model.config, model.info
        return ModelObject(
            id=config.id,
            created=self.started_s,
            owned_by=config.owned_by,
            aliases=list(config.aliases),
            capabilities=ModelCapabilities(
                size_multiple=info.size_multiple_px,
                min_edge=config.min_edge_px,
                max_edge=config.max_edge_px,
                max_pixels=config.max_pixels,
                default_size=config.default_size,
                max_images=config.max_images,
                reference_steps=config.reference_steps,
                max_steps=config.max_steps,
                quality_steps=config.quality_steps,
                guidance=info.guidance,
                text_tokens_max=info.text_tokens_max,
                prompt_max_chars=config.prompt_max_chars,
            ),
        )


def _json(answer: BaseModel, headers: dict[str, str] | None = None) -> Response:
    content = answer.model_dump_json(exclude_none=True)
    return Response(content, media_type="application/json", headers=headers)


def _images_response(delivery: Delivery) -> ImagesResponse:
    plan = delivery.plan
    return ImagesResponse(
        created=delivery.created_s,
        data=[ImageData(url=image.url, b64_json=image.b64_json) for image in delivery.images],
        model=plan.model.config.id,
        size=plan.size,
        quality=plan.quality,
        output_format=plan.output_format,
        seeds=list(plan.seeds),
        steps=plan.steps,
        usage=Usage.of(delivery.units),
    )
