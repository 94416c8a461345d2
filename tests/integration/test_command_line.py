"""`flux-serve generate`, `quote` and `status` as processes, on the served application."""

import base64
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import BIN, Served
from tests.machine import MACHINE, eventually
from tools.flux_mini.judge import describe

pytestmark = pytest.mark.serve

PROMPT = "a red circle on a blue background"
UNITS = 256 * 256
LONG = ("-n", "4", "--steps", "50", "--size", "512x512")
"""Seconds: long enough to be broken off, and a slow machine takes it, too."""
VARIABLES = ("FLUX_SERVE_API_KEY", "FLUX_SERVE_ADMIN_KEY", "OPENAI_API_KEY", "NO_COLOR")


def environment(served: Served, key: str | None, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    own = {} if key is None else {"FLUX_SERVE_API_KEY": key}
    return {**kept, "FLUX_SERVE_URL": served.url, **own, **more}


def flux_serve(
    served: Served, folder: Path, *words: str, key: str | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(BIN / "flux-serve"), *words],
        cwd=folder,
        env=environment(served, key),
        capture_output=True,
        text=True,
        timeout=MACHINE.allow(200),
    )


def shown(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return str(describe(image.convert("RGB")))


def test_a_picture_without_any_key_on_the_machine_itself(served: Served, tmp_path: Path) -> None:
    before = served.balance()["captured"]
    options = ("-o", "a.webp", "--size", "256x256", "-n", "2", "--seed", "7", "--json")
    done = flux_serve(served, tmp_path, "generate", PROMPT, *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (f"no API key is set: using the development key of {served.url}\n")
    found: Any = json.loads(done.stdout)
    assert [image["seed"] for image in found["images"]] == [7, 8]
    for image in found["images"]:
        data = (tmp_path / image["file"]).read_bytes()
        assert data[8:12] == b"WEBP"
        assert shown(data) == "1 red circle on blue"
    assert found["units"] == served.balance()["captured"] - before == 2 * UNITS
    status = flux_serve(served, tmp_path, "status")
    assert (status.returncode, "1 of 1 running" in status.stdout) == (0, True), status.stdout


def test_out_of_units_nothing_is_drawn(served: Served, tmp_path: Path) -> None:
    key = served.new_key("cli-poor", UNITS - 1)
    options = ("--size", "256x256")
    quote = flux_serve(served, tmp_path, "quote", PROMPT, *options, key=key)
    assert (quote.returncode, "you cannot pay it now" in quote.stdout) == (0, True)
    done = flux_serve(served, tmp_path, "generate", PROMPT, *options, key=key)
    assert (done.returncode, "credit_balance_exhausted" in done.stderr) == (5, True)
    assert list(tmp_path.iterdir()) == []
    assert served.balance(key)["captured"] == 0


def test_ctrl_c_cancels_the_job_and_says_what_it_cost(served: Served, tmp_path: Path) -> None:
    key = served.new_key("cli-impatient", 10**9)
    process = subprocess.Popen(
        [str(BIN / "flux-serve"), "generate", PROMPT, *LONG],
        cwd=tmp_path,
        env=environment(served, key),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
    )
    eventually(lambda: served.balance(key)["held"] > 0, "the units are held")
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=MACHINE.allow())
    assert (process.returncode, out) == (130, "")
    assert said == "cancelled: nothing was charged\n"
    balance = served.balance(key)
    assert (balance["captured"], balance["held"], balance["available"]) == (0, 0, 10**9)
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_shows_the_picture_as_it_takes_shape(served: Served, tmp_path: Path) -> None:
    keyboard, screen = pty.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 960, 640))
    process = subprocess.Popen(
        [str(BIN / "flux-serve"), "generate", PROMPT, "--size", "256x256", "--quality", "hd"],
        cwd=tmp_path,
        env=environment(served, served.key, TERM="xterm-kitty"),
        stdin=screen,
        stdout=screen,
        stderr=screen,
    )
    os.close(screen)
    text = read_all(keyboard)
    assert process.wait(MACHINE.allow()) == 0, text
    assert "step 1 of 8" in text
    chunk = r"\x1b_G%s[^;]*;[^\x1b]*\x1b\\"
    pictures = re.findall(f"{chunk % 'a=T'}(?:{chunk % 'q=2,m'})*", text)
    assert len(pictures) == 3 + 1  # previews and the picture
    assert len(set(re.findall(r",i=(\d+),", text))) == 1  # each in the place of the one before
    for picture in pictures:
        whole = "".join(re.findall(r";([^\x1b]*)", picture))
        assert shown(base64.b64decode(whole)) == "1 red circle on blue"
    assert "image.png  256x256" in text
    assert shown((tmp_path / "image.png").read_bytes()) == "1 red circle on blue"


def read_all(descriptor: int) -> str:
    """All that a terminal was sent until its programs are gone."""
    data = b""
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # Linux: the other end is closed
            chunk = b""
        if not chunk:
            os.close(descriptor)
            return data.decode()
        data += chunk
