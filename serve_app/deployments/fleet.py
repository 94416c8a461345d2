"""Fleet: how many replicas each model has, asked of Serve's controller at most once a second.

Data flow: `ingress.admin` -> `Fleet` -> controller -> `ReplicaStatus` by model id. `serve.status()`
leaves out the target, so this reads the details that it is made from. Whoever asks meanwhile waits
for the question under way; jobs and probes do not wait long, and make do with the answer before.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import DeploymentDetails, ServeInstanceDetails

from serve_app.adminschema import ReplicaStatus
from serve_app.config import ModelConfig
from serve_app.deployments.ray_compat import ask_for_details
from serve_app.errors import Unavailable

logger = logging.getLogger(__name__)

MAX_AGE_S = 1.0
"""How long an answer is reused: operators' tools must not load the controller."""
WAIT_S = 0.5
"""How long a question may take before jobs, quotes and probes go by the last answer: a burst that
makes the controller slow is just what must be refused, and jobs do not pass through the controller,
so one that is away makes no gateway useless. Kubernetes gives a probe one second."""
STALE_S = 600.0
"""How long the last answer is gone by. A controller restarts in seconds; a gateway that has not
heard of it for so long may be cut off from its models, too."""
ASK_TIMEOUT_S = 30.0
"""When a question counts as lost. A busy controller takes seconds, one that restarts some more."""
RUNNING = ("RUNNING", "RECOVERING")
"""Those that a restarted controller has yet to find again have served all the time."""
STARTING = ("STARTING", "UPDATING")
STOPPING = ("STOPPING", "PENDING_MIGRATION")
ABSENT = ReplicaStatus(running=0, starting=0, stopping=0, target=None)


@dataclass(frozen=True)
class ReplicaBounds:
    """What a gateway wants to know of a model before it sends a job."""

    running: int
    most: int
    """Replicas that autoscaling may start; without it, those that there shall be."""


class Fleet:
    """Replicas of the models of the application that this replica belongs to."""

    def __init__(self, models: tuple[ModelConfig, ...]) -> None:
        self._models = models
        self._asking: asyncio.Task[Mapping[str, ReplicaStatus]] | None = None
        self._asking_since_s = 0.0
        """By the clock of the event loop."""
        self._asked_s = 0.0
        self._answer: Mapping[str, ReplicaStatus] | None = None
        self._deployments: Mapping[str, DeploymentDetails | None] = {}

    async def __call__(self) -> Mapping[str, ReplicaStatus]:
        """By model id. Raises `Unavailable` when the controller does not answer."""
        if self._answer is not None and self._age_s() <= MAX_AGE_S:
            return self._answer
        # The question outlives who cannot wait: else each of them would ask a slow controller.
        return await asyncio.shield(self._question())

    def _age_s(self) -> float:
        return time.monotonic() - self._asked_s

    def _question(self) -> asyncio.Task[Mapping[str, ReplicaStatus]]:
        """The one under way, or a new one."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._renew())
            self._asking.add_done_callback(_heard)
            self._asking_since_s = asyncio.get_running_loop().time()
        return self._asking

    async def _renew(self) -> Mapping[str, ReplicaStatus]:
        answer, self._deployments = await asyncio.to_thread(self._ask)
        self._answer, self._asked_s = answer, time.monotonic()
        return answer

    async def deployments(self) -> Mapping[str, DeploymentDetails | None]:
        """What Serve says of each model, by model id; None of one that is not deployed."""
        await self()
        return self._deployments

    async def last_known(self) -> Mapping[str, DeploymentDetails | None] | None:
        """As `deployments`, soon; None where the controller has not answered for long."""
        if self._answer is not None and self._age_s() <= MAX_AGE_S:
            return self._deployments
        question = self._question()
        with contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout_at(self._asking_since_s + WAIT_S):
                await asyncio.shield(question)
        if self._answer is None or self._age_s() > STALE_S:
            return None
        return self._deployments

    async def bounds(self, model_id: str) -> ReplicaBounds | None:
        """Of one model, as last known."""
        found = await self.last_known()
        if found is None:
            return None
        deployment = found[model_id]
        return ReplicaBounds(_counts(deployment).running, _most(deployment))

    def _ask(self) -> tuple[Mapping[str, ReplicaStatus], Mapping[str, DeploymentDetails | None]]:
        try:
            name = serve.get_replica_context().app_name
            details = ServeInstanceDetails(**ray.get(ask_for_details(), timeout=ASK_TIMEOUT_S))
        except (RayError, RayServeException):
            logger.warning("Serve's controller does not answer", exc_info=True)
            raise Unavailable("The replicas are not known right now.") from None
        application = details.applications.get(name)
        deployments = application.deployments if application is not None else {}
        found = {model.id: deployments.get(model.deployment_name) for model in self._models}
        return {model_id: _counts(deployment) for model_id, deployment in found.items()}, found


def _heard(question: "asyncio.Task[Mapping[str, ReplicaStatus]]") -> None:
    """Nobody may be waiting any more for how it ended; `_ask` has logged a failure."""
    if not question.cancelled():
        question.exception()


def _most(deployment: DeploymentDetails | None) -> int:
    if deployment is None:
        return 0
    scaling = deployment.deployment_config.autoscaling_config
    if not isinstance(scaling, dict):  # where nothing is set, Serve has a mark that is true
        return int(deployment.target_num_replicas)
    return int(scaling["max_replicas"])


def _counts(deployment: DeploymentDetails | None) -> ReplicaStatus:
    if deployment is None:
        return ABSENT
    states = Counter(replica.state.value for replica in deployment.replicas)
    return ReplicaStatus(
        running=sum(states[state] for state in RUNNING),
        starting=sum(states[state] for state in STARTING),
        stopping=sum(states[state] for state in STOPPING),
        target=deployment.target_num_replicas,
    )
