"""The examples of README and quickstart work: each runs against a served application.

Data flow: pages -> code blocks, address and key replaced -> a process of their own in an empty
folder -> exit status, files and links. Blocks that only start a server are left out.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Served
from tests.machine import MACHINE
from tests.required import require

pytestmark = pytest.mark.serve

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/quickstart.md")
TEXT = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PYTHON_BLOCKS = [text for language, text in BLOCKS if language == "python"]
CURL_BLOCKS = [text for language, text in BLOCKS if language == "bash" and "curl " in text]
DRAW_LINES = re.findall(r"^\.venv/bin/flux-serve (generate .*)$", TEXT, re.MULTILINE)
ACCOUNT_LINES = [
    shlex.split(line, comments=True)[1:]
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    if line.startswith("flux-serve ")
]
NODE_MODULES = Path(__file__).parent / "clients" / "node" / "node_modules"
BLOCK_TIMEOUT_S = 240


def run(command: list[str], folder: Path) -> str:
    """Run to a good end; returns what it printed."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=MACHINE.allow(BLOCK_TIMEOUT_S)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def adapted(block: str, served: Served) -> str:
    text = block.replace("http://127.0.0.1:8000", served.url)
    return text.replace("sk-local-development", served.key)


def picture_size(data: bytes) -> tuple[int, int]:
    with Image.open(BytesIO(data)) as image:
        image.load()
        return image.size


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=MACHINE.allow()) as reply:
        data: bytes = reply.read()
        return data


def test_the_pages_have_the_examples_they_promise() -> None:
    kinds = [
        "atoma" if "atoma_sdk" in block else "stream" if "stream=True" in block else "openai"
        for block in PYTHON_BLOCKS
    ]
    assert kinds == ["openai", "stream", "atoma"]
    assert [("/quote" in block) for block in CURL_BLOCKS] == [False, False, True]
    assert set(DRAW_LINES) == {"generate 'a red circle on a blue background' -o circle.png"}


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=["openai", "stream", "atoma"])
def test_python_block_draws_a_picture(block: str, served: Served, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(adapted(block, served), encoding="utf-8")
    run([sys.executable, script.name], tmp_path)
    [picture] = tmp_path.glob("*.png")
    expected = re.search(r'size="(\d+)x(\d+)"', block)
    assert expected is not None
    assert picture_size(picture.read_bytes()) == (int(expected[1]), int(expected[2]))


def test_the_streaming_block_is_charged_once_when_it_runs_twice(
    served: Served, tmp_path: Path
) -> None:
    """As the page says: the same picture, no previews and no charge the second time."""
    [block] = [block for block in PYTHON_BLOCKS if "stream=True" in block]
    script = tmp_path / "example.py"
    script.write_text(adapted(block, served).replace("quickstart-1", "run-twice"), encoding="utf-8")
    first = run([sys.executable, script.name], tmp_path)
    picture, balance = (tmp_path / "hearts.png").read_bytes(), served.balance()
    again = run([sys.executable, script.name], tmp_path)
    assert first == f"preview 0\npreview 1\n{2 * 512 * 512} compute units\n"
    assert again == f"{2 * 512 * 512} compute units\n"
    assert (tmp_path / "hearts.png").read_bytes() == picture
    assert served.balance()["captured"] == balance["captured"]


@pytest.mark.parametrize("block", CURL_BLOCKS, ids=["draw", "draw-small", "quote"])
def test_curl_block_gets_an_answer(block: str, served: Served, tmp_path: Path) -> None:
    require(shutil.which("curl") is not None, "curl is not installed: apt-get install curl")
    printed = run(["bash", "-euo", "pipefail", "-c", adapted(block, served)], tmp_path)
    answer = json.loads(printed)
    if "data" in answer:
        [image] = answer["data"]
        assert image["url"].startswith(served.url)
        assert "x".join(map(str, picture_size(fetch(image["url"])))) == answer["size"]
    else:
        assert answer["units"] == 4 * 1024 * 1024 * 2  # n=4 at twice the reference steps
        assert answer["affordable"] is True


def test_the_command_line_draws_a_picture(served: Served, tmp_path: Path) -> None:
    line = DRAW_LINES[0]  # every page has the same one
    program = str(Path(sys.executable).with_name("flux-serve"))
    run([program, *shlex.split(line), "--url", served.url], tmp_path)
    [picture] = tmp_path.iterdir()
    assert (picture.name, picture_size(picture.read_bytes())) == ("circle.png", (1024, 1024))


def test_account_commands_work_in_their_order(served: Served, tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("flux-serve"))
    printed = [
        run([program, *words, "--config", str(served.config)], served.folder)
        for words in ACCOUNT_LINES
    ]
    secret = next(line for line in "\n".join(printed).splitlines() if line.startswith("sk-"))
    assert served.balance(secret)["available"] == 100_000_000


def test_node_block_draws_a_picture(served: Served, tmp_path: Path) -> None:
    installed = shutil.which("node") is not None and NODE_MODULES.is_dir()
    require(installed, "the Node.js client is not installed: npm ci in tests/clients/node")
    [block] = [text for language, text in BLOCKS if language == "js"]
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "example.mjs").write_text(adapted(block, served), encoding="utf-8")
    printed = run(["node", "example.mjs"], tmp_path)
    [picture] = tmp_path.glob("*.png")
    assert picture_size(picture.read_bytes()) == (512, 512)
    assert printed == f"{512 * 512} compute units\n"
