"""The command line as a person types it, in an empty folder."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from commands_server import Use
from typer.testing import CliRunner

from serve_app.cli import app


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Use:
    """Run `flux-serve` in an empty folder; returns its result once it has the exit status."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    async def run(*words: str, code: int = 0, key: str | None = None, **more: Any) -> Any:
        names = ("FLUX_SERVE_API_KEY", "FLUX_SERVE_ADMIN_KEY", "FLUX_SERVE_URL", "OPENAI_API_KEY")
        environment = {**dict.fromkeys(names), "FLUX_SERVE_API_KEY": key, **more.pop("env", {})}
        done = await asyncio.to_thread(
            CliRunner().invoke, app, list(words), env=environment, **more
        )
        assert done.exit_code == code, (done.exit_code, done.output, done.exception)
        return done

    return run
