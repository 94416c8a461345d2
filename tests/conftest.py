"""Fixtures that several folders share: the product served as users serve it.

`served` runs the shipped configs/local.yaml with Ray's own `serve run`, on a free port and in a
folder of its own, once per session; it ends with an audit of the books.
"""

import contextlib
import json
import os
import random
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

from tests.groups import check_groups, group_of, place_of

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60
FAULTS = 200 if os.environ.get("CI") else 100
"""Of a run that says nothing; CI has the time for more."""
PORTS = (20_000, 30_000)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/faults; pytest reads them from here however it is called."""
    parser.addoption("--faults", type=int, default=FAULTS, help="faults to inject (tests/faults)")
    parser.addoption("--faults-seed", type=int, default=1, help="which faults, and which requests")


def pytest_configure() -> None:
    """Every Ray that tests start inherits this."""
    # Ray's workers are nice by default: beside tests that compute, replicas would stand still.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Each node would start a worker for each of its CPUs, which these tests never use.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_enable_worker_prestart", "0")
    # How often each node looks through all its processes for a dashboard that nobody opens.
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n` or without: the same order."""
    check_groups(items)
    items.sort(key=lambda item: place_of(item.nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, one worker runs a whole group."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # loaded with `-n` only

    class ByGroup(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests want to be read even when they pass: `record_property("report", text)`."""
    for outcome in ("passed", "failed"):
        for one in terminalreporter.stats.get(outcome, []):
            for name, text in one.user_properties:
                if name == "report":
                    terminalreporter.section(one.nodeid, "-")
                    terminalreporter.write_line(text)


def free_port() -> int:
    """A port that nobody listens on now; Serve itself cannot report one it chose.

    None of those that the kernel gives to clients, or Ray to its processes: one of them could
    have it by the time a server asks for it.
    """
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as probe:
            with contextlib.suppress(OSError):
                probe.bind(("0.0.0.0", port))
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

    def admin(self, path: str, **body: Any) -> Any:
        """Do as an operator over HTTP, which takes a hundredth of what the command line does."""
        request = urllib.request.Request(
            f"{self.url}/admin/v1/{path}",
            data=json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self.key}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)

    def new_key(self, name: str, units: int) -> str:
        """The key of a fresh account with so many compute units."""
        self.admin("accounts", name=name)
        if units:
            self.admin("grants", account=name, units=units, reason="for a test")
        secret: str = self.admin("keys", account=name)["secret"]
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


def start(
    app: Served, command: tuple[str, ...] = ("serve", "run"), **more: str
) -> "subprocess.Popen[bytes]":
    """Serve the config in a cluster of its own that no other Ray on the machine can see."""
    environment = {**os.environ, "RAY_TMPDIR": str(app.folder / "r"), "RAY_ADDRESS": "local"}
    (app.folder / "r").mkdir()
    with app.log.open("wb") as log:
        return subprocess.Popen(
            [str(BIN / command[0]), *command[1:], str(app.config)],
            cwd=app.folder,
            env={**environment, **more},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # As in a terminal: where tests run in the background, children would ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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
