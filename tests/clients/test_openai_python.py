"""The official `openai` client, unchanged but for its base URL, against the real application."""

import base64
import contextlib
import hashlib
import io
import sqlite3
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import ceil, floor

import httpx
import openai
import pytest
from PIL import Image

from tests.conftest import Served
from tests.machine import MACHINE

MODEL = "black-forest-labs/FLUX.1-schnell"
SIZE = "256x256"
UNITS = 256 * 256
REVOCATION_S = 5.0
"""What docs/api.md promises, and a second or two to spare."""


@pytest.fixture
def client(local: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{local.url}/v1", api_key=local.key) as client:
        yield client


def picture(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_a_plain_call_returns_a_url_that_downloads_without_a_key(client: openai.OpenAI) -> None:
    reply = client.images.generate(prompt="a red circle", size=SIZE)
    assert reply.data is not None
    assert reply.data[0].url is not None
    image = picture(
        httpx.get(reply.data[0].url, timeout=MACHINE.allow()).raise_for_status().content
    )
    assert (image.format, image.size) == ("PNG", (256, 256))


def test_the_default_size_is_what_openai_users_expect(client: openai.OpenAI) -> None:
    reply = client.images.generate(prompt="a red circle", response_format="b64_json")
    assert reply.size == "1024x1024"
    assert reply.data is not None
    assert picture(base64.b64decode(reply.data[0].b64_json or "")).size == (1024, 1024)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_every_format_arrives_as_asked(client: openai.OpenAI, kind: str) -> None:
    reply = client.images.generate(
        model=MODEL,
        prompt="a green star",
        size=SIZE,
        response_format="b64_json",
        output_format=kind,  # type: ignore[arg-type]
    )
    assert reply.output_format == kind
    assert reply.data is not None
    assert picture(base64.b64decode(reply.data[0].b64_json or "")).format == kind.upper()
    assert reply.data[0].url  # always there, for clients that know nothing else


def test_four_images_are_four_different_pictures_for_four_times_the_units(
    client: openai.OpenAI, local: Served
) -> None:
    before = local.balance()
    reply = client.images.generate(
        model=MODEL, prompt="a blue square", n=4, size=SIZE, response_format="b64_json"
    )
    assert reply.data is not None
    assert len({image.b64_json for image in reply.data}) == 4
    assert reply.usage is not None
    assert reply.usage.output_tokens == 4 * UNITS
    assert local.balance()["captured"] - before["captured"] == 4 * UNITS


def test_a_seed_repeats_the_picture_and_quality_sets_the_price(client: openai.OpenAI) -> None:
    def draw(**more: object) -> tuple[bytes, int]:
        reply = client.images.generate(
            model=MODEL,
            prompt="a yellow heart",
            size=SIZE,
            response_format="b64_json",
            **more,  # type: ignore[arg-type]
        )
        assert reply.data is not None
        assert reply.usage is not None
        pixels = picture(base64.b64decode(reply.data[0].b64_json or "")).tobytes()
        return pixels, reply.usage.output_tokens  # not the file: it names its own request

    first = draw(extra_body={"seed": 7})
    assert draw(extra_body={"seed": 7}) == first
    assert draw(extra_body={"seed": 8})[0] != first[0]
    assert draw(quality="hd", extra_body={"seed": 7})[1] == 2 * UNITS


def test_the_reply_tells_its_id_price_and_balance(client: openai.OpenAI) -> None:
    raw = client.images.with_raw_response.generate(model=MODEL, prompt="a circle", size=SIZE)
    assert raw.headers["x-model"] == "flux-mini"
    assert raw.headers["x-compute-units"] == str(UNITS)
    assert int(raw.headers["x-compute-units-available"]) > 0
    assert int(raw.headers["openai-processing-ms"]) > 0
    assert len(raw.headers.get_list("x-request-id")) == 1


def test_models_are_listed_and_found_by_alias(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["flux-mini"]
    assert client.models.retrieve(MODEL).id == "flux-mini"


@pytest.mark.parametrize(
    ("arguments", "expected", "param"),
    [
        pytest.param({"size": "250x250"}, openai.BadRequestError, "size", id="bad size"),
        pytest.param({"n": 11}, openai.BadRequestError, "n", id="too many"),
        pytest.param({"prompt": ""}, openai.BadRequestError, "prompt", id="no prompt"),
        pytest.param({"prompt": "x" * 1001}, openai.BadRequestError, "prompt", id="long prompt"),
        pytest.param(
            {"partial_images": 1},
            openai.BadRequestError,
            "partial_images",
            id="previews without a stream",
        ),
        pytest.param(
            {"background": "transparent"}, openai.BadRequestError, "background", id="transparent"
        ),
        pytest.param({"model": "dall-e-2"}, openai.NotFoundError, "model", id="unknown model"),
    ],
)
def test_a_bad_argument_raises_the_error_that_names_it(
    client: openai.OpenAI,
    arguments: dict[str, object],
    expected: type[openai.APIStatusError],
    param: str,
) -> None:
    with pytest.raises(expected) as caught:
        client.images.generate(**{"prompt": "a circle", "size": SIZE, **arguments})  # type: ignore
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_a_wrong_key_raises_authentication_error(local: Served) -> None:
    with openai.OpenAI(base_url=f"{local.url}/v1", api_key="sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.images.generate(prompt="a circle")
    assert caught.value.code == "invalid_api_key"


def test_an_empty_account_is_told_402_once_and_never_drawn_for(local: Served) -> None:
    key = local.new_key(f"poor-{uuid.uuid4().hex[:8]}", UNITS - 1)
    sent: list[httpx.Request] = []
    transport = httpx.HTTPTransport()
    http = httpx.Client(
        transport=transport, timeout=MACHINE.allow(300), event_hooks={"request": [sent.append]}
    )
    with openai.OpenAI(base_url=f"{local.url}/v1", api_key=key, http_client=http) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.images.generate(prompt="a circle", size=SIZE)
    assert caught.value.status_code == 402
    assert caught.value.type == "insufficient_quota"
    assert len(sent) == 1
    balance = local.balance(key)
    assert (balance["captured"], balance["held"]) == (0, 0)


def test_the_last_units_buy_exactly_one_picture(local: Served) -> None:
    key = local.new_key(f"one-{uuid.uuid4().hex[:8]}", UNITS)
    with openai.OpenAI(base_url=f"{local.url}/v1", api_key=key, max_retries=0) as client:
        client.images.generate(prompt="a circle", size=SIZE)
        with pytest.raises(openai.APIStatusError) as caught:
            client.images.generate(prompt="a circle", size=SIZE)
    assert caught.value.status_code == 402
    assert local.balance(key)["captured"] == UNITS


def test_unknown_routes_and_edits_are_not_found_in_openais_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.edit(image=("a.png", b"x", "image/png"), prompt="x")
    assert caught.value.code == "unknown_url"


def test_a_quote_equals_the_charge(client: openai.OpenAI) -> None:
    body = {"model": MODEL, "prompt": "a circle", "n": 2, "size": "256x512", "quality": "low"}
    quote = client.post("/images/quote", body=body, cast_to=dict[str, object])
    raw = client.images.with_raw_response.generate(**body)  # type: ignore[arg-type]
    assert quote["units"] == int(raw.headers["x-compute-units"]) == 2 * 256 * 512 * 2 // 4
    assert quote["affordable"] is True


def test_an_idempotency_key_is_charged_once_and_gives_the_same_files(
    client: openai.OpenAI, local: Served
) -> None:
    """Five at once and one later: six answers, one charge."""
    before = local.balance()["captured"]
    headers = {"Idempotency-Key": uuid.uuid4().hex}

    def draw(_: int) -> tuple[list[str | None], str | None]:
        raw = client.images.with_raw_response.generate(
            model=MODEL,
            prompt="a red circle",
            n=2,
            size=SIZE,
            response_format="b64_json",
            extra_headers=headers,
        )
        assert raw.headers["x-compute-units"] == str(2 * UNITS)
        files = [image.b64_json for image in raw.parse().data or []]
        return files, raw.headers.get("idempotent-replayed")

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(draw, range(5)))
    answers.append(draw(6))
    assert {len(files) for files, _ in answers} == {2}
    assert len({tuple(files) for files, _ in answers}) == 1
    assert sorted(str(replayed) for _, replayed in answers) == ["None"] + 5 * ["true"]
    assert local.balance()["captured"] - before == 2 * UNITS
    with pytest.raises(openai.ConflictError) as caught:
        client.images.generate(prompt="another", size=SIZE, extra_headers=headers)
    assert caught.value.code == "idempotency_key_reused"


def test_a_key_that_is_too_fast_is_served_when_its_time_has_come(local: Served) -> None:
    """The client waits as long as `Retry-After` tells it, and its next try is drawn."""
    key = local.new_key(f"fast-{uuid.uuid4().hex[:8]}", UNITS)
    rpm = max(2, floor(60 / MACHINE.allow(5)))  # on a slow machine, fewer than 12
    with contextlib.closing(sqlite3.connect(local.folder / "data" / "ledger.db")) as ledger:
        # This minute's are all used up.
        spent = (rpm, time.time_ns() + 60_000_000_000, hashlib.sha256(key.encode()).hexdigest())
        changed = ledger.execute("UPDATE api_keys SET rpm=?, rate_at_ns=? WHERE sha256=?", spent)
        assert changed.rowcount == 1
        ledger.commit()
    told: list[httpx.Response] = []
    http = httpx.Client(timeout=MACHINE.allow(300), event_hooks={"response": [told.append]})
    with openai.OpenAI(base_url=f"{local.url}/v1", api_key=key, http_client=http) as client:
        client.images.generate(model=MODEL, prompt="a red circle", size=SIZE)
    *refused, drawn = told
    assert {reply.status_code for reply in refused} == {429}
    assert all(1 <= int(reply.headers["retry-after"]) <= ceil(60 / rpm) for reply in refused)
    assert refused[0].headers["x-ratelimit-remaining-requests"] == "0"
    assert drawn.status_code == 200
    assert drawn.headers["x-ratelimit-limit-requests"] == str(rpm)
    assert local.balance(key)["captured"] == UNITS


def test_a_revoked_key_opens_nothing_within_five_seconds(local: Served) -> None:
    name = f"gone-{uuid.uuid4().hex[:8]}"
    local.flux_serve("accounts", "create", name)
    made = local.flux_serve("keys", "create", name)
    account = f"{local.url}/v1/account"
    headers = {"authorization": f"Bearer {made['secret']}"}
    assert httpx.get(account, headers=headers, timeout=MACHINE.allow()).status_code == 200
    local.flux_serve("keys", "revoke", made["id"])
    deadline = time.monotonic() + REVOCATION_S
    asked = time.monotonic()
    while (
        status := httpx.get(account, headers=headers, timeout=MACHINE.allow()).status_code
    ) == 200:
        assert asked < deadline  # however long the answer took
        time.sleep(0.1)  # polling with a deadline
        asked = time.monotonic()
    assert status == 401
