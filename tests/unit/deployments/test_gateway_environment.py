"""What the gateway's actor is told by its environment, in a process of its own."""

import os
import subprocess
import sys

from serve_app.deployments.gateway import GRPC
from tests.conftest import free_port

CALL = """
import asyncio, grpc
from ray._private.grpc_utils import init_grpc_channel

async def main():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = init_grpc_channel(f"127.0.0.1:{port}", asynchronous=True)
    try:
        await channel.unary_unary("/no/method")(b"", timeout=20)
    except grpc.RpcError as failure:
        print(failure.code().name)
    await channel.close()
    await server.stop(0)

asyncio.run(main())
"""
"""How Serve makes its channel to a replica, to a server that is there and knows no method."""


def called(environment: dict[str, str]) -> str:
    proxy = f"http://127.0.0.1:{free_port()}"
    done = subprocess.run(
        [sys.executable, "-c", CALL],
        env={**os.environ, "http_proxy": proxy, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


def test_a_sites_http_proxy_is_not_between_gateway_and_model() -> None:
    assert called({}) == "UNAVAILABLE"  # gRPC asks the proxy for everything
    assert called(GRPC) == "UNIMPLEMENTED"  # it was asked, directly
