"""The fleet as the gateway tells it: counts of one application, asked rarely."""

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from serve_app.config import ModelConfig
from serve_app.deployments import fleet as module
from serve_app.deployments.fleet import Fleet, ReplicaBounds
from serve_app.errors import Unavailable
from tests.machine import until
from tests.unit.deployments.controller_kit import Controller

MODELS = tuple(ModelConfig(id=name, source="embedded:flux-mini") for name in ("mini", "big"))


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    return Controller(monkeypatch)


async def test_replicas_are_counted_by_what_they_are_good_for(controller: Controller) -> None:
    states = ["RUNNING", "RUNNING", "STARTING", "RECOVERING", "UPDATING", "STOPPING", "STOPPED"]
    controller.ours["FluxModel-mini"] = (states, 4)
    found = (await Fleet(MODELS)())["mini"]
    assert (found.running, found.starting, found.stopping, found.target) == (3, 2, 1, 4)


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


async def test_a_silent_controller_is_no_empty_fleet(controller: Controller) -> None:
    controller.away = True
    with pytest.raises(Unavailable):
        await Fleet(MODELS)()


async def test_a_gateway_learns_how_many_replicas_run_and_how_many_there_may_be(
    controller: Controller,
) -> None:
    controller.ours["FluxModel-mini"] = (["RUNNING", "STARTING"], 2, {"max_replicas": 8})
    controller.ours["FluxModel-big"] = (["RUNNING"], 3)
    fleet = Fleet(MODELS)
    assert await fleet.bounds("mini") == ReplicaBounds(running=1, most=8)
    assert await fleet.bounds("big") == ReplicaBounds(running=1, most=3)
    assert controller.asked == 1


async def test_a_gateway_goes_on_without_knowing(controller: Controller) -> None:
    controller.away = True
    fleet = Fleet(MODELS)
    assert await fleet.bounds("mini") is None
    assert await fleet.last_known() is None


async def test_a_burst_that_makes_the_controller_slow_goes_by_what_it_last_said(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller.ours["FluxModel-mini"] = (["RUNNING"], 4)
    fleet = Fleet(MODELS)
    known = await fleet.bounds("mini")
    assert known == ReplicaBounds(running=1, most=4)
    monkeypatch.setattr(module, "MAX_AGE_S", -1)
    monkeypatch.setattr(module, "WAIT_S", 0.05)
    controller.answers.clear()
    found = await asyncio.gather(*(fleet.bounds("mini") for _ in range(50)))
    assert found == [known] * 50
    controller.ours["FluxModel-mini"] = (["RUNNING"] * 2, 4)
    controller.answers.set()
    assert (await fleet())["mini"].running == 2
    assert controller.asked == 2, "one question for all of them, answered late"


async def test_an_answer_of_long_ago_is_none(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s))
    controller.ours["FluxModel-mini"] = (["RUNNING"], 4)
    fleet = Fleet(MODELS)
    known = await fleet.bounds("mini")
    controller.away = True
    now_s += module.STALE_S
    assert await fleet.bounds("mini") == known
    now_s += 1
    assert await fleet.bounds("mini") is None


async def test_before_the_controller_has_ever_answered_a_job_does_not_wait_for_it(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.05)
    controller.answers.clear()
    fleet = Fleet(MODELS)
    assert await fleet.bounds("mini") is None
    controller.answers.set()
    await fleet()


async def test_a_question_that_fails_when_nobody_waits_any_more_is_no_error_of_asyncio(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    controller.answers.clear()
    controller.fails_late = True
    fleet = Fleet(MODELS)
    assert await fleet.bounds("mini") is None
    controller.answers.set()
    await until(lambda: len(asyncio.all_tasks()) == 1, "the question to end")
    assert controller.refused == 1
    controller.fails_late = False
    await fleet()  # forgets that question
    gc.collect()
    assert told == []


async def test_after_a_question_that_failed_the_controller_is_asked_again(
    controller: Controller,
) -> None:
    fleet = Fleet(MODELS)
    controller.away = True
    with pytest.raises(Unavailable):
        await fleet()
    controller.away = False
    assert set(await fleet()) == {"mini", "big"}


async def test_a_question_that_is_lost_does_not_last_for_ever(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(asked: Any, timeout: float) -> Any:
        assert timeout == module.ASK_TIMEOUT_S
        raise GetTimeoutError("Get timed out")

    monkeypatch.setattr(module, "ray", SimpleNamespace(get=get))
    with pytest.raises(Unavailable):
        await Fleet(MODELS)()
