"""Readiness tells why: what models wait for, in `/ready` and in the log, without a cluster."""

import asyncio
import logging
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import until_asked

from serve_app.deployments import readiness as module
from serve_app.deployments.readiness import NOT_YET, Readiness
from serve_app.deployments.shortage import Node
from serve_app.errors import Unavailable

SENTENCE = "Model big waits for 1 GPU; the cluster has 0."
WITHOUT_GPU, WITH_GPU = Node({"CPU": 8.0}, {"CPU": 8.0}), Node({"GPU": 1.0}, {"GPU": 1.0})


class Cluster:
    """What Serve and Ray would answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes = [WITHOUT_GPU]
        self.node_id: str | None = None
        self.state = "STARTING"
        self.status = "UPDATING"
        self.down, self.asked_while_down = False, 0
        monkeypatch.setattr(module, "_nodes", lambda: self.nodes)
        monkeypatch.setattr(module, "WATCH_EVERY_S", 0.001)

    async def deployments(self) -> Any:
        if self.down:
            self.asked_while_down += 1
            raise Unavailable("no controller")
        return await self.last_known()

    async def last_known(self) -> Any:
        replica = SimpleNamespace(
            state=SimpleNamespace(value=self.state),
            node_id=self.node_id,
            start_time_s=time.time(),
        )
        details = SimpleNamespace(
            status=SimpleNamespace(value=self.status),
            replicas=[replica],
            required_resources={"GPU": 1},
        )
        return {"big": details, "not deployed": None}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


@pytest.fixture
def readiness(cluster: Cluster) -> Readiness:
    return Readiness(cluster)  # type: ignore[arg-type]  # answers as `Fleet` does


async def test_a_replica_that_no_node_can_take_is_told_with_what_it_needs(
    readiness: Readiness,
) -> None:
    assert await readiness.missing() == {"big": SENTENCE}


async def test_a_replica_that_has_a_node_or_runs_waits_for_nothing(
    readiness: Readiness, cluster: Cluster
) -> None:
    cluster.node_id = "a node"
    assert await readiness.missing() == {}
    cluster.node_id, cluster.state = None, "RUNNING"
    assert await readiness.missing() == {}


async def test_a_model_scaled_to_zero_is_ready_and_waits_for_nothing(
    readiness: Readiness, cluster: Cluster
) -> None:
    cluster.status, cluster.state = "HEALTHY", "STOPPING"
    assert await readiness() is None
    assert await readiness.missing() == {}


class Listener(logging.Handler):
    """`caplog` hears each line never, once or twice: it depends on who set up logging before."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What the module logs, as it comes."""
    listener, logger = Listener(), module.logger
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(listener)
    yield listener.told
    logger.removeHandler(listener)
    logger.setLevel(level)


async def test_the_reason_is_given_and_logged_once_and_goes_when_a_node_comes(
    readiness: Readiness, cluster: Cluster, told: list[str]
) -> None:
    assert await readiness() == NOT_YET

    async def says_why() -> bool:
        return await readiness() == SENTENCE

    async def says_not_yet() -> bool:
        return await readiness() == NOT_YET

    async def asked_again() -> bool:
        return cluster.asked_while_down > 1

    watching = asyncio.create_task(readiness.watch())
    await until_asked(says_why, "the reason")
    cluster.down = True  # a controller that restarts changes nothing that is known
    await until_asked(asked_again, "a question while the controller is down")
    assert await readiness() == SENTENCE
    cluster.down, cluster.nodes = False, [WITHOUT_GPU, WITH_GPU]
    await until_asked(says_not_yet, "a node to be seen")
    cluster.state = "RUNNING"
    assert await readiness() is None
    watching.cancel()
    assert told == [SENTENCE, "Model big waits no more."]
