"""How all tests run, and the fixtures that several folders share.

`cluster` is the Ray cluster of all tests that need a server; `served` is the shipped
configs/local.yaml on it, which ends with a check of its ledger. Whatever tests start, here or
elsewhere, ends with the test process: guard.py.
"""

import contextlib
import json
import os
import string
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.groups import check_groups, group_of, place_of, workers
from tests.guard import Guard
from tests.machine import MACHINE
from tests.ports import free_port

if TYPE_CHECKING:
    from tests.cluster import Cluster  # loads Ray

__all__ = ["BIN", "ROOT", "Served", "free_port"]

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
FAULTS = 200 if os.environ.get("CI") else 100
"""Of a run that says nothing; CI has the time for more."""
TEST_S = 300.0
SERVER_TEST_S = 600.0
"""Of a test, with the servers that it has to start; on the reference machine, as all deadlines."""
MAY_SKIP = ("that many GPUs", "RAYSERVICE_SCHEMA")
"""Reasons that hold in CI, too: everything else that a test needs is installed there."""
GUARD = Guard()
LEFT = "left_behind"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/faults; pytest reads them from here however it is called."""
    parser.addoption("--faults", type=int, default=FAULTS, help="faults to inject (tests/faults)")
    parser.addoption("--faults-seed", type=int, default=1, help="which faults, and which requests")


def pytest_configure(config: pytest.Config) -> None:
    # Without bytecode each of the many processes that tests start compiles the product anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if not hasattr(config, "workerinput"):
        MACHINE.measure()


def pytest_report_header() -> str:
    return f"deadlines: times {MACHINE.slowness:.1f} ({MACHINE.measured})"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` means."""
    return workers(servers="not serve" not in config.option.markexpr)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n` or without: the same order, and time for as long as this machine takes."""
    check_groups(items)
    items.sort(key=lambda item: place_of(item.nodeid))
    for item in items:
        own = item.get_closest_marker("timeout")
        base_s = SERVER_TEST_S if item.get_closest_marker("serve") else TEST_S
        base_s = own.args[0] if own else base_s
        item.add_marker(pytest.mark.timeout(MACHINE.allow(base_s)), append=False)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, one worker runs a whole group."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # loaded with `-n` only

    class ByGroup(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    if not session.config.getoption("numprocesses", None):  # the process that only distributes
        GUARD.start()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that leaves processes behind has failed, whatever its tests say."""
    left = GUARD.close()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[LEFT] = left
    elif left:
        _report_left(session.config, left)
    if session.config.stash.get(_LEFT, None) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_LEFT = pytest.StashKey[list[str]]()


def _report_left(config: pytest.Config, left: list[str]) -> None:
    config.stash.setdefault(_LEFT, []).extend(left)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of xdist has ended."""
    if left := getattr(node, "workeroutput", {}).get(LEFT):
        _report_left(node.config, left)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """In CI a skipped test fails: what it needs is to be installed there."""
    report = (yield).get_result()
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        why = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(reason in why for reason in MAY_SKIP):
            report.outcome, report.longrepr = "failed", f"skipped in CI: {why}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests want to be read even when they pass: `record_property("report", text)`."""
    for outcome in ("passed", "failed"):
        for one in terminalreporter.stats.get(outcome, []):
            for name, text in one.user_properties:
                if name == "report":
                    terminalreporter.section(one.nodeid, "-")
                    terminalreporter.write_line(text)
    if left := terminalreporter.config.stash.get(_LEFT, None):
        terminalreporter.section("processes left behind, and killed", "=", red=True)
        for one in left:
            terminalreporter.write_line(one)


@dataclass(frozen=True)
class Served:
    """A running application: `url` without a trailing slash, a key that pays, its folder."""

    url: str
    key: str
    folder: Path
    config: Path

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
        with urllib.request.urlopen(request, timeout=MACHINE.allow()) as reply:
            found: dict[str, int] = json.load(reply)
            return found

    def admin(self, path: str, **body: Any) -> Any:
        """Do as an operator over HTTP, which takes a hundredth of what the command line does."""
        request = urllib.request.Request(
            f"{self.url}/admin/v1/{path}",
            data=json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self.key}", "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=MACHINE.allow()) as reply:
            return json.load(reply)

    def new_key(self, name: str, units: int) -> str:
        """The key of a fresh account with so many compute units."""
        self.admin("accounts", name=name)
        if units:
            self.admin("grants", account=name, units=units, reason="for a test")
        secret: str = self.admin("keys", account=name)["secret"]
        return secret


def short_folder() -> Path:
    """A new folder with a short path, as unix sockets need; removed after the run."""
    parent = Path(tempfile.gettempdir())
    for name in string.ascii_lowercase:
        with contextlib.suppress(FileExistsError):
            (parent / name).mkdir()
            return parent / name
    raise RuntimeError(f"no short name is left in {parent}")


@pytest.fixture(scope="session")
def cluster() -> "Iterator[Cluster]":
    from tests.cluster import running_cluster

    with running_cluster(short_folder()) as made:
        yield made


@pytest.fixture(scope="session")
def served(cluster: "Cluster") -> Iterator[Served]:
    """The shipped configs/local.yaml, with nothing changed but its port."""
    data = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    data["http_options"]["port"] = cluster.port
    (application,) = data["applications"]
    application["args"]["public_url"] = cluster.url
    config = cluster.folder / "local.yaml"
    config.write_text(yaml.safe_dump(data))
    key = application["args"]["development"]["key"]
    cluster.deploy({"logging_config": data["logging_config"], **application})
    app = Served(cluster.url, key, cluster.folder, config)
    yield app
    report = app.flux_serve("audit")
    assert report["balanced"], report
