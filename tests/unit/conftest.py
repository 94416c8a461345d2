"""A gateway on real parts: SQL ledger and image store in a temporary folder, HTTP in process."""

import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from scripted import ScriptedGenerator, ShakyLedger, World, catalogue
from sqlalchemy.engine import Engine
from sqlalchemy.engine.default import DefaultDialect

from serve_app import idempotency, settle
from serve_app.adminschema import ReplicaStatus
from serve_app.config import AppConfig, LedgerConfig, TracingConfig
from serve_app.ingress.app import create_app
from serve_app.metering import migrate
from serve_app.metering.sql import SqlLedger
from serve_app.otlp import OtlpTracer
from serve_app.service import ImageService
from serve_app.storage.store import ImageStore
from tests.otlp_receiver import PROMPT, Open, Receiver, assert_documented

MakeWorld = Callable[..., Awaitable[World]]
GRANTED = 100 * 1024 * 1024


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Statements are compiled once a process: each test has engines of its own, and compiling
    for each of them is a quarter of what a test costs.
    """
    caches: dict[type, Any] = {}
    make = Engine.__init__

    def make_sharing(self: Engine, *values: Any, **options: Any) -> None:
        make(self, *values, **options)
        self._compiled_cache = caches.setdefault(type(self.dialect), self._compiled_cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "__init__", make_sharing)
        # The cache's keys hold the dialect, of which each engine has one; ours have no options.
        patch.setattr(DefaultDialect, "__eq__", lambda one, other: type(one) is type(other))
        patch.setattr(DefaultDialect, "__hash__", lambda one: hash(type(one)))
        yield


@pytest.fixture(scope="session")
def migrated_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty ledger to copy: migrating for every test would be most of the run."""
    path = tmp_path_factory.mktemp("world") / "ledger.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


class Accounts:
    """Ledgers with `alice` and her key, by what she was granted: for each world to copy."""

    def __init__(self, empty: Path) -> None:
        self._empty = empty
        self._made: dict[int, tuple[Path, str]] = {}

    async def copy(self, granted: int, path: Path) -> str:
        """Make the ledger at `path`; returns the secret of the key."""
        if granted not in self._made:
            self._made[granted] = await self._make(granted)
        made, secret = self._made[granted]
        shutil.copy(made, path)
        return secret

    async def _make(self, granted: int) -> tuple[Path, str]:
        path = self._empty.with_name(f"alice-{granted}.db")
        shutil.copy(self._empty, path)
        ledger = await SqlLedger.open(LedgerConfig(url=f"sqlite+aiosqlite:///{path}"))
        secret = await make_alice(ledger, granted)
        await ledger.close()
        return path, secret


async def make_alice(ledger: SqlLedger, granted: int) -> str:
    account = await ledger.admin.create_account("alice")
    if granted:
        await ledger.admin.grant(account.balance.id, granted)
    return (await ledger.admin.create_key("alice")).secret


@pytest.fixture(scope="session")
def accounts(migrated_ledger: Path) -> Accounts:
    return Accounts(migrated_ledger)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


@pytest.fixture
def open_tracer(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Makes tracers that send to `receiver`; what they sent must be documented, and no secret."""
    monkeypatch.setattr("serve_app.otlp.CLOSE_S", 60.0)  # a busy machine must lose no span
    opened: list[OtlpTracer] = []

    def make(**config: Any) -> OtlpTracer:
        config.setdefault("endpoint", receiver.url)
        opened.append(OtlpTracer(TracingConfig(**config), "replica-1"))
        return opened[-1]

    yield make
    for tracer in opened:
        tracer.close()
    assert_documented(receiver.spans)
    assert PROMPT not in str(receiver.spans)
    assert "sk-" not in str(receiver.spans)


@pytest.fixture(autouse=True)
def own_loggers() -> Iterator[None]:
    """What a test does to the loggers of this process ends with it."""
    loggers = [logging.getLogger(name) for name in ("serve_app", "ray.serve", "opentelemetry")]
    before = [
        (one, one.handlers, one.filters, one.parent, one.level, one.propagate) for one in loggers
    ]
    for one in loggers:
        one.handlers = list(one.handlers)
    yield
    for one, handlers, filters, parent, level, propagate in before:
        one.handlers, one.filters, one.parent = handlers, filters, parent
        one.propagate = propagate
        one.setLevel(level)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For modules in which the tries are what matters, not the pauses between them."""
    monkeypatch.setattr(settle, "RESOLVE_BACKOFF_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(settle, "LATE_RETRY_S", 0.0)
    monkeypatch.setattr(idempotency, "POLL_S", 0.01)


@pytest.fixture
async def make_world(tmp_path: Path, accounts: Accounts) -> AsyncIterator[MakeWorld]:
    """Makes a gateway; when the test is over its books must balance and nothing may be held."""
    worlds: list[World] = []

    async def make(*, granted: int = GRANTED, **sections: Any) -> World:
        folder = tmp_path / f"world-{len(worlds)}"
        folder.mkdir()
        secret = None
        if "ledger" not in sections:
            secret = await accounts.copy(granted, folder / "ledger.db")
        world = await build_world(folder, granted, sections, secret)
        worlds.append(world)
        return world

    async with contextlib.AsyncExitStack() as cleanup:
        yield make
        for world in worlds:
            cleanup.push_async_callback(close, world)


@pytest.fixture
async def world(make_world: MakeWorld) -> World:
    return await make_world()


async def build_world(
    folder: Path, granted: int, sections: dict[str, Any], secret: str | None = None
) -> World:
    """A gateway; `secret` is of a key that its ledger has already."""
    config = AppConfig.model_validate(
        {
            "public_url": "http://test",
            "models": [{"id": "flux-mini", "aliases": ["black-forest-labs/FLUX.1-schnell"]}],
            "ledger": {"url": f"sqlite+aiosqlite:///{folder}/ledger.db"},
            "store": {"url": f"file://{folder}/images", "signing_key_file": f"{folder}/key"},
            "metadata": {"enabled": False},  # what the script draws are no files
            **sections,
        }
    )
    ledger = await SqlLedger.open(config.ledger)
    key = secret or await make_alice(ledger, granted)
    shaky, generator = ShakyLedger(ledger), ScriptedGenerator()
    store = ImageStore.open(config.store, config.public_url) if config.store else None
    generators = {model.id: generator for model in config.models}
    service = ImageService(config, catalogue(config), shaky, store, generators)

    async def why_not_ready() -> str | None:
        return None if world.models_ready else "No model can serve yet."

    async def fleet() -> Mapping[str, ReplicaStatus]:
        return await world.fleet()

    world = World(
        config=config,
        ledger=ledger,
        shaky=shaky,
        store=store,
        generator=generator,
        service=service,
        app=create_app(service, why_not_ready, ledger.admin, fleet),
        key=key,
        principal=await ledger.authenticate(key),
    )
    return world


async def close(world: World) -> None:
    for client in world.clients:
        await client.aclose()
    await world.service.drain()
    report = await world.ledger.admin.audit()
    accounts = await world.ledger.admin.list_accounts()
    await world.ledger.close()
    assert report.balanced, report.findings
    assert sum(account.balance.held for account in accounts) == world.abandoned_units
