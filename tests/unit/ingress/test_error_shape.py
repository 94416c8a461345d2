"""Every failure of every route has OpenAI's error body, with its status, type and code."""

import itertools
import re
from collections.abc import Awaitable, Callable

import pytest
from scripted import World, error_of

from serve_app import errors
from serve_app.errors import AppError, Unavailable, all_error_classes
from serve_app.ingress.admin import AdminApi
from serve_app.ingress.errors import error_response
from serve_app.ingress.routes import Api

MakeWorld = Callable[..., Awaitable[World]]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
PATHS = [
    "/v1/images/generations",
    "/v1/images/quote",
    "/v1/images/img_x.png/content",
    "/v1/account",
    "/v1/models",
    "/v1/models/nope",
    "/health",
    "/ready",
    "/openapi.json",
    "/v1/usage",
    "/admin/v1/status",
    "/admin/v1/accounts",
    "/admin/v1/accounts/nope",
    "/admin/v1/accounts/nope/disable",
    "/admin/v1/accounts/nope/enable",
    "/admin/v1/accounts/nope/budgets",
    "/admin/v1/grants",
    "/admin/v1/keys",
    "/admin/v1/keys/nope/limits",
    "/admin/v1/keys/nope/revoke",
    "/admin/v1/entries",
    "/admin/v1/acts",
    "/admin/v1/usage",
    "/admin/v1/audit",
    # none of these exists
    "/v1",
    "/v1/",
    "/v1/images/edits",
    "/v1/images/variations",
    "/v1/images/generations/",
    "/v1/chat/completions",
    "/v1/nodes",
    "/v1/account/../account",
    "//v1/account",
    "/%00",
    "/%FF%FE",
    "/" + "x" * 5000,
]
PUBLIC = {"/health", "/ready", "/openapi.json"}


def test_the_walk_knows_every_route(world: World) -> None:
    async def ready() -> bool:
        return True

    admin = AdminApi(world.service, world.ledger.admin, world.fleet)
    routes = {route.path for route in [*Api(world.service, ready).routes(), *admin.routes()]}
    filled = {
        re.sub(r"{\w+(:path)?}", "nope", path.replace("{image_id}", "img_x.png")) for path in routes
    }
    assert filled <= set(PATHS)


@pytest.mark.parametrize("keyed", [False, True])
async def test_every_route_and_method_answers_well_or_in_the_error_shape(
    world: World, keyed: bool, subtests: pytest.Subtests
) -> None:
    http = world.client(world.key if keyed else None)
    for method, path in itertools.product(METHODS, PATHS):
        with subtests.test(method=method, path=path[:30]):
            reply = await http.request(method, path)
            if reply.status_code == 200:
                assert method == "GET"
                assert keyed or path in PUBLIC
                continue
            error = error_of(reply)
            expected = {400, 401, 403, 404, 405, 415}
            assert reply.status_code in expected, reply.text
            assert error["type"] == "invalid_request_error"
            assert reply.headers["x-should-retry"] == "false"
            if reply.status_code == 405:
                assert error["code"] == "method_not_allowed"
                assert set(reply.headers["allow"].split(", ")) <= {"GET", "HEAD", "POST", "PUT"}
            if reply.status_code == 401:
                assert (error["code"], error["param"]) == (None, None)


async def test_an_unknown_route_says_so_whatever_the_host_header(world: World) -> None:
    for host in ("test", "[", "evil/path?", "a b", ""):
        reply = await world.client(None).get("/nope", headers={"host": host})
        assert (reply.status_code, error_of(reply)["code"]) == (404, "unknown_url"), host
        assert error_of(reply)["message"] == "Unknown request URL: GET /nope."


