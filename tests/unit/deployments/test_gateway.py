"""The gateway's own duties, without Serve: its start, its sweeps, its readiness, its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from waiting import within

from serve_app.config import AppConfig
from serve_app.deployments import fleet
from serve_app.deployments.gateway import _Gateway
from serve_app.errors import LedgerUnavailable
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import HoldRequest
from tests.unit.deployments.controller_kit import Controller

KEY = "sk-local-development"


@pytest.fixture
def config(tmp_path: Path, migrated_ledger: Path) -> AppConfig:
    (tmp_path / "ledger.db").write_bytes(migrated_ledger.read_bytes())
    return AppConfig.model_validate(
        {
            "models": [{"id": "tiny", "source": "random:tiny-schnell"}],
            "ledger": {"url": f"sqlite+aiosqlite:///{tmp_path}/ledger.db"},
            "store": {"url": f"file://{tmp_path}/images", "signing_key_file": f"{tmp_path}/key"},
            "development": {"key": KEY},
        }
    )


class PlainGateway(_Gateway):
    """Without Serve's wrapper, which awaits `__del__` once; Python itself would not."""

    def __del__(self) -> None:
        pass

    async def stop(self) -> None:
        await _Gateway.__del__(self)


async def start(config: AppConfig) -> Any:
    gateway = object.__new__(PlainGateway)
    await gateway.__init__(config, {})  # type: ignore[misc]
    return gateway


@asynccontextmanager
async def started(config: AppConfig) -> AsyncIterator[Any]:
    """A gateway; it asks the controller at its very start."""
    made = await start(config)
    yield made
    await made.stop()


@pytest.fixture
async def gateway(config: AppConfig) -> AsyncIterator[Any]:
    async with started(config) as made:
        yield made


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    return Controller(monkeypatch)


async def get(gateway: Any, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(gateway.__serve_build_asgi_app__())
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get(path, headers=headers)


async def test_it_makes_the_development_account_once(gateway: Any, config: AppConfig) -> None:
    second = await start(config)
    reply = await get(second, "/v1/account")
    assert reply.json()["granted"] == 10_000_000_000
    await second.stop()


@pytest.mark.parametrize(
    ("status", "running", "ready"),
    [
        ("HEALTHY", 1, 200),
        ("HEALTHY", 0, 200),  # scaled to zero: a job wakes it
        ("UPSCALING", 0, 200),
        ("DOWNSCALING", 1, 200),
        ("UPDATING", 0, 503),
        ("UPDATING", 1, 200),  # the old replicas serve until the new ones do
        ("UNHEALTHY", 0, 503),
        ("UNHEALTHY", 1, 200),
        ("DEPLOY_FAILED", 0, 503),
    ],
)
async def test_it_is_ready_when_a_model_can_take_a_job(
    controller: Controller, config: AppConfig, status: str, running: int, ready: int
) -> None:
    controller.ours["FluxModel-tiny"] = (["RUNNING"] * running, 1, None, status)
    async with started(config) as gateway:
        assert (await get(gateway, "/ready")).status_code == ready


async def test_another_models_health_is_not_its_readiness(
    controller: Controller, config: AppConfig
) -> None:
    controller.ours["FluxModel-other"] = (["RUNNING"], 1)
    controller.applications["theirs"] = {"FluxModel-tiny": (["RUNNING"], 1)}
    async with started(config) as gateway:
        assert (await get(gateway, "/ready")).status_code == 503


async def test_probes_ask_the_controller_once_a_second(
    controller: Controller, config: AppConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "time", SimpleNamespace(monotonic=lambda: 100.0))
    controller.ours["FluxModel-tiny"] = (["RUNNING"], 1)
    async with started(config) as gateway:
        assert (await get(gateway, "/ready")).status_code == 200
        controller.ours["FluxModel-tiny"] = ([], 1, None, "DEPLOY_FAILED")
        assert (await get(gateway, "/ready")).status_code == 200
    assert controller.asked == 1


async def test_a_controller_that_never_answered_is_a_503(
    controller: Controller, config: AppConfig
) -> None:
    controller.away = True
    async with started(config) as gateway:
        assert (await get(gateway, "/ready")).status_code == 503


async def test_a_controller_that_goes_away_makes_no_gateway_useless(
    controller: Controller, config: AppConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "MAX_AGE_S", -1)
    controller.ours["FluxModel-tiny"] = (["RUNNING"], 1)
    async with started(config) as gateway:
        assert (await get(gateway, "/ready")).status_code == 200
        controller.away = True
        async with within("the controller to be asked while it is away"):
            while not controller.refused:
                assert (await get(gateway, "/ready")).status_code == 200
        # Back, and it has yet to find the replicas again.
        controller.ours["FluxModel-tiny"] = (["RECOVERING"], 1, None, "UPDATING")
        controller.away, asked = False, controller.asked
        async with within("the controller to be asked three times"):
            while controller.asked < asked + 3:
                assert (await get(gateway, "/ready")).status_code == 200


async def test_it_expires_what_a_crash_left_open_at_its_start(config: AppConfig) -> None:
    long_ago = SqlLedgerClock(datetime.now(UTC) - timedelta(days=1))
    ledger = await SqlLedger.open(config.ledger, long_ago)
    assert config.development is not None
    await ledger.admin.ensure_development(config.development)
    who = await ledger.authenticate(KEY)
    request = HoldRequest(who.account_id, who.key_id, "r", "m", 1, 1, 1, 1, units=10, ttl_s=60)
    await ledger.hold(request)
    gateway = await start(config)
    swept, expire = asyncio.Event(), gateway.ledger.expire_holds

    async def expire_holds() -> int:
        count: int = await expire()
        swept.set()
        return count

    gateway.ledger.expire_holds = expire_holds  # its task has not run yet
    async with within("a sweep"):
        await swept.wait()
    assert (await ledger.balance(who.account_id)).held == 0
    await gateway.stop()
    await ledger.close()


class SqlLedgerClock:
    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


async def test_a_ledger_that_is_down_does_not_end_the_sweeps(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept = asyncio.Event()
    asked = 0

    async def expire_holds() -> int:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise LedgerUnavailable("x")
        swept.set()
        return 0

    gateway._sweeper.cancel()
    quick = gateway.config.ledger.model_copy(update={"sweep_interval_s": 0.001})
    gateway.config = gateway.config.model_copy(update={"ledger": quick})
    monkeypatch.setattr(gateway.ledger, "expire_holds", expire_holds)
    gateway._sweeper = asyncio.create_task(gateway._sweep_holds())
    async with within("a sweep"):
        await swept.wait()
    monkeypatch.undo()


async def test_a_gateway_whose_start_failed_can_be_taken_down() -> None:
    await object.__new__(PlainGateway).stop()
