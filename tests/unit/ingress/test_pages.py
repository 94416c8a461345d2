"""The pages: what a browser is sent, what it is allowed to do, and who is told a key."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from scripted import World, error_of

from serve_app.ingress.pages import FOLDER, static_files

MakeWorld = Callable[..., Awaitable[World]]
KEY = "sk-for-development"


async def get(world: World, path: str, **headers: str) -> httpx.Response:
    return await world.client(None).get(path, headers=headers)


async def test_the_playground_is_at_the_root_and_needs_no_key(world: World) -> None:
    reply = await get(world, "/")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.content == (FOLDER / "playground.html").read_bytes()
    assert len((await world.client(None).head("/")).content) == 0


async def test_the_admin_page_needs_no_key_to_be_loaded(world: World) -> None:
    reply = await get(world, "/admin")
    assert reply.status_code == 200
    assert reply.content == (FOLDER / "admin.html").read_bytes()
    assert reply.headers["content-security-policy"]


async def test_every_reply_carries_the_policy(world: World) -> None:
    for path in (
        "/",
        "/admin",
        "/web/shared.css",
        "/web/playground.js",
        "/web/icon.svg",
        "/web/start.json",
    ):
        headers = (await get(world, path)).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy  # no other origin
        assert headers.get_list("x-content-type-options") == ["nosniff"]
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", sorted(static_files()))
async def test_every_file_is_served_with_its_type(world: World, name: str) -> None:
    reply = await get(world, f"/web/{name}")
    assert reply.content == (FOLDER / name).read_bytes()
    kinds = {
        "html": "text/html",
        "css": "text/css",
        "js": "text/javascript",
        "svg": "image/svg+xml",
    }
    assert reply.headers["content-type"].partition(";")[0] == kinds[name.rpartition(".")[2]]


async def test_a_browser_that_has_the_file_is_told_so(world: World) -> None:
    first = await get(world, "/web/shared.css")
    again = await get(world, "/web/shared.css", **{"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"]
    other = await get(world, "/web/shared.css", **{"if-none-match": '"older"'})
    assert other.status_code == 200


@pytest.mark.parametrize("name", ["none.js", "..%2Fconfig.py", "%2e%2e/config.py", "", "a/b"])
async def test_nothing_else_is_served(world: World, name: str) -> None:
    reply = await get(world, f"/web/{name}")
    assert reply.status_code == 404
    assert error_of(reply)["code"] == "unknown_url"


def test_no_file_asks_for_anything_elsewhere_or_holds_code_that_the_policy_refuses() -> None:
    for name, file in static_files().items():
        text = file.data.decode("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|[\"'(]//", text), name
        assert not re.search(r"\.innerHTML|insertAdjacentHTML|\beval\(|localStorage", text), name
        if name.endswith(".html"):
            assert not re.search(r"<style|\sstyle=|\son[a-z]+=", text), name
            assert not re.search(r"<script(?![^>]*\ssrc=)", text), name


def test_every_file_that_a_page_names_is_there() -> None:
    for name, file in static_files().items():
        text = file.data.decode("utf-8")
        named = re.findall(r'(?:href|src)="web/([^"]+)"', text) + re.findall(
            r'from "\./(.+?)"', text
        )
        assert set(named) <= set(static_files()), name
        assert named or not name.endswith(".html")


async def start(world: World, client: Any = ("127.0.0.1", 5000), **headers: str) -> Any:
    asking = world.client(None, client=client)
    reply = await asking.get("/web/start.json", headers={"host": "127.0.0.1:8000", **headers})
    assert reply.headers["cache-control"] == "no-store"
    return reply.json()["development_key"]


@pytest.fixture
async def development(make_world: MakeWorld) -> World:
    return await make_world(development={"key": KEY})


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "localhost"])
async def test_a_browser_at_a_development_server_is_told_its_key(
    development: World, host: str
) -> None:
    assert await start(development, host=host) == KEY
    assert await start(development, host=host, **{"sec-fetch-site": "same-origin"}) == KEY


async def test_any_other_server_tells_none(world: World) -> None:
    assert await start(world) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example"},
        {"host": "192.168.1.5:8000"},
        {"host": "127.0.0.1.example:8000"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"x-forwarded-for": "10.0.0.1"},
        {"x-forwarded-host": "127.0.0.1"},
        {"x-real-ip": "127.0.0.1"},
        {"forwarded": "for=127.0.0.1"},
        {"via": "1.1 proxy"},
    ],
    ids=str,
)
async def test_whoever_may_come_from_elsewhere_is_told_none(
    development: World, headers: dict[str, str]
) -> None:
    assert await start(development, **headers) is None


@pytest.mark.parametrize("client", [("192.168.1.5", 5000), ("8.8.8.8", 5000), None])
async def test_another_machine_is_told_none(development: World, client: Any) -> None:
    assert await start(development, client) is None
