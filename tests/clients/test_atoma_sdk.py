"""The seed's client and its call, word for word but for `server_url`."""

import io

import httpx
import pytest
from atoma_sdk import AtomaSDK, models
from PIL import Image

from tests.conftest import Served
from tests.machine import MACHINE

pytestmark = pytest.mark.serve


def test_the_seeds_call_returns_a_url_that_downloads_as_a_1024_png(served: Served) -> None:
    with AtomaSDK(bearer_auth=served.key, server_url=served.url) as client:
        reply = client.images.generate(
            model="black-forest-labs/FLUX.1-schnell",
            prompt="A cute baby sea otter floating on its back",
            n=1,
            quality="hd",
            response_format="url",
            size="1024x1024",
            style="vivid",
            user="user-1234",
        )
    assert len(reply.data) == 1
    image = Image.open(
        io.BytesIO(httpx.get(reply.data[0].url, timeout=MACHINE.allow()).raise_for_status().content)
    )
    image.load()
    assert (image.format, image.size) == ("PNG", (1024, 1024))


def test_base64_replies_still_carry_the_url_that_this_client_requires(served: Served) -> None:
    with AtomaSDK(bearer_auth=served.key, server_url=served.url) as client:
        reply = client.images.generate(
            model="flux-mini", prompt="a red circle", response_format="b64_json", size="256x256"
        )
    assert httpx.get(reply.data[0].url, timeout=MACHINE.allow()).status_code == 200


def test_models_and_health_parse_as_this_client_expects(served: Served) -> None:
    with AtomaSDK(bearer_auth=served.key, server_url=served.url) as client:
        assert [model.id for model in client.models_.models_list().data] == ["flux-mini"]
        client.health.health()


def test_a_wrong_key_raises_its_api_error(served: Served) -> None:
    with AtomaSDK(bearer_auth="sk-wrong", server_url=served.url) as client:
        with pytest.raises(models.APIError) as caught:
            client.images.generate(model="flux-mini", prompt="a red circle")
    assert caught.value.status_code == 401
