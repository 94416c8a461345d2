"""A cluster for all tests of this folder, and one application on it for each kind of ledger."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from ray import serve

from tests.conftest import ROOT, free_port
from tests.faults.system import APP, Platform, System, platform, prepare
from tests.postgres import Postgres, postgres

SERVE_ENVIRONMENT = {
    # Serve looks after its proxy every 10 s otherwise: each death would cost the run as much.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # Serve gives up a proxy that is not ready after three times 5 s, and starts another: on a busy
    # machine, where one takes longer to start, there is none for minutes, or for ever.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Platform]:
    local = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    with tempfile.TemporaryDirectory(prefix="ff-", ignore_cleanup_errors=True) as name:
        with patch.dict(os.environ, SERVE_ENVIRONMENT):
            with platform(Path(name), free_port(), local["controller_options"]) as made:
                made.add_node()
                yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as made:
        yield made


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def system(request: pytest.FixtureRequest, two_nodes: Platform) -> Iterator[System]:
    """A deployed application with its own books and images."""
    server = request.getfixturevalue("server") if request.param == "postgresql" else None
    folder = two_nodes.folder / f"{request.module.__name__.rpartition('.')[2]}-{request.param}"
    made = prepare(two_nodes, folder, server)
    made.deploy()
    yield made
    serve.delete(APP)
    if server is not None:
        server.sql("DROP DATABASE flux WITH (FORCE)")
