"""LiteLLM's SDK against the served application (`litellm_draw.py` is the program).

LiteLLM pins packages that this project does not, so it needs an environment of its own.
`LITELLM_PYTHON` names its interpreter; `.ci/run` and docs/recipes.md create it.
"""

import base64
import json
import os
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Served
from tests.machine import MACHINE
from tests.required import require

pytestmark = pytest.mark.serve

PROGRAM = Path(__file__).with_name("litellm_draw.py")


@pytest.fixture(scope="module")
def litellm_python() -> str:
    found = os.environ.get("LITELLM_PYTHON", "")
    message = "LITELLM_PYTHON does not name an interpreter that has litellm: see docs/recipes.md"
    require(Path(found).is_file(), message)
    return found


def test_litellm_draws_and_sees_typed_errors(litellm_python: str, served: Served) -> None:
    done = subprocess.run(
        [litellm_python, str(PROGRAM), f"{served.url}/v1", served.key],
        capture_output=True,
        text=True,
        timeout=MACHINE.allow(240),
        env={**os.environ, "PYTHONPATH": "", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    first, again = (Image.open(BytesIO(base64.b64decode(one))) for one in seen["same_seed"])
    assert first.size == (256, 256)
    assert first.tobytes() == again.tobytes()
    assert seen["units"] == 256 * 256
    assert len(seen["urls"]) == 2
    assert all(url.startswith(served.url) for url in seen["urls"])
    assert seen["extra"] == "RIFF"  # WebP, as extra_body asked
    assert seen["response_format_as_openai"]["class"] == "UnsupportedParamsError"
    assert seen["bad_key"] == {"class": "AuthenticationError", "status": 401}
    assert seen["bad_size"] == {"class": "BadRequestError", "status": 400}
