"""The shared cluster for itself, and one application on it for each kind of ledger."""

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster
from tests.faults.system import APP, DATABASE, System, prepare
from tests.postgres import Postgres, postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as made:
        yield made


@pytest.fixture(scope="module", params=["postgresql", "sqlite"])
def system(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[System]:
    """A deployed application with its own books and images."""
    server = request.getfixturevalue("server") if request.param == "postgresql" else None
    cluster.remove(*cluster.applications)  # they would suffer too, and cost time
    made = prepare(cluster, cluster.folder / f"faults-{request.param}", server)
    made.add_node()
    made.deploy()
    yield made
    cluster.remove(APP)
    if made.has_node:
        made.kill_node()
    if server is not None:
        server.sql(f"DROP DATABASE {DATABASE} WITH (FORCE)")
