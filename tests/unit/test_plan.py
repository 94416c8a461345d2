"""From a request to a plan: defaults, limits and the price, without any I/O."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import FLUX_MINI

from serve_app.config import ModelConfig
from serve_app.errors import ConfigError, InvalidValue, ModelNotFound, RequestError
from serve_app.plan import Catalogue, Plan, ServedModel, plan_job
from serve_app.schema import ImageRequest

SCHNELL = "black-forest-labs/FLUX.1-schnell"
DEV = "black-forest-labs/FLUX.1-dev"


def models(*configs: dict[str, Any]) -> Catalogue:
    return Catalogue(
        tuple(ServedModel(ModelConfig.model_validate(config), FLUX_MINI) for config in configs)
    )


BOTH = models({"id": SCHNELL, "aliases": ["fast"]}, {"id": DEV})


def plan(catalogue: Catalogue = BOTH, **fields: Any) -> Plan:
    return plan_job(ImageRequest(**{"prompt": "x", **fields}), catalogue, lambda: 42)


def test_the_defaults_are_one_square_png_by_url_from_the_first_model() -> None:
    found = plan()
    assert found.model.config.id == SCHNELL
    assert (found.n, found.size, found.steps, found.guidance) == (1, "1024x1024", 4, 0.0)
    assert (found.quality, found.seeds) == ("auto", (42,))
    assert (found.output_format, found.output_compression) == ("png", 100)
    assert (found.response_format, found.units) == ("url", 1024 * 1024)


@pytest.mark.parametrize(
    ("model", "quality", "steps"),
    [
        (SCHNELL, "low", 2), (SCHNELL, "medium", 4), (SCHNELL, "standard", 4),
        (SCHNELL, "auto", 4), (SCHNELL, "hd", 8), (SCHNELL, "high", 8),
        (DEV, "low", 16), (DEV, "medium", 28), (DEV, "standard", 28),
        (DEV, "auto", 28), (DEV, "hd", 50), (DEV, "high", 50),
    ],
)  # fmt: skip
def test_quality_chooses_the_steps_of_the_model(model: str, quality: str, steps: int) -> None:
    assert plan(model=model, quality=quality).steps == steps


def test_a_model_brings_its_guidance_and_a_request_overrides_it() -> None:
    assert plan(model=DEV).guidance == 3.5
    assert plan(model=DEV, guidance_scale=0.0).guidance == 0.0


def test_at_the_reference_steps_a_job_costs_its_pixels() -> None:
    assert plan(n=3, size="512x256").units == 3 * 512 * 256
    assert plan(model=DEV, size="512x256").units == 512 * 256


def test_a_price_is_rounded_up() -> None:
    assert plan(model=DEV, size="256x256", num_inference_steps=1).units == 2341  # 2340.57


def test_an_alias_and_an_id_name_the_same_model() -> None:
    assert BOTH.find("fast") is BOTH.find(SCHNELL) is BOTH.find(None)
    with pytest.raises(ModelNotFound):
        BOTH.find("FAST")


def test_a_models_own_limits_hold() -> None:
    small = models(
        {
            "id": "small", "source": "x", "min_edge_px": 64, "max_edge_px": 512,
            "max_pixels": 512 * 256, "default_size": "256x256", "max_images": 2,
            "max_steps": 8, "prompt_max_chars": 10,
        }
    )  # fmt: skip
    assert plan(small).size == "256x256"
    assert plan(small, size="512x256", n=2, prompt="x" * 10).units == 2 * 512 * 256
    for fields, param in [
        ({"size": "512x512"}, "size"),
        ({"size": "528x64"}, "size"),
        ({"size": "48x64"}, "size"),
        ({"n": 3}, "n"),
        ({"prompt": "x" * 11}, "prompt"),
        ({"num_inference_steps": 9}, "num_inference_steps"),
    ]:
        with pytest.raises(InvalidValue) as caught:
            plan(small, **fields)
        assert caught.value.param == param


def test_a_default_size_that_the_model_cannot_draw_is_found_at_start() -> None:
    with pytest.raises(ConfigError, match="default_size of flux-mini"):
        models({"id": "flux-mini", "default_size": "1000x1000"})


def test_seeds_count_up_and_wrap_at_32_bits() -> None:
    assert plan(seed=2**32 - 2, n=3).seeds == (2**32 - 2, 2**32 - 1, 0)


def test_a_compression_is_for_jpeg_and_webp() -> None:
    assert plan(output_format="jpeg", output_compression=0).output_compression == 0
    assert plan(output_format="webp", output_compression=90).output_compression == 90
    assert plan(output_compression=100).output_compression == 100
    with pytest.raises(InvalidValue):
        plan(output_format="png", output_compression=90)


@given(text=st.text(max_size=20))
def test_any_size_is_planned_or_refused_by_name(text: str) -> None:
    refused: RequestError | None = None
    try:
        found = plan(size=text)
    except RequestError as error:
        refused = error
    if refused is not None:
        assert refused.param == "size"
        return
    assert found.width % 16 == found.height % 16 == 0
    assert min(found.width, found.height) >= 256
    assert max(found.width, found.height) <= 2048


@given(edges=st.tuples(st.integers(16, 128), st.integers(16, 128)))
def test_every_size_within_the_limits_is_served_as_it_was_asked_for(edges: tuple[int, int]) -> None:
    size = f"{edges[0] * 16}x{edges[1] * 16}"
    assert plan(size=size).size == size


@given(
    n=st.integers(1, 10),
    width=st.integers(16, 128),
    height=st.integers(16, 128),
    steps=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_plan_is_whole_and_its_price_is_never_zero(
    n: int, width: int, height: int, steps: int, seed: int
) -> None:
    found = plan(n=n, size=f"{width * 16}x{height * 16}", num_inference_steps=steps, seed=seed)
    assert found.n == len(set(found.seeds)) == n
    assert found.units == found.units_for(n) > 0
    assert found.units * 4 >= n * found.width * found.height * steps > (found.units - 1) * 4
    job = found.job("job", "account", 9.0)
    assert (job.width, job.height, job.steps, job.seeds) == (
        found.width,
        found.height,
        steps,
        found.seeds,
    )
