"""What the gateway's actor is told by its environment, in a process of its own."""

import os
import subprocess
import sys

import pytest
import yaml

from serve_app.deployments.gateway import ACTOR_OPTIONS, GRPC
from tests.conftest import ROOT, free_port
from tests.machine import MACHINE

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
    inherited = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    proxy = f"http://127.0.0.1:{free_port()}"
    done = subprocess.run(
        [sys.executable, "-c", CALL],
        env={**inherited, "http_proxy": proxy, **environment},
        capture_output=True,
        text=True,
        timeout=MACHINE.allow(),
        check=True,
    )
    return done.stdout.strip()


def test_a_sites_http_proxy_is_not_between_gateway_and_model() -> None:
    assert called({}) == "UNAVAILABLE"  # gRPC asks the proxy for everything
    assert called(GRPC) == "UNIMPLEMENTED"  # it was asked, directly


@pytest.mark.parametrize("file", ["configs/cluster.yaml", "cluster.yaml"])
def test_the_shipped_clusters_have_the_environment_of_the_code(file: str) -> None:
    """Their `ray_actor_options` replace those of the code."""
    documents = list(yaml.safe_load_all((ROOT / file).read_text()))
    (serve,) = (
        yaml.safe_load(one["spec"]["serveConfigV2"]) if "spec" in one else one
        for one in documents
        if one.get("kind", "RayService") == "RayService"
    )
    (gateway,) = (
        one for one in serve["applications"][0]["deployments"] if one["name"] == "Gateway"
    )
    assert gateway["ray_actor_options"]["runtime_env"] == ACTOR_OPTIONS["runtime_env"]
