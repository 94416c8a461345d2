"""Fixtures that several folders share: the product served as users serve it.

`served` runs the shipped configs/local.yaml with Ray's own `serve run`, on a free port and in a
folder of its own, once per session; it ends with an audit of the books.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60
FAULTS = 100
"""Some three minutes of CI on two cores; `--faults 1000` by hand."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/faults; pytest reads them from here however it is called."""
    parser.addoption("--faults", type=int, default=FAULTS, help="faults to inject (tests/faults)")
    parser.addoption("--faults-seed", type=int, default=1, help="which faults, and which requests")


def free_port() -> int:
    """A port that nobody listens on now; Serve itself cannot report one it chose."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Served:
    """A running application: `url` without a trailing slash, a key that pays, its folder."""

    url: str
    key: str
    folder: Path
    config: Path
    log: Path

    def flux_serve(self, *words: str) -> Any:
        """Run the command line against this server's ledger; returns its JSON."""
        command = [str(BIN / "flux-serve"), *words, "--config", str(self.config), "--json"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def balance(self, key: str | None = None) -> dict[str, int]:
        request = urllib.request.Request(
            f"{self.url}/v1/account", headers={"authorization": f"Bearer {key or self.key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            found: dict[str, int] = json.load(reply)
            return found

    def new_key(self, name: str, units: int) -> str:
        """The key of a fresh account with so many compute units."""
        self.flux_serve("accounts", "create", name)
        if units:
            self.flux_serve("grant", name, str(units), "--reason", "for a test")
        secret: str = self.flux_serve("keys", "create", name)["secret"]
        return secret


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    # Ray's unix sockets need a short path, which pytest's own temporary folders are not.
    with tempfile.TemporaryDirectory(prefix="fs-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        config, port = folder / "local.yaml", free_port()
        data = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
        data["http_options"]["port"] = port
        data["applications"][0]["args"]["public_url"] = f"http://127.0.0.1:{port}"
        config.write_text(yaml.safe_dump(data))
        key = data["applications"][0]["args"]["development"]["key"]
        app = Served(f"http://127.0.0.1:{port}", key, folder, config, folder / "serve.log")
        process = start(app)
        try:
            wait_until_ready(app, process)
            yield app
            report = app.flux_serve("audit")
            assert report["balanced"], report
        finally:
            stop(process)


def start(app: Served) -> "subprocess.Popen[bytes]":
    """`serve run` in a cluster of its own that no other Ray on the machine can see."""
    environment = {**os.environ, "RAY_TMPDIR": str(app.folder / "r"), "RAY_ADDRESS": "local"}
    (app.folder / "r").mkdir()
    with app.log.open("wb") as log:
        return subprocess.Popen(
            [str(BIN / "serve"), "run", str(app.config)],
            cwd=app.folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until_ready(app: Served, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{app.url}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.2)  # polling with a deadline
    raise AssertionError(f"not ready; log ends:\n{app.log.read_text()[-4000:]}")


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
