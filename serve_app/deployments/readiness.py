"""Readiness: whether a model can take a job, and if none can, what each is waiting for.

Data flow: `Fleet` (Serve's controller), Ray's nodes -> `Readiness` -> `/ready` and the log. What is
missing is looked up by a task of its own, every few seconds, so that it stands in the log even
where nobody probes.
"""

import asyncio
import logging
import time
from collections.abc import Mapping

import ray
from ray.exceptions import RayError
from ray.serve.schema import DeploymentDetails

from serve_app.deployments.fleet import RUNNING, Fleet
from serve_app.deployments.ray_compat import available_resources_per_node
from serve_app.deployments.shortage import Node, shortage
from serve_app.errors import Unavailable

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 5.0
"""How often each gateway looks for what is missing: soon enough for a person, little work."""
ABLE_STATES = frozenset({"HEALTHY", "UPSCALING", "DOWNSCALING"})
"""States in which a model can take a job; scaled to zero counts, as a job wakes it."""
NOT_YET = "No model can serve yet."


class Readiness:
    """Of the models of one application."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._missing: Mapping[str, str] = {}

    async def __call__(self) -> str | None:
        """Why no model can take a job, as far as is known; None when one can."""
        deployments = await self._fleet.last_known() or {}
        if any(details is not None and _able(details) for details in deployments.values()):
            return None
        return " ".join(self._missing.values()) or NOT_YET

    async def watch(self) -> None:
        """Look for what is missing, for ever; the log says when that changes."""
        while True:
            try:
                self._note(await self.missing())
            except (Unavailable, RayError):
                logger.debug("the cluster does not answer", exc_info=True)
            await asyncio.sleep(WATCH_EVERY_S)

    async def missing(self) -> Mapping[str, str]:
        """What models wait for, in a sentence each, by model id. Raises `Unavailable`."""
        waiting = {
            model_id: details
            for model_id, details in (await self._fleet.deployments()).items()
            if details is not None and _waited_s(details) is not None
        }
        if not waiting:
            return {}
        nodes = await asyncio.to_thread(_nodes)
        found = {
            model_id: shortage(model_id, details.required_resources, _waited_s(details) or 0, nodes)
            for model_id, details in waiting.items()
        }
        return {model_id: sentence for model_id, sentence in found.items() if sentence}

    def _note(self, missing: Mapping[str, str]) -> None:
        for model_id, sentence in missing.items():
            if self._missing.get(model_id) != sentence:
                logger.warning("%s", sentence)
        for model_id in self._missing.keys() - missing.keys():
            logger.info("Model %s waits no more.", model_id)
        self._missing = missing


def _able(details: DeploymentDetails) -> bool:
    running = any(replica.state.value in RUNNING for replica in details.replicas)
    return running or details.status.value in ABLE_STATES


def _waited_s(details: DeploymentDetails) -> float | None:
    """Since Serve asked for the oldest replica that is on no node yet; None without one."""
    since_s = [
        replica.start_time_s
        for replica in details.replicas
        if replica.state.value == "STARTING" and replica.node_id is None
    ]
    return time.time() - min(since_s) if since_s else None


def _nodes() -> list[Node]:
    free = available_resources_per_node()
    return [
        Node(node["Resources"], free.get(node["NodeID"], {}))
        for node in ray.nodes()
        if node["Alive"]
    ]
