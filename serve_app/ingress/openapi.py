"""`/openapi.json`, generated from `schema.py`: complete enough to drive a client or a fuzzer.

Data flow: wire models + the table of operations below -> OpenAPI 3.1. Imports wire models only.
"""

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve_app import __version__
from serve_app.adminschema import StatusResponse
from serve_app.eventschema import CompletedEvent, PartialImageEvent, ProgressEvent, QueuedEvent
from serve_app.schema import (
    AccountResponse,
    ErrorBody,
    HealthResponse,
    ImageRequest,
    ImagesResponse,
    ModelList,
    ModelObject,
    QuoteResponse,
)

_REF = "#/components/schemas/{model}"
_STREAMED = (
    "The images; with `stream` server-sent events, of which the schema shows one `data:` each."
)
_ERRORS = {
    400: "Invalid request; `param` names the field.",
    401: "Missing, unknown, revoked or expired API key.",
    402: "The account cannot cover the job's compute units.",
    403: "The API key lacks the scope, or the signature is wrong.",
    404: "No such model, image or route.",
    405: "Method not allowed.",
    408: "The body took too long to arrive.",
    410: "The image URL has expired.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    500: "The model failed; nothing was charged.",
    503: "Overloaded, starting or a dependency is down; see `Retry-After`.",
    504: "Not ready in time; nothing was charged.",
}
_EVENTS: tuple[type[BaseModel], ...] = (
    PartialImageEvent,
    CompletedEvent,
    QueuedEvent,
    ProgressEvent,
    ErrorBody,
)
"""What the `data:` of one event of a stream may hold."""
_COMMON = (405, 500, 503)
_KEYED = (401, 403, *_COMMON)
_POSTED = (400, 402, 404, 408, 413, 415, 504, *_KEYED)

# method, path, summary, request body, reply, errors, needs a key
_OPERATIONS: tuple[
    tuple[str, str, str, type[BaseModel] | None, type[BaseModel] | None, tuple[int, ...], bool],
    ...,
] = (
    ("post", "/v1/images/generations", "Draw images", ImageRequest, ImagesResponse, _POSTED, True),
    ("post", "/v1/images/quote", "Price a request", ImageRequest, QuoteResponse, _POSTED, True),
    (
        "get",
        "/v1/images/{image_id}/content",
        "An image, by signed URL",
        None,
        None,
        (403, 404, 410, *_COMMON),
        False,
    ),
    ("get", "/v1/account", "Balance in compute units", None, AccountResponse, _KEYED, True),
    ("get", "/v1/models", "List models", None, ModelList, _KEYED, True),
    (
        "get",
        "/v1/models/{model_id}",
        "One model and what it accepts",
        None,
        ModelObject,
        (404, *_KEYED),
        True,
    ),
    ("get", "/admin/v1/status", "Replicas and open work", None, StatusResponse, _KEYED, True),
    ("get", "/health", "Liveness", None, HealthResponse, _COMMON, False),
    ("get", "/ready", "Readiness", None, HealthResponse, _COMMON, False),
)


@cache
def openapi_document(server_url: str) -> dict[str, Any]:
    """The whole document, as plain JSON types."""
    requests: tuple[type[BaseModel], ...] = (ImageRequest,)
    replies = {reply for *_, reply, _, _ in _OPERATIONS if reply is not None} | set(_EVENTS)
    _, definitions = models_json_schema(
        [
            *((model, "validation") for model in requests),
            *((model, "serialization") for model in sorted(replies, key=lambda m: m.__name__)),
        ],
        by_alias=False,
        ref_template=_REF,
    )
    paths: dict[str, Any] = {}
    for method, path, summary, body, reply, errors, keyed in _OPERATIONS:
        operation: dict[str, Any] = {
            "summary": summary,
            "operationId": summary.lower().replace(" ", "_").replace(",", ""),
            "responses": _responses(reply, errors),
            "security": [{"bearer": []}] if keyed else [],
        }
        if parameters := _parameters(path):
            operation["parameters"] = parameters
        if body is not None:
            operation["requestBody"] = {"required": True, "content": _content(body)}
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "flux-serve",
            "version": __version__,
            "description": "Metered, OpenAI-compatible image generation.",
        },
        "servers": [{"url": server_url}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _responses(reply: type[BaseModel] | None, errors: tuple[int, ...]) -> dict[str, Any]:
    images = {
        f"image/{kind}": {"schema": {"type": "string", "format": "binary"}}
        for kind in ("png", "jpeg", "webp")
    }
    content = images if reply is None else _content(reply)
    if reply is ImagesResponse:
        events = [{"$ref": _REF.format(model=event.__name__)} for event in _EVENTS]
        content = {**content, "text/event-stream": {"schema": {"oneOf": events}}}
    success = "Success." if reply is not ImagesResponse else _STREAMED
    found: dict[str, Any] = {"200": {"description": success, "content": content}}
    for status in sorted(set(errors)):
        found[str(status)] = {"description": _ERRORS[status], "content": _content(ErrorBody)}
    return found


def _parameters(path: str) -> list[dict[str, Any]]:
    def parameter(name: str, where: str, kind: str) -> dict[str, Any]:
        return {"name": name, "in": where, "required": True, "schema": {"type": kind}}

    if "{image_id}" in path:
        return [
            parameter("image_id", "path", "string"),
            parameter("exp", "query", "integer"),
            parameter("sig", "query", "string"),
        ]
    return [parameter("model_id", "path", "string")] if "{model_id}" in path else []
