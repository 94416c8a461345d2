"""A real HTTP server around an ASGI application."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn

from tests.machine import until

Use = Callable[..., Awaitable[Any]]


@contextlib.asynccontextmanager
async def listening(asgi: Any) -> AsyncIterator[str]:
    """The address of an application served on loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(asgi, log_config=None, lifespan="off"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started, "uvicorn to start")
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
