"""A controller of Serve that says what a test wants, for what asks it through `Fleet`."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import DeploymentSchema, ReplicaDetails

from serve_app.deployments import fleet
from tests.machine import MACHINE


class Controller:
    """What the cluster runs, by application and deployment; counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.ours: dict[str, tuple[Any, ...]] = {}
        """Arguments of `details`, by deployment."""
        self.applications = {"ours": self.ours}
        context = SimpleNamespace(app_name="ours")
        monkeypatch.setattr(serve, "get_replica_context", lambda: context)
        monkeypatch.setattr(fleet, "ask_for_details", lambda: self)
        monkeypatch.setattr(fleet, "ray", SimpleNamespace(get=lambda asked, timeout: asked.get()))
        monkeypatch.setattr(fleet, "ServeInstanceDetails", SimpleNamespace)
        monkeypatch.setattr(fleet, "WAIT_S", MACHINE.allow())
        monkeypatch.setattr(fleet, "time", SimpleNamespace(monotonic=lambda: 100.0))
        self.answers = threading.Event()
        """Cleared: questions wait."""
        self.answers.set()
        self.away, self.fails_late, self.refused = False, False, 0

    def get(self) -> dict[str, Any]:
        self.asked += 1
        assert self.away or self.answers.wait(MACHINE.allow())
        if self.away or self.fails_late:
            self.refused += 1
            raise RayServeException("There is no Serve instance running on this Ray cluster.")
        return {
            "applications": {
                name: SimpleNamespace(
                    deployments={key: details(*value) for key, value in found.items()}
                )
                for name, found in self.applications.items()
            }
        }


def details(states: list[str], target: int, scaling: Any = None, status: str = "HEALTHY") -> Any:
    """What Serve says of a deployment with replicas in these states."""
    replicas = [
        ReplicaDetails.model_construct(state=SimpleNamespace(value=state)) for state in states
    ]
    entry = {} if scaling is None else {"autoscaling_config": scaling}
    config = DeploymentSchema(name="x", **entry)  # Serve's own, with its mark for what is not set
    return SimpleNamespace(
        status=SimpleNamespace(value=status),
        replicas=replicas,
        target_num_replicas=target,
        deployment_config=config,
    )
