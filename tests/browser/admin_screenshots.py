"""Makes the pictures of docs/admin.md: `python -m tests.browser.admin_screenshots`.

The real application over a ledger that is made up here: customers, a month of usage, open work.
"""

import asyncio
import random
import sqlite3
import sys
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from serve_app.adminschema import ReplicaStatus
from serve_app.metering import migrate
from serve_app.metering.records import Author
from tests.browser.conftest import chromium_path
from tests.conftest import free_port

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

FOLDER = Path(__file__).parents[2] / "docs" / "images"
COLOURS = 200
MINI, SCHNELL = "flux-mini", "black-forest-labs/FLUX.1-schnell"
KEY = "sk-local-development"


async def serve(folder: Path, port: int, ready: threading.Event) -> None:
    from tests.unit.conftest import build_world

    sections = {
        "development": {"key": KEY},
        "public_url": f"http://127.0.0.1:{port}",
        "models": [{"id": MINI}, {"id": SCHNELL, "num_gpus": 1.0}],
    }
    world = await build_world(folder, 10**9, sections)
    world.replicas = {
        MINI: ReplicaStatus(running=1, starting=0, stopping=0, target=1),
        SCHNELL: ReplicaStatus(running=3, starting=1, stopping=0, target=4),
    }
    assert world.config.development is not None
    await world.ledger.admin.ensure_development(world.config.development)
    admin = world.ledger.admin.by(Author("cli:anna", "invoice 17"))
    for name, units in (("northwind", 4_000_000_000), ("contoso", 900_000_000)):
        await admin.create_account(name)
        await admin.grant(name, units)
    await admin.set_budgets("northwind", 250_000_000, 5_000_000_000)
    made = await admin.create_key("northwind", rpm=60, images_max=4, models=[SCHNELL])
    leaked = await admin.create_key("northwind")
    await world.ledger.admin.by(Author("cli:anna", "leaked")).revoke_key(leaked.key.id)
    fill_usage(folder / "ledger.db", made.key.account_id, made.key.id)
    server = uvicorn.Server(uvicorn.Config(world.app, port=port, log_level="warning"))
    asyncio.get_running_loop().call_later(1, ready.set)
    await server.serve()


def fill_usage(path: Path, account: str, key: str) -> None:
    """A month of it, straight into the table: nobody waits for a month of drawing."""
    dice = random.Random(4)
    today = datetime.now(UTC).date()
    with sqlite3.connect(path) as ledger:
        for days in range(30):
            for model, most in ((MINI, 20), (SCHNELL, 60)):
                jobs = dice.randrange(1, most)
                day = str(today - timedelta(days=days))
                row = (account, day, key, model, jobs, 2 * jobs, 2 * jobs * 1024 * 1024)
                ledger.execute("INSERT INTO usage_days VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def save(page: Page, name: str) -> None:
    path = FOLDER / f"admin-{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS).save(path, optimize=True)


def main() -> None:
    folder, port, ready = Path(tempfile.mkdtemp()), free_port(), threading.Event()
    migrate.upgrade(f"sqlite:///{folder}/ledger.db")
    run = threading.Thread(target=asyncio.run, args=(serve(folder, port, ready),), daemon=True)
    run.start()
    ready.wait(60)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path())
        views = {
            "desktop-light": ("light", {"width": 1180, "height": 780}, "overview"),
            "desktop-dark": ("dark", {"width": 1180, "height": 1000}, "account"),
            "phone-light": ("light", {"width": 390, "height": 800}, "overview"),
        }
        for name, (scheme, size, view) in views.items():
            page = browser.new_page(color_scheme=scheme, viewport=size)  # type: ignore[arg-type]
            page.goto(f"http://127.0.0.1:{port}/admin")
            page.wait_for_selector(".chart")
            page.wait_for_selector(".tile")
            if view == "account":
                page.get_by_role("link", name="Accounts").click()
                page.get_by_role("link", name="northwind").click()
                page.get_by_role("region", name="Acts").wait_for()
                page.get_by_role("region", name="API keys").wait_for()
            save(page, name)
        browser.close()


if __name__ == "__main__":
    main()
