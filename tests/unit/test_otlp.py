"""Spans of a real gateway, through the real SDK, at a collector that decodes what it is sent."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from scripted import World, catalogue

from serve_app.errors import GenerationFailed
from serve_app.ingress.app import create_app
from serve_app.metering.measured import MeasuredLedger
from serve_app.metrics import SILENT
from serve_app.observability import RequestFacts, bound, traced
from serve_app.otlp import OtlpTracer
from serve_app.service import ImageService
from serve_app.tracing import DRAW, HOLD, NO_SPAN, NO_TRACES
from tests.conftest import free_port
from tests.otlp_receiver import PROMPT, Open, Receiver, named

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
SERVER = 2


def serve_traced(world: World, tracer: OtlpTracer) -> World:
    """The same gateway as a deployed one: its ledger is measured, its requests are traced."""
    ledger = MeasuredLedger(world.shaky, SILENT)
    generators = {model.id: world.generator for model in world.config.models}
    world.service = ImageService(
        world.config, catalogue(world.config), ledger, world.store, generators
    )

    async def ready() -> None:
        return None

    world.app = create_app(world.service, ready, world.ledger.admin, world.fleet, SILENT, tracer)
    return world


async def draw(world: World, traceparent: str = SAMPLED, **fields: Any) -> Any:
    headers = {"traceparent": traceparent, "tracestate": "vendor=1"}
    body = {"prompt": PROMPT, "size": "512x512", **fields}
    return await world.http.post("/v1/images/generations", json=body, headers=headers)


async def test_a_generation_is_a_trace_under_its_clients_span(
    world: World, receiver: Receiver, open_tracer: Open
) -> None:
    tracer = open_tracer()
    reply = await draw(serve_traced(world, tracer), n=2)
    tracer.close()
    request = named(receiver.spans, "POST /v1/images/generations")
    assert (request.trace_id, request.parent_id) == (TRACE, PARENT)
    assert (request.kind, request.failed, request.tracestate) == (SERVER, False, "vendor=1")
    hold_id = world.generator.jobs[0].job_id
    assert request.attributes == {
        "http.request.method": "POST",
        "url.path": "/v1/images/generations",
        "url.scheme": "http",
        "http.route": "/v1/images/generations",
        "http.response.status_code": 200,
        "flux_serve.request_id": reply.headers["x-request-id"],
        "flux_serve.account_id": world.principal.account_id,
        "flux_serve.hold_id": hold_id,
        "flux_serve.model": "flux-mini",
        "flux_serve.images": 2,
        "flux_serve.compute_units": 2 * 512 * 512,
    }
    parts = [span for span in receiver.spans if span is not request]
    assert sorted(span.name for span in parts) == ["auth", "capture", "hold", "store", "store"]
    for part in parts:
        assert (part.trace_id, part.parent_id) == (TRACE, request.span_id)
        assert part.lies_in(request)
    hold, capture = named(parts, "hold"), named(parts, "capture")
    assert hold.ended_ns <= capture.began_ns
    assert hold.attributes["flux_serve.hold_id"] == hold_id
    assert capture.attributes["flux_serve.compute_units"] == 2 * 512 * 512
    assert request.resource["service.name"] == "flux-serve"
    assert request.resource["service.instance.id"] == "replica-1"


async def test_a_stream_is_one_trace_too(
    world: World, receiver: Receiver, open_tracer: Open
) -> None:
    tracer = open_tracer()
    await draw(serve_traced(world, tracer), stream=True, partial_images=1)
    await world.service.drain()
    tracer.close()
    request = named(receiver.spans, "POST /v1/images/generations")
    assert request.attributes["flux_serve.images"] == 1
    names = {span.name for span in receiver.spans if span.parent_id == request.span_id}
    assert names == {"auth", "hold", "store", "capture"}
    assert not any(span.failed for span in receiver.spans)


async def test_a_refused_hold_fails_and_its_request_does_not(
    make_world: Callable[..., Any], receiver: Receiver, open_tracer: Open
) -> None:
    tracer = open_tracer()
    await draw(serve_traced(await make_world(granted=1), tracer))
    tracer.close()
    hold = named(receiver.spans, "hold")
    assert (hold.failed, hold.status) == (True, "credit_balance_exhausted")
    request = named(receiver.spans, "POST /v1/images/generations")
    assert not request.failed  # a client's mistake is not the server's
    assert request.attributes["http.response.status_code"] == 402
    assert request.attributes["error.type"] == "credit_balance_exhausted"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_job_fails_its_request_and_gives_its_hold_back(
    world: World, receiver: Receiver, open_tracer: Open, stream: bool
) -> None:
    tracer = open_tracer()
    failure = world.generator.failing(GenerationFailed("hunter2"))
    world.generator.play = world.generator.showing_before(0, failure)
    world.generator.act = failure
    await draw(serve_traced(world, tracer), stream=stream)
    await world.service.drain()
    tracer.close()
    request = named(receiver.spans, "POST /v1/images/generations")
    assert (request.failed, request.status) == (True, "generation_failed")
    released = named(receiver.spans, "release")
    assert released.parent_id == request.span_id
    assert "hunter2" not in str(receiver.spans)


GARBAGE = [
    "",
    "x",
    "00-" + "0" * 32 + f"-{PARENT}-01",
    f"00-{TRACE}-" + "0" * 16 + "-01",
    f"ff-{TRACE}-{PARENT}-01",
    f"00-{TRACE.upper()}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-01-more",
    f"00-{TRACE}-{PARENT}",
    "٤" * 55,
    SAMPLED + "\r\nx-injected: 1",
    "0" * 60_000,
]


@pytest.mark.parametrize("traceparent", GARBAGE)
async def test_a_bad_traceparent_begins_a_trace_of_our_own(
    world: World, receiver: Receiver, open_tracer: Open, traceparent: str
) -> None:
    tracer = open_tracer()
    headers: Any = [(b"traceparent", traceparent.encode("utf-8")), (b"tracestate", b"=,=;\xff")]
    reply = await serve_traced(world, tracer).http.get("/v1/account", headers=headers)
    assert reply.status_code == 200
    tracer.close()
    request = named(receiver.spans, "GET /v1/account")
    assert (request.parent_id, request.tracestate) == ("", "")
    assert request.trace_id != TRACE


async def test_two_traceparents_and_a_long_tracestate_are_not_believed(
    world: World, receiver: Receiver, open_tracer: Open
) -> None:
    tracer = open_tracer()
    http = serve_traced(world, tracer).http
    two = [("traceparent", SAMPLED), ("traceparent", SAMPLED.replace("4bf9", "5bf9"))]
    await http.get("/v1/account", headers=two)
    long = {"traceparent": SAMPLED, "tracestate": "a=" + "1" * 600}
    await http.get("/v1/models", headers=long)
    tracer.close()
    assert named(receiver.spans, "GET /v1/account").parent_id == ""
    request = named(receiver.spans, "GET /v1/models")
    assert (request.parent_id, request.tracestate) == (PARENT, "")


async def test_who_follows_no_client_links_to_it(
    world: World, receiver: Receiver, open_tracer: Open
) -> None:
    tracer = open_tracer(follow_clients=False)
    await draw(serve_traced(world, tracer))
    tracer.close()
    request = named(receiver.spans, "POST /v1/images/generations")
    assert request.trace_id != TRACE
    assert (request.parent_id, request.links) == ("", ((TRACE, PARENT),))


async def test_an_unsampled_trace_is_neither_sent_nor_begun_anew_by_a_replica(
    world: World, receiver: Receiver, open_tracer: Open
) -> None:
    tracer = open_tracer()
    facts = RequestFacts("req_1", span=tracer.request(
        {"traceparent": [SAMPLED[:-1] + "0"], "tracestate": []}, method="POST"
    ))  # fmt: skip
    with bound(facts), traced(HOLD) as span:
        assert span.carrier["traceparent"].startswith(f"00-{TRACE}-")
        assert span.carrier["traceparent"].endswith("-00")
        assert tracer.resume(span.carrier, DRAW) is NO_SPAN
    assert tracer.resume({}, DRAW) is NO_SPAN
    await draw(serve_traced(world, tracer), SAMPLED[:-1] + "0")
    tracer.close()
    assert receiver.spans == []


@pytest.mark.parametrize(
    ("config", "environment", "sent"),
    [
        ({"sample_ratio": 0}, {}, 0),
        ({"sample_ratio": 1}, {"OTEL_TRACES_SAMPLER": "always_off"}, 1),
        ({}, {"OTEL_TRACES_SAMPLER": "always_off"}, 0),
        ({}, {"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, 1),
        ({}, {}, 1),
    ],
)
async def test_sampling_is_by_configuration_then_by_environment(
    world: World,
    receiver: Receiver,
    open_tracer: Open,
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    environment: dict[str, str],
    sent: int,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracer = open_tracer(**config)
    await serve_traced(world, tracer).http.get("/v1/account", headers={})
    tracer.close()
    assert len([span for span in receiver.spans if span.kind == SERVER]) == sent


async def test_a_clients_sample_is_kept_where_ours_would_not_be(
    world: World, receiver: Receiver, open_tracer: Open
) -> None:
    tracer = open_tracer(sample_ratio=0)
    await draw(serve_traced(world, tracer))
    tracer.close()
    assert named(receiver.spans, "POST /v1/images/generations").trace_id == TRACE


@pytest.mark.parametrize("configured", [False, True])
async def test_endpoint_name_and_headers_come_from_the_environment_unless_configured(
    receiver: Receiver, open_tracer: Open, monkeypatch: pytest.MonkeyPatch, configured: bool
) -> None:
    elsewhere = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", elsewhere if configured else receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-environment")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    ours = {"endpoint": receiver.url + "/", "service_name": "from-configuration"}
    tracer = open_tracer(**(ours if configured else {"endpoint": None}))
    tracer.request({"traceparent": [], "tracestate": []}, method="GET").end()
    tracer.close()
    (span,) = receiver.spans
    name = "from-configuration" if configured else "from-environment"
    assert span.resource["service.name"] == name
    assert span.resource["deployment.environment"] == "test"
    assert receiver.headers[0]["authorization"] == "Bearer abc"


async def test_a_collector_that_is_away_harms_no_request(
    world: World,
    open_tracer: Open,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_app.otlp.CLOSE_S", 0.1)
    tracer = open_tracer(endpoint=f"http://127.0.0.1:{free_port()}")
    serve_traced(world, tracer)
    with caplog.at_level(logging.CRITICAL, "opentelemetry"):
        for _ in range(3):
            assert (await draw(world)).status_code == 200
        tracer.close()
        assert (await draw(world)).status_code == 200
    assert await world.charged() == 4 * 512 * 512


async def test_probes_and_unknown_routes(
    world: World, receiver: Receiver, open_tracer: Open
) -> None:
    tracer = open_tracer()
    http = serve_traced(world, tracer).http
    await http.get("/health")
    await http.get("/ready")
    await http.get("/v1/images/img/content?exp=1&sig=secret")
    await http.request("PROPFIND", "/nowhere/" + "x" * 1000 + "?api_key=secret")
    tracer.close()
    content, nowhere = sorted(receiver.spans, key=lambda span: span.began_ns)
    assert content.name == "GET /v1/images/{image_id}/content"
    assert nowhere.name == "HTTP"
    assert nowhere.attributes["http.request.method"] == "_OTHER"
    assert len(nowhere.attributes["url.path"]) == 256
    assert "secret" not in str(receiver.spans)


def test_what_ends_stays_as_it_is(receiver: Receiver, open_tracer: Open) -> None:
    tracer = open_tracer()
    span = tracer.request({"traceparent": [], "tracestate": []}, method="GET")
    late = span.child(HOLD)
    span.end()
    span.fail("too_late")
    span.set(status=500)
    span.end()
    late.end()  # a charge may outlive its request
    tracer.close()
    request = named(receiver.spans, "GET")
    assert not request.failed
    assert "http.response.status_code" not in request.attributes
    assert named(receiver.spans, "hold").parent_id == request.span_id


def test_without_traces_every_span_is_the_same_nothing() -> None:
    span = NO_TRACES.request({}, method="GET")
    assert span is NO_TRACES.resume({"traceparent": SAMPLED}, DRAW).child(HOLD).child(HOLD)
    span.past(HOLD, 0.0, 1.0)
    span.set(units=1)
    span.fail("x")
    span.end()
    NO_TRACES.close()
    assert span.carrier == {}
