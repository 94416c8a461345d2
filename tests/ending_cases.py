"""Tests that end badly, on purpose: test_endings.py runs each in a pytest of its own.

Data flow: `SERVERS` in the environment -> real servers -> a file that tells the number of this
process and the folder of its servers -> the outer test ends it.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import short_folder
from tests.nodes import Nodes
from tests.ports import free_port
from tests.postgres import postgres

SERVERS = "FLUX_SERVE_ENDING_SERVERS"
TOLD = "FLUX_SERVE_ENDING_TOLD"
LONG_S = 600.0

pytestmark = pytest.mark.serve


@pytest.fixture
def servers() -> Iterator[None]:
    with contextlib.ExitStack() as cleanup:
        if os.environ[SERVERS] == "postgres":
            cleanup.enter_context(postgres())
        else:
            nodes = Nodes(short_folder(), num_cpus=1, dashboard_port=free_port())
            cleanup.callback(nodes.stop)
        told = Path(os.environ[TOLD])
        new = told.with_suffix(".new")
        new.write_text(json.dumps({"pid": os.getpid(), "folder": tempfile.gettempdir()}))
        new.rename(told)
        yield


@pytest.fixture
def broken_after(servers: None) -> None:
    raise RuntimeError("this fixture fails")


@pytest.fixture
def leaky() -> None:
    """Starts a server and forgets it."""
    folder = tempfile.gettempdir()
    process = subprocess.Popen(["sleep", str(LONG_S)], cwd=folder, start_new_session=True)
    assert process.poll() is None
    Path(os.environ[TOLD]).write_text(json.dumps({"pid": os.getpid(), "folder": folder}))


def test_that_waits(servers: None) -> None:
    time.sleep(LONG_S)


def test_with_a_broken_fixture(broken_after: None) -> None:
    pass


def test_with_a_leaky_fixture(leaky: None) -> None:
    pass