@pytest.mark.parametrize("error_class", all_error_classes(), ids=lambda cls: cls.__name__)
async def test_an_error_of_each_class_reaches_the_client_as_its_class_says(
    world: World, error_class: type[AppError]
) -> None:
    error = error_class("Because of this.").at("some_field")
    world.generator.act = world.generator.failing(error)
    reply = await world.draw()
    assert reply.status_code == error_class.status
    assert error_of(reply) == {
        "message": "Because of this.",
        "type": error_class.type,
        "param": "some_field",
        "code": error_class.code,
    }
    assert reply.headers["x-should-retry"] == str(error_class.retryable).lower()
    assert ("retry-after" in reply.headers) == issubclass(error_class, Unavailable)
    assert ("www-authenticate" in reply.headers) == (error_class.status == 401)
    assert await world.charged() == 0


# Section 4 of the HTTP contract: what each failure is called.
CONTRACT = [
    (errors.MissingKey, 401, "invalid_request_error", None),
    (errors.InvalidKey, 401, "invalid_request_error", "invalid_api_key"),
    (errors.InsufficientScope, 403, "invalid_request_error", "insufficient_scope"),
    (errors.MalformedBody, 400, "invalid_request_error", None),
    (errors.MissingParameter, 400, "invalid_request_error", "missing_required_parameter"),
    (errors.InvalidType, 400, "invalid_request_error", "invalid_type"),
    (errors.InvalidValue, 400, "invalid_request_error", "invalid_value"),
    (errors.UnsupportedValue, 400, "invalid_request_error", "unsupported_value"),
    (errors.ModelNotFound, 404, "invalid_request_error", "model_not_found"),
    (errors.UnknownRoute, 404, "invalid_request_error", "unknown_url"),
    (errors.MethodNotAllowed, 405, "invalid_request_error", "method_not_allowed"),
    (errors.BodyTooLarge, 413, "invalid_request_error", "body_too_large"),
    (errors.UnsupportedMediaType, 415, "invalid_request_error", "unsupported_media_type"),
    (errors.InsufficientQuota, 402, "insufficient_quota", "credit_balance_exhausted"),
    (errors.Overloaded, 503, "service_unavailable_error", "server_is_overloaded"),
    (errors.GenerationFailed, 500, "server_error", "generation_failed"),
    (errors.DeadlineExceeded, 504, "server_error", "timeout"),
]


@pytest.mark.parametrize(("error_class", "status", "kind", "code"), CONTRACT)
def test_the_contracts_failures_have_its_names(
    error_class: type[AppError], status: int, kind: str, code: str | None
) -> None:
    assert (error_class.status, error_class.type, error_class.code) == (status, kind, code)


def test_no_client_is_asked_to_wait_longer_than_it_would(subtests: pytest.Subtests) -> None:
    for error_class in all_error_classes():
        with subtests.test(error_class.__name__):
            assert (error_class.retry_after_s or 1) <= 120


def test_a_retry_time_and_the_allowed_methods_become_headers() -> None:
    error = AppError("x").after(7)
    error.allow = "GET, HEAD"
    reply = error_response(error)
    assert (reply.headers["retry-after"], reply.headers["allow"]) == ("7", "GET, HEAD")


@pytest.mark.parametrize(
    "secret", [RuntimeError("password=hunter2"), ValueError("hunter2"), KeyError("hunter2")]
)
async def test_an_unexpected_failure_is_logged_but_never_shown(
    world: World, secret: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    world.generator.act = world.generator.failing(secret)
    reply = await world.draw()
    assert reply.status_code == 500
    assert error_of(reply) == {
        "message": "The server had an error.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert "hunter2" not in reply.text + str(reply.headers)
    assert "hunter2" in caplog.text
    assert await world.charged() == 0


async def test_an_empty_account_is_a_402_that_nobody_should_retry(make_world: MakeWorld) -> None:
    world = await make_world(granted=1024 * 1024 - 1)
    reply = await world.draw()
    error = error_of(reply)
    assert reply.status_code == 402
    assert (error["type"], error["code"]) == ("insufficient_quota", "credit_balance_exhausted")
    assert reply.headers["x-should-retry"] == "false"
    assert world.generator.jobs == []
