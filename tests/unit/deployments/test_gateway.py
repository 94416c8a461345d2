"""The gateway's own duties, without Serve: its start, its sweeps, its readiness, its end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve.exceptions import RayServeException

from serve_app.config import AppConfig
from serve_app.deployments.gateway import _Gateway
from serve_app.errors import LedgerUnavailable
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import HoldRequest

KEY = "sk-local-development"
Deployments = Callable[..., None]


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


@pytest.fixture
async def gateway(config: AppConfig) -> AsyncIterator[Any]:
    made = await start(config)
    yield made
    await made.stop()


@pytest.fixture
def deployments(monkeypatch: pytest.MonkeyPatch) -> Deployments:
    """What Serve's controller answers: deployment name -> (status, running replicas)."""

    def answer(**found: tuple[str, int]) -> None:
        listed = {
            name.replace("_", "-"): SimpleNamespace(
                status=SimpleNamespace(value=status), replica_states={"RUNNING": running}
            )
            for name, (status, running) in found.items()
        }
        status = SimpleNamespace(applications={"flux-serve": SimpleNamespace(deployments=listed)})
        monkeypatch.setattr(serve, "status", lambda: status)

    return answer


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
    gateway: Any, deployments: Deployments, status: str, running: int, ready: int
) -> None:
    deployments(FluxModel_tiny=(status, running), Gateway=("HEALTHY", 1))
    assert (await get(gateway, "/ready")).status_code == ready


async def test_another_applications_health_is_not_its_readiness(
    gateway: Any, deployments: Deployments
) -> None:
    deployments(Gateway=("HEALTHY", 1), FluxModel_other=("HEALTHY", 1))
    assert (await get(gateway, "/ready")).status_code == 503


async def test_probes_ask_the_controller_once_a_second(
    gateway: Any, deployments: Deployments
) -> None:
    deployments(FluxModel_tiny=("HEALTHY", 1))
    assert (await get(gateway, "/ready")).status_code == 200
    deployments(FluxModel_tiny=("DEPLOY_FAILED", 0))
    assert (await get(gateway, "/ready")).status_code == 200


async def test_a_controller_that_does_not_answer_is_a_503(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def status() -> Any:
        raise RayServeException("There is no Serve instance running on this Ray cluster.")

    monkeypatch.setattr(serve, "status", status)
    assert (await get(gateway, "/ready")).status_code == 503


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
    await asyncio.wait_for(swept.wait(), timeout=30)
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
    await asyncio.wait_for(swept.wait(), timeout=30)
    monkeypatch.undo()


async def test_a_gateway_whose_start_failed_can_be_taken_down() -> None:
    await object.__new__(PlainGateway).stop()
