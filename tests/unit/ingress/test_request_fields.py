"""Every field of a generation, as real clients send it: what is served, refused, ignored."""

from typing import Any

import pytest
from scripted import World, error_of

GENERATIONS = "/v1/images/generations"
QUOTE = "/v1/images/quote"
OPTIONAL = [
    "model", "n", "size", "quality", "response_format", "output_format", "output_compression",
    "seed", "num_inference_steps", "steps", "guidance_scale", "user", "background", "stream",
    "partial_images", "negative_prompt", "style", "moderation",
]  # fmt: skip

# field, value, code
REFUSED: list[tuple[str, Any, str]] = [
    ("prompt", "", "invalid_value"),
    ("prompt", " \t\n", "invalid_value"),
    ("prompt", "x" * 1001, "invalid_value"),
    ("prompt", "x" * 32_001, "invalid_value"),
    ("prompt", 5, "invalid_type"),
    ("prompt", ["x"], "invalid_type"),
    ("prompt", {"text": "x"}, "invalid_type"),
    ("prompt", [[[[[["x"]]]]]], "invalid_type"),
    ("model", 5, "invalid_type"),
    ("model", "x" * 201, "invalid_value"),
    ("n", 0, "invalid_value"),
    ("n", -1, "invalid_value"),
    ("n", 11, "invalid_value"),
    ("n", True, "invalid_type"),
    ("n", 1.0, "invalid_type"),
    ("n", 1.5, "invalid_type"),
    ("n", "1", "invalid_type"),
    ("n", 10**100, "invalid_value"),
    ("n", 2**64, "invalid_value"),
    ("size", "1024", "invalid_value"),
    ("size", "1024x", "invalid_value"),
    ("size", "1024xfoox1024", "invalid_value"),
    ("size", "1024x1024x1024", "invalid_value"),
    ("size", "1024X1024", "invalid_value"),
    ("size", "1024 x 1024", "invalid_value"),
    ("size", " 1024x1024", "invalid_value"),
    ("size", "1024x1024\n", "invalid_value"),
    ("size", "-1024x1024", "invalid_value"),
    ("size", "+512x512", "invalid_value"),
    ("size", "1_024x1024", "invalid_value"),
    ("size", "1024.0x1024", "invalid_value"),
    ("size", "٥١٢x٥١٢", "invalid_value"),
    ("size", "²56x256", "invalid_value"),
    ("size", "0x0", "invalid_value"),
    ("size", "00x00", "invalid_value"),
    ("size", "100000x10000", "invalid_value"),
    ("size", "99999x99999", "invalid_value"),
    ("size", "1000x1000", "invalid_value"),
    ("size", "1032x1024", "invalid_value"),
    ("size", "112x1024", "invalid_value"),
    ("size", "1040x128", "invalid_value"),
    ("size", "Auto", "invalid_value"),
    ("size", "", "invalid_value"),
    ("size", "1" * 100_000, "invalid_value"),
    ("size", 1024, "invalid_type"),
    ("size", [1024, 1024], "invalid_type"),
    ("quality", "ultra", "invalid_value"),
    ("quality", 5, "invalid_value"),
    ("quality", [], "invalid_value"),
    ("response_format", "bytes", "invalid_value"),
    ("output_format", "gif", "unsupported_value"),
    ("output_format", "svg", "unsupported_value"),
    ("output_format", "PNG", "unsupported_value"),
    ("output_format", {}, "unsupported_value"),
    ("output_compression", -1, "invalid_value"),
    ("output_compression", 101, "invalid_value"),
    ("output_compression", 50, "invalid_value"),  # of a PNG, the default
    ("output_compression", True, "invalid_type"),
    ("background", "transparent", "unsupported_value"),
    ("background", "blue", "unsupported_value"),
    ("stream", "true", "invalid_type"),
    ("stream", 1, "invalid_type"),
    ("partial_images", 1, "invalid_value"),  # without `stream`
    ("stream_progress", "true", "invalid_type"),
    ("stream_progress", True, "invalid_value"),  # without `stream`
    ("partial_images", 3, "invalid_value"),
    ("partial_images", 4, "invalid_value"),
    ("partial_images", False, "invalid_type"),
    ("seed", -1, "invalid_value"),
    ("seed", 2**32, "invalid_value"),
    ("seed", 10**400, "invalid_value"),
    ("seed", 1.5, "invalid_type"),
    ("seed", "7", "invalid_type"),
    ("num_inference_steps", 0, "invalid_value"),
    ("num_inference_steps", 51, "invalid_value"),
    ("num_inference_steps", 201, "invalid_value"),
    ("num_inference_steps", 4.0, "invalid_type"),
    ("steps", 0, "invalid_value"),
    ("steps", 51, "invalid_value"),
    ("guidance_scale", -0.1, "invalid_value"),
    ("guidance_scale", 20.5, "invalid_value"),
    ("guidance_scale", "3", "invalid_type"),
    ("guidance_scale", True, "invalid_type"),
    ("guidance_scale", 10**400, "invalid_type"),
    ("user", 5, "invalid_type"),
    ("user", "u" * 513, "invalid_value"),
    ("negative_prompt", "blurry", "unsupported_value"),
    ("style", 5, "invalid_type"),
    ("style", "s" * 65, "invalid_value"),
    ("moderation", "none", "unsupported_value"),
]

