"""/openapi.json: a valid document of exactly what is served."""

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from scripted import World

from serve_app.errors import GenerationFailed, all_error_classes
from serve_app.ingress.admin import AdminApi
from serve_app.ingress.openapi import openapi_document
from serve_app.ingress.routes import Api
from serve_app.schema import ImageRequest


@pytest.fixture
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(openapi_document("http://test")))
    return found


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [item["operationId"] for path in document["paths"].values() for item in path.values()]
    assert len(set(ids)) == len(ids)


async def test_the_document_is_served_and_names_the_public_url(
    world: World, document: dict[str, Any]
) -> None:
    reply = await world.client(None).get("/openapi.json")
    assert reply.json() == document
    assert document["servers"] == [{"url": "http://test"}]


def test_the_document_lists_exactly_the_routes(world: World, document: dict[str, Any]) -> None:
    async def ready() -> bool:
        return True

    served = {
        (re.sub(r":path", "", route.path), method.lower())
        for route in [
            *Api(world.service, ready).routes(),
            *AdminApi(world.service, world.ledger.admin, world.fleet).routes(),
        ]
        for method in route.methods or ()
        if method != "HEAD" and route.path != "/openapi.json"
    }
    listed = {(path, method) for path, item in document["paths"].items() for method in item}
    assert listed == served


def test_the_document_names_every_field_of_a_request(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["ImageRequest"]
    assert set(schema["properties"]) == set(ImageRequest.model_fields)
    assert schema["required"] == ["prompt"]
    for name, field in schema["properties"].items():
        assert field["description"], name
        assert name == "prompt" or {"type": "null"} in field["anyOf"]


def test_a_keyed_operation_lists_the_errors_of_keys(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            keyed = operation["security"] == [{"bearer": []}]
            assert ({"401", "403"} <= set(operation["responses"])) == keyed, path


def test_every_status_of_the_error_tree_is_described(document: dict[str, Any]) -> None:
    listed = {
        int(status)
        for item in document["paths"].values()
        for operation in item.values()
        for status in operation["responses"]
    }
    assert {cls.status for cls in all_error_classes()} <= listed


async def test_the_replies_are_what_the_document_says(
    world: World, document: dict[str, Any]
) -> None:
    operations = [
        ("post", "/v1/images/generations", {"json": {"prompt": "x"}}),
        ("post", "/v1/images/quote", {"json": {"prompt": "x"}}),
        ("get", "/v1/account", {}),
        ("get", "/v1/models", {}),
        ("get", "/v1/models/flux-mini", {}),
        ("get", "/health", {}),
        ("get", "/ready", {}),
        ("get", "/admin/v1/status", {}),
        ("get", "/admin/v1/accounts", {}),
        ("get", "/admin/v1/accounts/alice", {}),
        ("get", "/admin/v1/keys", {}),
        ("get", "/admin/v1/entries", {}),
        ("get", "/admin/v1/acts", {}),
        ("get", "/admin/v1/audit", {}),
        ("get", "/admin/v1/usage", {}),
        ("get", "/v1/usage", {}),
    ]
    made = await world.ledger.admin.create_key("alice", scopes=["images", "admin"])
    http = world.client(made.secret)
    for method, path, options in operations:
        reply = await http.request(method, path, **options)  # type: ignore[arg-type]
        listed = path.replace("flux-mini", "{model_id}").replace("alice", "{account}")
        answers = document["paths"][listed][method]["responses"]
        schema = answers["200"]["content"]["application/json"]["schema"]
        validator = Draft202012Validator({**schema, "components": document["components"]})
        validator.validate(reply.json())
    error = await world.client(None).get("/v1/account")
    schema = {"$ref": "#/components/schemas/ErrorBody", "components": document["components"]}
    Draft202012Validator(schema).validate(error.json())


async def test_every_event_of_a_stream_is_what_the_document_says(
    world: World, document: dict[str, Any]
) -> None:
    answers = document["paths"]["/v1/images/generations"]["post"]["responses"]
    schema = answers["200"]["content"]["text/event-stream"]["schema"]
    validator = Draft202012Validator({**schema, "components": document["components"]})
    world.generator.play = world.generator.showing_before(
        1, world.generator.failing(GenerationFailed("x"))
    )
    failed = await world.draw(stream=True, n=2)
    world.generator.play = world.generator.show
    whole = await world.draw(stream=True, n=2, partial_images=1)
    data = [
        json.loads(line.removeprefix("data: "))
        for line in (failed.text + whole.text).split("\n")
        if line.startswith("data: ")
    ]
    assert len(data) == 2 + 4
    for event in data:
        validator.validate(event)


def test_openais_own_keys_are_required_in_events(document: dict[str, Any]) -> None:
    common = {"type", "b64_json", "created_at", "size", "quality", "background", "output_format"}
    schemas = document["components"]["schemas"]
    assert common | {"partial_image_index"} <= set(schemas["PartialImageEvent"]["required"])
    assert common | {"usage"} <= set(schemas["CompletedEvent"]["required"])
