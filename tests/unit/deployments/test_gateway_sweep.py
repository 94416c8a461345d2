"""A gateway keeps its image store in order from its start on."""

import asyncio
import os
from pathlib import Path

from serve_app.config import AppConfig
from serve_app.deployments.gateway import _Gateway

EXPIRED = f"img_{0:048x}.png"


def expired_image(folder: Path) -> Path:
    path = folder / EXPIRED[4:6] / EXPIRED
    path.parent.mkdir(parents=True)
    path.write_bytes(b"picture")
    os.utime(path, (1, 1))
    return path


async def start(folder: Path, sweep_interval_s: float | None) -> _Gateway:
    config = AppConfig.model_validate(
        {
            "models": [{"id": "flux-mini"}],
            "ledger": {"url": f"sqlite:///{folder}/ledger.db", "migrate_on_start": True},
            "store": {
                "url": f"file://{folder}/images",
                "signing_key_file": f"{folder}/key",
                "sweep_interval_s": sweep_interval_s,
            },
        }
    )
    gateway = _Gateway.__new__(_Gateway)
    await gateway.__init__(config, {})  # type: ignore[misc]  # Serve awaits it, too
    return gateway


async def test_a_gateway_sweeps_expired_images_after_it_starts(tmp_path: Path) -> None:
    left_by_the_last_one = expired_image(tmp_path / "images")
    gateway = await start(tmp_path, 0.05)
    async with asyncio.timeout(30):
        while left_by_the_last_one.exists():  # noqa: ASYNC110 polls the disk
            await asyncio.sleep(0.01)
    assert gateway._image_sweeper is not None
    await gateway.__del__()
    await asyncio.wait([gateway._image_sweeper, gateway._sweeper])
    assert gateway._image_sweeper.cancelled()


async def test_a_gateway_that_is_told_not_to_sweep_does_not(tmp_path: Path) -> None:
    image = expired_image(tmp_path / "images")
    gateway = await start(tmp_path, None)
    assert gateway._image_sweeper is None
    await gateway.__del__()
    assert image.exists()
