"""`/openapi.json`, generated from `schema.py`: complete enough to drive a client or a fuzzer.

Data flow: wire models + the table of operations below -> OpenAPI 3.1. Imports what describes the
wire only.
"""

import re
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve_app import __version__
from serve_app.eventschema import CompletedEvent, PartialImageEvent, ProgressEvent, QueuedEvent
from serve_app.idempotency import HEADER
from serve_app.ingress.adminoperations import ADMIN_OPERATIONS, Operation
from serve_app.metering.types import IDEMPOTENCY_KEY_CHARS_MAX
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
    409: "The idempotency key belongs to another request, or its first request still runs.",
    408: "The body took too long to arrive.",
    410: "The image URL, or the images of an idempotency key, have expired.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "Too many requests or images at once with this key, or the account's budget is spent.",
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
_IDEMPOTENCY_KEY = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "Your name for this request: sent again, it is answered and not done again.",
    "schema": {
        "type": "string",
        "pattern": "^[!-~]+$",
        "minLength": 1,
        "maxLength": IDEMPOTENCY_KEY_CHARS_MAX,
    },
}
_COMMON = (405, 500, 503)
_KEYED = (401, 403, *_COMMON)
_POSTED = (400, 404, 408, 413, 415, *_KEYED)
_DRAWN = (402, 409, 410, 429, 504, *_POSTED)

# method, path, summary, request body, reply, errors, needs a key
_OPERATIONS = (
    Operation(
        "post", "/v1/images/generations", "Draw images", ImageRequest, ImagesResponse, _DRAWN, True
    ),
    Operation(
        "post", "/v1/images/quote", "Price a request", ImageRequest, QuoteResponse, _POSTED, True
    ),
    Operation(
        "get",
        "/v1/images/{image_id}/content",
        "An image, by signed URL",
        None,
        None,
        (403, 404, 410, *_COMMON),
        False,
    ),
    Operation(
        "get", "/v1/account", "Balance in compute units", None, AccountResponse, _KEYED, True
    ),
    Operation("get", "/v1/models", "List models", None, ModelList, _KEYED, True),
    Operation(
        "get",
        "/v1/models/{model_id}",
        "One model and what it accepts",
        None,
        ModelObject,
        (404, *_KEYED),
        True,
    ),
    Operation("get", "/health", "Liveness", None, HealthResponse, _COMMON, False),
    Operation("get", "/ready", "Readiness", None, HealthResponse, _COMMON, False),
    *ADMIN_OPERATIONS,
)


@cache
def openapi_document(server_url: str) -> dict[str, Any]:
    """The whole document, as plain JSON types."""
    requests = {one.body for one in _OPERATIONS if one.body is not None}
    replies = {one.reply for one in _OPERATIONS if one.reply is not None} | set(_EVENTS)
    _, definitions = models_json_schema(
        [
            *((model, "validation") for model in sorted(requests, key=lambda m: m.__name__)),
            *((model, "serialization") for model in sorted(replies, key=lambda m: m.__name__)),
        ],
        by_alias=False,
        ref_template=_REF,
    )
    paths: dict[str, Any] = {}
    for one in _OPERATIONS:
        operation: dict[str, Any] = {
            "summary": one.summary,
            "operationId": one.summary.lower().replace(" ", "_").replace(",", ""),
            "responses": _responses(one),
            "security": [{"bearer": []}] if one.keyed else [],
        }
        if parameters := _parameters(one):
            operation["parameters"] = parameters
        if one.body is not None:
            operation["requestBody"] = {"required": True, "content": _content(one.body)}
        paths.setdefault(one.path, {})[one.method] = operation
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


def _responses(operation: Operation) -> dict[str, Any]:
    reply = operation.reply
    images = {
        f"image/{kind}": {"schema": {"type": "string", "format": "binary"}}
        for kind in ("png", "jpeg", "webp")
    }
    content = images if reply is None else _content(reply)
    if reply is ImagesResponse:
        events = [{"$ref": _REF.format(model=event.__name__)} for event in _EVENTS]
        content = {**content, "text/event-stream": {"schema": {"oneOf": events}}}
    if operation.csv:
        content = {**content, "text/csv": {"schema": {"type": "string"}}}
    success = "Success." if reply is not ImagesResponse else _STREAMED
    found: dict[str, Any] = {str(operation.status): {"description": success, "content": content}}
    for status in sorted(set(operation.errors)):
        found[str(status)] = {"description": _ERRORS[status], "content": _content(ErrorBody)}
    return found


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    named = [(name, "string") for name in re.findall(r"{(\w+)}", operation.path)]
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": kind}}
        for name, kind in named
    ]
    if "{image_id}" in operation.path:
        for name, kind in (("exp", "integer"), ("sig", "string")):
            found.append({"name": name, "in": "query", "required": True, "schema": {"type": kind}})
    if 409 in operation.errors:
        found.append(_IDEMPOTENCY_KEY)
    if operation.query is not None:
        for name, schema in operation.query.model_json_schema()["properties"].items():
            description = schema.pop("description")
            found.append(
                {"name": name, "in": "query", "description": description, "schema": schema}
            )
    return found
