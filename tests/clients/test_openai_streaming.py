"""Streams as the official `openai` client reads them, from an application in this process."""

import asyncio
import base64
import io
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image

from tests.conftest import Served
from tools.flux_mini.judge import describe

MODEL = "black-forest-labs/FLUX.1-schnell"
PROMPT = "a red circle on a blue background"
SIZE = "256x256"
UNITS = 256 * 256


@pytest.fixture
def client(local: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{local.url}/v1", api_key=local.key) as client:
        yield client


def read(client: openai.OpenAI, **more: Any) -> list[Any]:
    with client.images.generate(
        model=MODEL, prompt=PROMPT, size=SIZE, stream=True, **more
    ) as stream:
        return list(stream)


def pixels(event: Any) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(event.b64_json))) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def shown(event: Any) -> str:
    with Image.open(io.BytesIO(base64.b64decode(event.b64_json))) as image:
        return str(describe(image))


def test_previews_show_what_the_image_will_show(client: openai.OpenAI) -> None:
    *previews, image = read(client, partial_images=3, quality="hd", extra_body={"seed": 7})
    assert [type(event) for event in previews] == [ImageGenPartialImageEvent] * 3
    assert [event.partial_image_index for event in previews] == [0, 1, 2]
    assert isinstance(image, ImageGenCompletedEvent)
    assert {pixels(event).shape for event in (*previews, image)} == {(256, 256, 3)}
    assert {shown(event) for event in (*previews, image)} == {"1 red circle on blue"}
    assert len({event.b64_json for event in (*previews, image)}) == 4


def test_a_streamed_image_is_the_one_of_a_plain_reply(client: openai.OpenAI) -> None:
    (image,) = read(client, extra_body={"seed": 7})
    reply = client.images.generate(
        model=MODEL,
        prompt=PROMPT,
        size=SIZE,
        response_format="b64_json",
        extra_body={"seed": 7},
    )
    assert reply.data is not None
    # The files differ: each names its own request.
    assert np.array_equal(pixels(image), pixels(reply.data[0]))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_every_event_has_all_that_openai_promises(client: openai.OpenAI, kind: str) -> None:
    for event in read(client, partial_images=1, output_format=kind):
        assert event.type in ("image_generation.partial_image", "image_generation.completed")
        assert event.created_at > 1_700_000_000
        assert (event.size, event.quality) == (SIZE, "auto")
        assert (event.background, event.output_format) == ("opaque", kind)
        with Image.open(io.BytesIO(base64.b64decode(event.b64_json))) as image:
            assert (image.format, image.size) == (kind.upper(), (256, 256))


def test_three_images_are_told_apart_and_paid_for(client: openai.OpenAI, local: Served) -> None:
    before = local.balance()
    events = read(client, n=3, partial_images=1, extra_body={"seed": 5})
    for index in range(3):
        own = [event.type for event in events if event.image_index == index]
        assert own == ["image_generation.partial_image", "image_generation.completed"]
    images = {event.image_index: event for event in events if event.type.endswith("completed")}
    assert [images[index].seed for index in range(3)] == [5, 6, 7]
    assert len({image.b64_json for image in images.values()}) == 3
    assert sum(image.usage.output_tokens for image in images.values()) == 3 * UNITS
    after = local.balance()
    assert (after["captured"] - before["captured"], after["held"]) == (3 * UNITS, before["held"])


def test_nothing_unknown_comes_unasked(client: openai.OpenAI) -> None:
    kinds = {event.type for event in read(client, n=2, partial_images=3, quality="hd")}
    assert kinds == {"image_generation.partial_image", "image_generation.completed"}


def test_progress_comes_when_asked_for(client: openai.OpenAI) -> None:
    first, *rest = read(
        client, n=2, partial_images=1, quality="hd", extra_body={"stream_progress": True}
    )
    assert (first.type, first.ahead) == ("image_generation.queued", 0)
    for index in range(2):
        own = [event for event in rest if event.image_index == index]
        steps = [event for event in own if event.type == "image_generation.progress"]
        assert [event.steps for event in steps] == [8] * len(steps)
        counted = [event.step for event in steps]
        assert counted[0] == 1
        assert counted == sorted(set(counted))
        assert own[-1].type == "image_generation.completed"
    previews = [event for event in rest if event.type == "image_generation.partial_image"]
    assert len(previews) == 2


def test_few_steps_give_few_previews(client: openai.OpenAI) -> None:
    assert len(read(client, partial_images=3, quality="low")) == 1 + 1
    assert len(read(client, partial_images=3, extra_body={"steps": 1})) == 0 + 1


def test_the_asynchronous_client_reads_several_streams_at_once(local: Served) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> list[str]:
        stream = await client.images.generate(
            prompt=PROMPT, size=SIZE, stream=True, partial_images=2, extra_body={"seed": seed}
        )
        return [event.type.split(".")[-1] async for event in stream]

    async def all_of_them() -> list[list[str]]:
        url = f"{local.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=local.key) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(4)))

    assert asyncio.run(all_of_them()) == [["partial_image", "partial_image", "completed"]] * 4


def test_the_headers_tell_id_price_and_balance(client: openai.OpenAI, local: Served) -> None:
    raw = client.images.with_raw_response.generate(
        model=MODEL, prompt=PROMPT, size=SIZE, stream=True
    )
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.headers["x-model"] == "flux-mini"
    assert raw.headers["x-compute-units"] == str(UNITS)
    assert len(raw.headers.get_list("x-request-id")) == 1
    assert len(list(raw.parse())) == 1
    assert raw.headers["x-compute-units-available"] == str(local.balance()["available"])


def test_an_empty_account_gets_no_stream_but_402(local: Served) -> None:
    key = local.new_key(f"poor-{uuid.uuid4().hex[:8]}", 2 * UNITS - 1)
    with openai.OpenAI(base_url=f"{local.url}/v1", api_key=key) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            read(client, n=2)
        assert caught.value.status_code == 402
        assert caught.value.type == "insufficient_quota"
        assert len(read(client, n=1)) == 1
    balance = local.balance(key)
    assert (balance["captured"], balance["held"]) == (UNITS, 0)


@pytest.mark.parametrize(
    ("arguments", "expected", "param"),
    [
        ({"partial_images": 4}, openai.BadRequestError, "partial_images"),
        ({"size": "250x250"}, openai.BadRequestError, "size"),
        ({"model": "dall-e-2"}, openai.NotFoundError, "model"),
    ],
)
def test_a_bad_argument_raises_before_any_event(
    client: openai.OpenAI,
    arguments: dict[str, Any],
    expected: type[openai.APIStatusError],
    param: str,
) -> None:
    with pytest.raises(expected) as caught:
        client.images.generate(**{"prompt": PROMPT, "stream": True, **arguments})
    assert caught.value.param == param


def test_a_stream_sent_again_under_its_key_gives_its_images_and_costs_nothing(
    client: openai.OpenAI, local: Served
) -> None:
    before = local.balance()["captured"]
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = read(client, n=2, partial_images=1, extra_headers=headers)
    again = read(client, n=2, partial_images=1, extra_headers=headers)
    images = [event for event in first if isinstance(event, ImageGenCompletedEvent)]
    assert [type(event) for event in again] == [ImageGenCompletedEvent] * 2
    assert [event.b64_json for event in again] == [event.b64_json for event in images]
    assert [event.created_at for event in again] == [event.created_at for event in images]
    assert local.balance()["captured"] - before == 2 * UNITS
