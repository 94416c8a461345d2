"""Streams on a real Serve cluster: clients that leave, replicas that die, deadlines."""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.integration.conftest import (
    STEPS_MAX,
    App,
    busy_replica,
    error_of,
    eventually,
    idle,
    kill_busy_replica,
    settled,
    until_healthy,
)
from tests.machine import MACHINE

pytestmark = pytest.mark.serve

SMALL = {"prompt": "a red circle on a blue background", "size": "256x256", "stream": True}
UNITS = 256 * 256
LONG = {**SMALL, "size": "512x512", "num_inference_steps": 50, "partial_images": 3}
"""Seconds on two cores: it is still drawn when its first preview is here."""
ENDLESS = {**LONG, "size": "1024x1024", "num_inference_steps": STEPS_MAX, "n": 2}
"""Minutes on two cores, for those that are broken off."""
MANY = {**SMALL, "n": 10, "num_inference_steps": 50}
"""Drawn one after the other: when the first is here, nine tenths of the work are to come."""
MANY_UNITS = UNITS * 50 // 4


@contextmanager
def opened(app: App, body: dict[str, Any]) -> Iterator[httpx.Response]:
    url = f"{app.url}/v1/images/generations"
    with httpx.stream(
        "POST", url, json=body, headers=app.headers, timeout=MACHINE.allow(300)
    ) as reply:
        yield reply


def events_of(reply: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in reply.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def completed(events: list[dict[str, Any]]) -> list[int]:
    return sorted(
        event["image_index"]
        for event in events
        if event.get("type") == "image_generation.completed"
    )


def test_a_stream_opens_and_shows_previews_while_the_model_draws(main: App) -> None:
    before = main.ledger_totals()["captured"]
    with opened(main, LONG) as reply:
        assert reply.status_code == 200
        eventually(lambda: busy_replica(main), "a replica draws", 30)
        events = events_of(reply)
        first = next(events)
        assert first["type"] == "image_generation.partial_image"
        eventually(lambda: busy_replica(main), "a replica draws", 30)
        events = [first, *events]
    assert [event.get("partial_image_index") for event in events] == [0, 1, 2, None]
    image = Image.open(io.BytesIO(base64.b64decode(events[-1]["b64_json"])))
    assert image.size == (512, 512)
    assert httpx.get(events[-1]["url"], timeout=MACHINE.allow()).content == base64.b64decode(
        events[-1]["b64_json"]
    )
    assert settled(main) - before == events[-1]["usage"]["compute_units"]


def test_a_client_that_leaves_before_its_image_stops_the_drawing_and_pays_nothing(
    main: App,
) -> None:
    before = main.ledger_totals()["captured"]
    with opened(main, ENDLESS) as reply:
        events = events_of(reply)
        assert next(events)["type"] == "image_generation.partial_image"
        assert main.ledger_totals()["held"] > 0
    eventually(lambda: idle(main), "the replicas are idle again")
    assert settled(main) == before


def test_a_client_that_leaves_after_some_images_pays_for_those(main: App) -> None:
    before = main.ledger_totals()["captured"]
    with opened(main, MANY) as reply:
        assert next(events_of(reply))["type"] == "image_generation.completed"
    eventually(lambda: idle(main), "the replicas are idle again")
    paid = settled(main) - before
    assert paid % MANY_UNITS == 0
    assert 1 <= paid // MANY_UNITS < 10


def test_a_replica_that_dies_before_an_image_goes_unnoticed(main: App) -> None:
    until_healthy(main)
    before = main.ledger_totals()["captured"]
    with opened(main, LONG) as reply:
        events = events_of(reply)
        seen = [next(events)]
        kill_busy_replica(main)
        seen += events
    assert [event.get("partial_image_index") for event in seen] == [0, 1, 2, None]
    assert settled(main) - before == seen[-1]["usage"]["compute_units"]


def test_progress_begins_anew_on_the_replica_that_takes_over(main: App) -> None:
    until_healthy(main)
    before = main.ledger_totals()["captured"]
    with opened(main, {**LONG, "stream_progress": True}) as reply:
        events = events_of(reply)
        seen = [next(events), next(events)]
        assert [event["type"] for event in seen] == [
            "image_generation.queued",
            "image_generation.progress",
        ]
        kill_busy_replica(main)
        seen += events
    (again,) = [i for i, event in enumerate(seen) if i and event["type"].endswith("queued")]
    for part in (seen[:again], seen[again:]):
        steps = [event for event in part if event["type"].endswith("progress")]
        assert steps[0]["step"] == 1
        assert {(event["image_index"], event["steps"]) for event in steps} == {(0, 50)}
        counted = [event["step"] for event in steps]
        assert counted == sorted(set(counted))
    assert completed(seen) == [0]
    assert settled(main) - before == seen[-1]["usage"]["compute_units"]


def test_a_replica_that_dies_after_an_image_is_replaced_for_the_others(main: App) -> None:
    until_healthy(main)
    before = main.ledger_totals()["captured"]
    with opened(main, MANY) as reply:
        events = events_of(reply)
        seen = [next(events)]
        kill_busy_replica(main)
        seen += events
    assert completed(seen) == list(range(10))
    assert settled(main) - before == 10 * MANY_UNITS


def test_two_dead_replicas_end_the_stream_with_an_error_and_a_partial_charge(main: App) -> None:
    until_healthy(main)
    before = main.ledger_totals()["captured"]
    with opened(main, MANY) as reply:
        events = events_of(reply)
        seen = [next(events)]
        first = kill_busy_replica(main)
        eventually(lambda: busy_replica(main) not in (None, first), "another one took over")
        kill_busy_replica(main)
        *rest, error = events
    assert error["error"]["code"] == "generation_failed"
    assert "Traceback" not in json.dumps(error)
    done = completed(seen + rest)
    assert 1 <= len(done) < 10
    assert settled(main) - before == len(done) * MANY_UNITS


def test_a_deadline_midway_is_the_last_event_and_free(strict: App) -> None:
    before = strict.ledger_totals()["captured"]
    with opened(strict, ENDLESS) as reply:
        assert reply.status_code == 200
        *_, error = events_of(reply)
    assert error["error"]["code"] == "timeout"
    assert settled(strict) == before


def test_a_full_queue_is_an_ordinary_503(strict: App) -> None:
    before = strict.ledger_totals()["captured"]
    with opened(strict, {**SMALL, "n": 3}) as reply:
        reply.read()
    assert reply.status_code == 503
    assert error_of(reply)["code"] == "server_is_overloaded"
    assert settled(strict) == before
