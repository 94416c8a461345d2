"""The fleet as the gateway tells it: counts of one application, asked rarely."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve
from ray.exceptions import GetTimeoutError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import DeploymentSchema, ReplicaDetails

from serve_app.config import ModelConfig
from serve_app.deployments import fleet as module
from serve_app.deployments.fleet import Fleet, ReplicaBounds
from serve_app.errors import Unavailable

MODELS = tuple(ModelConfig(id=name, source="embedded:flux-mini") for name in ("mini", "big"))


class Controller:
    """What the cluster runs; counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.applications: dict[str, dict[str, tuple[Any, ...]]] = {"ours": {}}
        context = SimpleNamespace(app_name="ours")
        monkeypatch.setattr(serve, "get_replica_context", lambda: context)
        handle = SimpleNamespace(get_serve_instance_details=SimpleNamespace(remote=lambda: self))
        client = SimpleNamespace(_controller=handle)
        monkeypatch.setattr(module, "_get_global_client", lambda: client)
        monkeypatch.setattr(module, "ray", SimpleNamespace(get=lambda asked, timeout: asked.get()))
        monkeypatch.setattr(module, "ServeInstanceDetails", SimpleNamespace)
        self.answers = threading.Event()
        self.answers.set()

    def get(self) -> dict[str, Any]:
        self.asked += 1
        assert self.answers.wait(10)
        assert threading.current_thread() is not threading.main_thread(), "it blocks"
        return {
            "applications": {
                name: SimpleNamespace(
                    deployments={key: details(*value) for key, value in found.items()}
                )
                for name, found in self.applications.items()
            }
        }


def details(states: list[str], target: int, scaling: Any = None) -> Any:
    replicas = [
        ReplicaDetails.model_construct(state=SimpleNamespace(value=state)) for state in states
    ]
    entry = {} if scaling is None else {"autoscaling_config": scaling}
    config = DeploymentSchema(name="x", **entry)  # Serve's own, with its mark for what is not set
    return SimpleNamespace(replicas=replicas, target_num_replicas=target, deployment_config=config)


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    return Controller(monkeypatch)


async def test_replicas_are_counted_by_what_they_are_good_for(controller: Controller) -> None:
    states = ["RUNNING", "RUNNING", "STARTING", "RECOVERING", "UPDATING", "STOPPING", "STOPPED"]
    controller.applications["ours"]["FluxModel-mini"] = (states, 4)
    found = (await Fleet(MODELS)())["mini"]
    assert (found.running, found.starting, found.stopping, found.target) == (2, 3, 1, 4)


async def test_a_model_that_is_not_deployed_has_no_replicas_and_no_target(
    controller: Controller,
) -> None:
    controller.applications["theirs"] = {"FluxModel-big": (["RUNNING"], 1)}
    found = await Fleet(MODELS)()
    assert set(found) == {"mini", "big"}
    assert (found["big"].running, found["big"].target) == (0, None)


async def test_the_controller_is_asked_at_most_once_a_second(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s))
    fleet = Fleet(MODELS)
    for _ in range(3):
        await fleet()
    assert controller.asked == 1
    now_s = 101.5
    await fleet()
    assert controller.asked == 2


async def test_a_silent_controller_is_no_empty_fleet(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> Any:
        raise RayServeException("There is no Serve instance running on this Ray cluster.")

    monkeypatch.setattr(controller, "get", silent)
    with pytest.raises(Unavailable):
        await Fleet(MODELS)()


async def test_a_gateway_learns_how_many_replicas_run_and_how_many_there_may_be(
    controller: Controller,
) -> None:
    controller.applications["ours"] = {
        "FluxModel-mini": (["RUNNING", "STARTING"], 2, {"max_replicas": 8}),
        "FluxModel-big": (["RUNNING"], 3),
    }
    fleet = Fleet(MODELS)
    assert await fleet.bounds("mini") == ReplicaBounds(running=1, most=8)
    assert await fleet.bounds("big") == ReplicaBounds(running=1, most=3)
    assert controller.asked == 1


async def test_a_gateway_goes_on_without_knowing(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead() -> None:
        raise RayServeException("no controller")

    monkeypatch.setattr(controller, "get", dead)
    assert await Fleet(MODELS).bounds("mini") is None


async def test_a_burst_that_makes_the_controller_slow_goes_by_what_it_last_said(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_AGE_S", 0)
    monkeypatch.setattr(module, "BOUNDS_TIMEOUT_S", 0.05)
    controller.applications["ours"]["FluxModel-mini"] = (["RUNNING"], 4)
    fleet = Fleet(MODELS)
    known = await fleet.bounds("mini")
    controller.answers.clear()
    found = await asyncio.gather(*(fleet.bounds("mini") for _ in range(50)))
    assert found == [known] * 50 == [ReplicaBounds(running=1, most=4)] * 50
    assert controller.asked == 2, "one question for all of them"
    controller.applications["ours"]["FluxModel-mini"] = (["RUNNING"] * 2, 4)
    controller.answers.set()
    assert (await fleet())["mini"].running == 2
    assert controller.asked == 2, "the same question was answered late"


async def test_before_the_controller_has_ever_answered_a_job_does_not_wait_for_it(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BOUNDS_TIMEOUT_S", 0.05)
    controller.answers.clear()
    fleet = Fleet(MODELS)
    assert await fleet.bounds("mini") is None
    controller.answers.set()
    await fleet()


async def test_after_a_question_that_failed_the_controller_is_asked_again(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> Any:
        raise GetTimeoutError("Get timed out")

    fleet = Fleet(MODELS)
    with monkeypatch.context() as patch:
        patch.setattr(controller, "get", lost)
        with pytest.raises(Unavailable):
            await fleet()
    assert set(await fleet()) == {"mini", "big"}
