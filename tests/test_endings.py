"""However a test run ends, none of its servers' processes and none of its folders are left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import ending_cases
from tests.conftest import ROOT
from tests.guard import marked
from tests.machine import MACHINE, eventually

pytestmark = pytest.mark.serve

CASES = "tests/ending_cases.py"
END_S = 60.0


class Run:
    """A pytest of its own that runs one of the cases."""

    def __init__(self, folder: Path, case: str, servers: str, *options: str) -> None:
        self._told = folder / "told"
        environment = {
            **os.environ,
            ending_cases.SERVERS: servers,
            ending_cases.TOLD: str(self._told),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"{CASES}::{case}"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # As in a terminal: where tests run in the background, children would ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.log = folder / "log"

    def told(self) -> dict[str, Any]:
        """The process that runs the case, and its folder, once its servers are there."""
        eventually(
            lambda: self._told.exists() or self.process.poll() is not None, "servers run", 120
        )
        assert self._told.exists(), self.log.read_text()
        found: dict[str, Any] = json.loads(self._told.read_text())
        return found

    def check_nothing_is_left(self, folder: str) -> None:
        eventually(lambda: not marked(folder), "its processes are gone", END_S)
        eventually(lambda: not Path(folder).exists(), "its folder is gone", END_S)


@pytest.mark.parametrize(
    ("number", "servers"),
    [(signal.SIGINT, "ray"), (signal.SIGTERM, "postgres")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_run_that_is_told_to_stop_leaves_nothing(
    tmp_path: Path, number: signal.Signals, servers: str
) -> None:
    run = Run(tmp_path, "test_that_waits", servers)
    told = run.told()
    assert marked(told["folder"])
    run.process.send_signal(number)
    run.process.wait(MACHINE.allow(END_S))
    run.check_nothing_is_left(told["folder"])


def test_a_run_with_a_broken_fixture_leaves_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, "test_with_a_broken_fixture", "postgres")
    told = run.told()
    assert run.process.wait(MACHINE.allow(END_S)) == pytest.ExitCode.TESTS_FAILED
    assert "this fixture fails" in run.log.read_text()
    run.check_nothing_is_left(told["folder"])


def test_a_killed_worker_leaves_nothing(tmp_path: Path) -> None:
    options = ("-n", "1", "--dist", "loadfile", "--max-worker-restart", "0")
    run = Run(tmp_path, "test_that_waits", "postgres", *options)
    told = run.told()
    assert told["pid"] != run.process.pid
    os.kill(told["pid"], signal.SIGKILL)
    assert run.process.wait(MACHINE.allow(END_S)) != 0
    run.check_nothing_is_left(told["folder"])


@pytest.mark.parametrize("options", [(), ("-n", "1", "--dist", "loadfile")], ids=["one", "xdist"])
def test_a_server_that_a_test_forgets_is_ended_and_fails_the_run(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    run = Run(tmp_path, "test_with_a_leaky_fixture", "none", *options)
    told = run.told()
    assert run.process.wait(MACHINE.allow(END_S)) == pytest.ExitCode.TESTS_FAILED
    assert "processes left behind" in run.log.read_text()
    run.check_nothing_is_left(told["folder"])
