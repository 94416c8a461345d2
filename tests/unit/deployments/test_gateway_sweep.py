"""A gateway keeps its image store in order from its start on."""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from waiting import until_asked

from serve_app.config import AppConfig
from serve_app.deployments.gateway import _Gateway
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import HoldRequest
from tests.machine import until

EXPIRED = f"img_{0:048x}.png"


class PlainGateway(_Gateway):
    """Without Serve's wrapper, which awaits `__del__` once; Python itself would not."""

    def __del__(self) -> None:
        pass

    async def stop(self) -> None:
        await _Gateway.__del__(self)


def expired_image(folder: Path) -> Path:
    path = folder / EXPIRED[4:6] / EXPIRED
    path.parent.mkdir(parents=True)
    path.write_bytes(b"picture")
    os.utime(path, (1, 1))
    return path


async def start(
    folder: Path, sweep_interval_s: float | None, hold_sweep_interval_s: float = 60
) -> PlainGateway:
    config = AppConfig.model_validate(
        {
            "models": [{"id": "flux-mini"}],
            "ledger": {
                "url": f"sqlite:///{folder}/ledger.db",
                "migrate_on_start": True,
                "sweep_interval_s": hold_sweep_interval_s,
            },
            "store": {
                "url": f"file://{folder}/images",
                "signing_key_file": f"{folder}/key",
                "sweep_interval_s": sweep_interval_s,
            },
        }
    )
    gateway = object.__new__(PlainGateway)
    await gateway.__init__(config, {})  # type: ignore[misc]  # Serve awaits it, too
    return gateway


async def test_a_gateway_sweeps_expired_images_after_it_starts(tmp_path: Path) -> None:
    left_by_the_last_one = expired_image(tmp_path / "images")
    gateway = await start(tmp_path, 0.05)
    await until(lambda: not left_by_the_last_one.exists(), "an expired image to go")
    assert gateway._image_sweeper is not None
    await gateway.stop()
    await asyncio.wait([gateway._image_sweeper, gateway._sweeper])
    assert gateway._image_sweeper.cancelled()


async def test_a_gateway_that_is_told_not_to_sweep_does_not(tmp_path: Path) -> None:
    image = expired_image(tmp_path / "images")
    gateway = await start(tmp_path, None)
    assert gateway._image_sweeper is None
    await gateway.stop()
    assert image.exists()


async def charged_under_a_key(ledger: SqlLedger) -> str:
    """The account of a hold that was captured with a reply."""
    account = (await ledger.admin.create_account("alice")).balance.id
    await ledger.admin.grant(account, 1)
    secret = (await ledger.admin.create_key("alice")).secret
    principal = await ledger.authenticate(secret)
    request = HoldRequest(
        account, principal.key_id, "req_1", "flux-mini", 1, 16, 16, 4, 1, 900, "order-17", "0" * 64
    )
    hold = await ledger.hold(request)
    await ledger.capture(hold.id, 1, "{}")
    return account


async def test_a_gateway_frees_idempotency_keys_after_their_time(tmp_path: Path) -> None:
    gateway = await start(tmp_path, None, hold_sweep_interval_s=0.02)
    long_ago = datetime.now(UTC) - timedelta(seconds=gateway.config.store.idempotency_ttl_s + 1)
    gateway.ledger._clock = lambda: long_ago
    account = await charged_under_a_key(gateway.ledger)

    async def free() -> bool:
        return await gateway.ledger.find_hold(account, "order-17") is None

    await until_asked(free, "the key to be free")
    assert (await gateway.ledger.balance(account)).captured == 1
    await gateway.stop()
