"""Draws with LiteLLM's SDK as docs/recipes.md shows it; prints what it saw as JSON.

Runs in LiteLLM's own environment (`test_litellm.py`), so it imports nothing of this repository.
"""

import base64
import json
import sys
import warnings

import litellm
import openai

BASE_URL, KEY = sys.argv[1:]
SMALL = {"prompt": "a red circle on a blue background", "size": "256x256"}
SERVER = {"api_base": BASE_URL, "api_key": KEY}


def magic(b64: str | None) -> str:
    return base64.b64decode(b64 or "")[:4].decode("latin-1")


def refused(**more: object) -> dict[str, object]:
    try:
        litellm.image_generation(**{**SMALL, **SERVER, "num_retries": 0, **more})
    except openai.OpenAIError as exc:  # LiteLLM's errors are subclasses of OpenAI's
        return {"class": type(exc).__name__, "status": getattr(exc, "status_code", None)}
    return {}


warnings.simplefilter("ignore")
litellm.suppress_debug_info = True
hosted = litellm.image_generation(
    model="hosted_vllm/flux-mini", response_format="b64_json", seed=7, **SMALL, **SERVER
)
again = litellm.image_generation(
    model="hosted_vllm/flux-mini", response_format="b64_json", seed=7, **SMALL, **SERVER
)
plain = litellm.image_generation(model="openai/flux-mini", n=2, **SMALL, **SERVER)
extra = litellm.image_generation(
    model="openai/flux-mini",
    extra_body={"response_format": "b64_json", "output_format": "webp"},
    **SMALL,
    **SERVER,
)
sys.stdout.write(
    json.dumps(
        {
            "same_seed": [reply.data[0].b64_json for reply in (hosted, again)],
            "units": hosted.usage.output_tokens,
            "urls": [image.url for image in plain.data],
            "extra": magic(extra.data[0].b64_json),
            "response_format_as_openai": refused(
                model="openai/flux-mini", response_format="b64_json"
            ),
            "bad_key": refused(model="hosted_vllm/flux-mini", api_key="sk-wrong"),
            "bad_size": refused(model="hosted_vllm/flux-mini", size="257x256"),
        }
    )
)