SERVED: list[tuple[str, Any]] = [
    ("prompt", "x"),
    ("prompt", "x" * 1000),
    ("prompt", "🎨" * 1000),
    ("model", "flux-mini"),
    ("model", "black-forest-labs/FLUX.1-schnell"),
    ("n", 1),
    ("n", 10),
    ("size", "auto"),
    ("size", "128x128"),
    ("size", "1024x128"),
    ("size", "1024x1024"),
    *(("quality", quality) for quality in (
        "low", "medium", "standard", "auto", "hd", "high", "xhigh", "max",
    )),
    ("response_format", "url"),
    ("response_format", "b64_json"),
    ("output_format", "png"),
    ("output_format", "jpeg"),
    ("output_format", "webp"),
    ("output_compression", 100),
    ("seed", 0),
    ("seed", 2**32 - 1),
    ("num_inference_steps", 1),
    ("num_inference_steps", 50),
    ("steps", 3),
    ("guidance_scale", 0),
    ("guidance_scale", 3.5),
    ("guidance_scale", 20),
    ("user", "user-1234"),
    ("background", "opaque"),
    ("background", "auto"),
    ("stream", False),
    ("stream_progress", False),
    ("stream", True),
    ("partial_images", 0),
    ("negative_prompt", ""),
    ("style", "vivid"),
    ("style", "natural"),
    ("moderation", "low"),
    ("moderation", "auto"),
    *((name, None) for name in OPTIONAL),
    ("max_completion_tokens", 8192),
    ("safety_identifier", "abc"),
    ("extra", {"deep": [[[{}]]], "infinite": 1e308}),
    ("", 1),
    ("__class__", "x"),
]  # fmt: skip


async def test_a_bad_value_is_refused_with_its_field_and_costs_nothing(
    world: World, subtests: pytest.Subtests
) -> None:
    http = world.http
    for field, value, code in REFUSED:
        with subtests.test(field=field, value=repr(value)[:40]):
            body = {"prompt": "x", field: value}
            for path in (GENERATIONS, QUOTE):
                reply = await http.post(path, json=body)
                error = error_of(reply)
                assert reply.status_code == 400
                assert error["type"] == "invalid_request_error"
                assert (error["param"], error["code"]) == (field, code)
                assert len(error["message"]) < 400
                assert reply.headers["x-should-retry"] == "false"
    assert world.generator.jobs == []
    assert await world.charged() == 0


async def test_a_good_value_is_served(world: World, subtests: pytest.Subtests) -> None:
    http = world.http
    for field, value in SERVED:
        with subtests.test(field=field, value=repr(value)[:40]):
            reply = await http.post(QUOTE, json={"prompt": "x", field: value})
            assert reply.status_code == 200, reply.text


async def test_a_number_beyond_a_double_is_refused(world: World) -> None:
    for field in ("guidance_scale", "n", "seed"):
        body = f'{{"prompt": "x", "{field}": 1e400}}'
        reply = await world.http.post(
            GENERATIONS, content=body, headers={"content-type": "application/json"}
        )
        assert (reply.status_code, error_of(reply)["param"]) == (400, field)


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"n": 1}])
async def test_a_missing_prompt_is_named(world: World, body: dict[str, Any]) -> None:
    reply = await world.http.post(GENERATIONS, json=body)
    error = error_of(reply)
    assert reply.status_code == 400
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")


async def test_an_unknown_model_is_a_404_that_names_those_there_are(world: World) -> None:
    reply = await world.draw(model="gpt-image-1")
    error = error_of(reply)
    assert reply.status_code == 404
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "flux-mini" in error["message"]


async def test_null_means_absent_for_all_optional_fields_at_once(world: World) -> None:
    plain = (await world.draw()).json()
    nulls = (await world.draw(**dict.fromkeys(OPTIONAL))).json()
    for body in (plain, nulls):
        del body["created"], body["data"], body["seeds"]
    assert nulls == plain


async def test_the_job_is_what_was_asked_for(world: World) -> None:
    reply = await world.draw(
        prompt="two blue squares", n=2, size="256x128", quality="low", seed=2**32 - 1,
        guidance_scale=1.5, output_format="jpeg", output_compression=7,
    )  # fmt: skip
    assert reply.json()["seeds"] == [2**32 - 1, 0]
    (job,) = world.generator.jobs
    assert job.prompt == "two blue squares"
    assert (job.width, job.height, job.steps, job.guidance) == (256, 128, 2, 1.5)
    assert job.seeds == (2**32 - 1, 0)
    assert (job.output_format, job.output_compression) == ("jpeg", 7)
    assert job.account == world.principal.account_id
    assert 0 < job.timeout_s <= 300


async def test_steps_override_quality(world: World) -> None:
    for name in ("num_inference_steps", "steps"):
        reply = await world.draw(quality="hd", size="128x128", **{name: 3})
        assert reply.json()["steps"] == 3
        assert reply.json()["usage"]["compute_units"] == 128 * 128 * 3 // 4
    both = await world.draw(size="128x128", num_inference_steps=2, steps=5)
    assert both.json()["steps"] == 2


async def test_a_client_that_sends_no_seed_gets_another_picture_each_time(world: World) -> None:
    seeds = {(await world.draw(size="128x128")).json()["seeds"][0] for _ in range(3)}
    assert len(seeds) == 3


async def test_the_call_of_atoma_sdks_documentation_is_served(world: World) -> None:
    reply = await world.draw(
        model="black-forest-labs/FLUX.1-schnell",
        prompt="A cute baby sea otter floating on its back",
        n=1,
        quality="hd",
        response_format="url",
        size="1024x1024",
        style="vivid",
        user="user-1234",
    )
    assert reply.status_code == 200
    assert reply.json()["data"][0]["url"].startswith("http://test/v1/images/")
    assert reply.json()["usage"]["compute_units"] == 2 * 1024 * 1024
