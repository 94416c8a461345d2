"""`flux-serve quote` and `status` against a real gateway over HTTP; completion."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from commands_server import Use, listening
from scripted import UNITS_1024, World

from serve_app.errors import Unavailable
from tests.required import require

MakeWorld = Callable[..., Awaitable[World]]


async def test_a_quote_says_price_purse_and_time(world: World, use: Use) -> None:
    async with listening(world.app) as url:
        said = await use("quote", "x", "--n", "2", "--quality", "hd", "--url", url, key=world.key)
        told = await use("quote", "x", "--json", "--url", url, key=world.key)
    assert said.stdout == (
        "4,194,304 compute units: 2 pictures of 1024x1024 in 8 steps by flux-mini\n"
        "you can pay it\nsent now it would take about 2.5 s\n"
    )
    assert json.loads(told.stdout)["units"] == UNITS_1024
    assert world.generator.jobs == []
    assert await world.charged() == 0


async def test_a_quote_that_is_too_dear(make_world: MakeWorld, use: Use) -> None:
    world = await make_world(granted=1)
    async with listening(world.app) as url:
        said = await use("quote", "x", "--url", url, key=world.key)
    assert "you cannot pay it now" in said.stdout


async def test_the_status_of_a_user(world: World, use: Use) -> None:
    async with listening(world.app) as url:
        done = await use("status", "--url", url, key=world.key)
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["ready"] == "yes"
    assert lines["model"].startswith("flux-mini, also black-forest-labs/FLUX.1-schnell: 1024x1024")
    assert lines["queue"] == "a picture asked for now takes 2.5 s"
    assert lines["account"].startswith("alice: 104,857,600 compute units available, 0 held")
    assert "scope admin" in lines["note"]
    assert "replicas" not in lines


async def test_the_status_of_an_operator(world: World, use: Use) -> None:
    admin = await world.ledger.admin.create_key("alice", scopes=["admin"])
    environment = {"FLUX_SERVE_ADMIN_KEY": admin.secret}
    async with listening(world.app) as url:
        done = await use("status", "--url", url, key=world.key, env=environment)
        told = await use("status", "--json", "--url", url, key=world.key, env=environment)
    assert "flux-mini: 2 of 3 running, 1 starting, 0 stopping; 0 jobs" in done.stdout
    assert json.loads(told.stdout)["fleet"][0]["replicas"]["target"] == 3


async def test_a_server_that_is_not_ready(world: World, use: Use) -> None:
    world.models_ready = False
    async with listening(world.app) as url:
        done = await use("status", "--url", url, key=world.key, code=7)
        told = await use("status", "--json", "--url", url, key=world.key, code=7)
    assert "ready     NO: No model can serve yet." in done.stdout
    assert "account   alice" in done.stdout
    assert json.loads(told.stdout)["ready"] is False


async def test_nobody_can_tell_the_replicas(world: World, use: Use) -> None:
    async def silent() -> dict[str, object]:
        raise Unavailable("Serve does not answer.")

    world.ask_fleet = silent  # type: ignore[assignment]
    admin = await world.ledger.admin.create_key("alice", scopes=["images", "admin"])
    async with listening(world.app) as url:
        done = await use("status", "--url", url, key=admin.secret, code=7)
    assert "replicas and queues: Serve does not answer." in done.stdout


@pytest.mark.parametrize(("key", "code"), [(None, 0), ("sk-wrong", 4)])
async def test_without_a_good_key_the_rest_is_shown(
    world: World, use: Use, key: str | None, code: int
) -> None:
    async with listening(world.app) as url:
        done = await use("status", "--url", url, key=key, code=code)
    assert "ready     yes" in done.stdout
    assert ("without an API key" in done.stdout) is (key is None)
    assert ("The key is from FLUX_SERVE_API_KEY" in done.stdout) is (key is not None)
    assert "alice" not in done.stdout


async def test_tab_completes_the_servers_models(world: World, use: Use) -> None:
    async with listening(world.app) as url:
        for words, expected in (
            (f"flux-serve quote x --url {url} --model ", ["flux-mini", "black-forest-labs/"]),
            (f"flux-serve quote x --url {url} --model black", ["black-forest-labs/FLUX.1-schnell"]),
            ("flux-serve generate x --quality h", ["hd\nhigh"]),
            ("flux-serve quote x --url http://127.0.0.1:9 --model ", []),
        ):
            environment = {
                "_FLUX_SERVE_COMPLETE": "complete_bash",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split(" ")) - 1),
            }
            done = await use(key=world.key, env=environment, prog_name="flux-serve")
            assert all(name in done.stdout for name in expected), done.stdout
            assert expected or done.stdout.strip() == ""


def test_completion_can_be_installed(tmp_path: Path) -> None:
    require(shutil.which("bash") is not None, "bash is not installed")
    program = Path(sys.executable).with_name("flux-serve")
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", f"{program} --install-completion; echo status $?"],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert "status 0" in done.stdout, done.stdout + done.stderr
    scripts = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_FLUX_SERVE_COMPLETE=complete_bash" in path.read_text() for path in scripts)
