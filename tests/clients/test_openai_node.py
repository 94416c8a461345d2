"""The official Node client against the served application (`node/draw.mjs` is the program)."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Served
from tests.machine import MACHINE
from tests.required import require

pytestmark = pytest.mark.serve

FOLDER = Path(__file__).parent / "node"
INSTALL_TIMEOUT_S = 180


@pytest.fixture(scope="module")
def node() -> str:
    """Node with the client installed from the committed lock file."""
    found, npm = shutil.which("node"), shutil.which("npm")
    require(bool(found and npm), "node and npm are not installed: apt-get install nodejs npm")
    if not (FOLDER / "node_modules" / "openai").exists():
        subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"],
            cwd=FOLDER,
            check=True,
            capture_output=True,
            timeout=MACHINE.allow(INSTALL_TIMEOUT_S),
        )
    return found


def test_the_node_client_draws_and_sees_typed_errors(node: str, served: Served) -> None:
    done = subprocess.run(
        [node, "draw.mjs", f"{served.url}/v1", served.key],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        timeout=MACHINE.allow(120),
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["contentType"] == "image/png"
    assert seen["downloadedBytes"] > 100
    assert seen["inlineMagic"] == ["WEBP", "WEBP"]
    assert seen["outputTokens"] == 2 * 256 * 256
    assert seen["requestId"]
    assert seen["models"] == ["flux-mini"]
    assert seen["eventTypes"] == ["partial_image", "partial_image", "completed"]
    assert seen["eventMagic"] == ["PNG"] * 3
    assert seen["eventUnits"] == 256 * 256
    assert seen["badSize"] == seen["badStream"]
    assert seen["badSize"] == {
        "class": "BadRequestError",
        "status": 400,
        "code": "invalid_value",
        "param": "size",
    }
    assert seen["badModel"]["class"] == "NotFoundError"
    assert seen["badKey"]["class"] == "AuthenticationError"
