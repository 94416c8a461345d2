"""What generated images show, judged by their pixels alone."""

import base64
import io

import openai
import pytest
from PIL import Image

from tests.conftest import Served
from tools.flux_mini.judge import describe


@pytest.mark.parametrize("size", ["256x256", "512x512", "1024x1024"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_red_circle_on_a_blue_background_is_that(local: Served, size: str, seed: int) -> None:
    with openai.OpenAI(base_url=f"{local.url}/v1", api_key=local.key) as client:
        reply = client.images.generate(
            prompt="a red circle on a blue background",
            size=size,  # type: ignore[arg-type]
            response_format="b64_json",
            extra_body={"seed": seed},
        )
    assert reply.data is not None
    image = Image.open(io.BytesIO(base64.b64decode(reply.data[0].b64_json or "")))
    found = describe(image)
    assert str(found) == "1 red circle on blue"
