"""HAProxy mode: clients reach the gateway's own port, past Serve's Python proxy.

The whole product under `serve run`, with a key that was paid for: HAProxy listens on every
interface, where a development key is refused.
"""

import json
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.gateway_serve import haproxy_environment
from tests.conftest import ROOT, Served, free_port, short_folder
from tests.integration.conftest import error_of, eventually
from tests.machine import MACHINE
from tests.nodes import Nodes
from tests.serving import Command, written

pytestmark = pytest.mark.serve

SMALL = {"prompt": "a red circle on a blue background", "size": "256x256"}
LONG = {"prompt": "a red circle", "size": "512x512", "num_inference_steps": 50, "n": 2}
"""Takes seconds: long enough to leave in the middle, and a slow machine takes it, too."""
HOSTILE = {
    "x-request-timeout-seconds": "0.001",
    "x-request-disconnect-disabled": "?1",
    "x-session-id": "mine",
    "serve_multiplexed_model_id": "mine",
}
UNITS = 256 * 256
NODE = {"num_cpus": 4, "object_store_memory": 200_000_000, "include_log_monitor": False}


@pytest.fixture(scope="module")
def app() -> Iterator[Served]:
    """Ray's own `serve run`, on a Ray cluster that is there already and has no dashboard."""
    folder, port = short_folder(), free_port()
    data = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    data["http_options"] = {"host": "0.0.0.0", "port": port}
    args = data["applications"][0]["args"]
    args["public_url"] = f"http://127.0.0.1:{port}"
    del args["development"]
    served = written(folder, yaml.safe_dump(data), args["public_url"], "")
    environment = haproxy_environment(folder)
    nodes = Nodes(folder, environment=environment, dashboard_port=free_port(), **NODE)
    try:
        command = Command(served, "serve", "run", **environment, RAY_ADDRESS=nodes.address)
        try:
            command.wait_until_ready()
            assert list(folder.glob("haproxy/*/haproxy.cfg")), "HAProxy does not run"
            yield served
            report = served.flux_serve("audit")
            assert report["balanced"], report
        finally:
            command.stop()
    finally:
        nodes.stop()


@pytest.fixture(scope="module")
def headers(app: Served) -> dict[str, str]:
    app.flux_serve("accounts", "create", "alice")  # there is no key yet that could ask over HTTP
    app.flux_serve("grant", "alice", str(10**9), "--reason", "for a test")
    return {"authorization": f"Bearer {app.flux_serve('keys', 'create', 'alice')['secret']}"}


def balance(app: Served, headers: dict[str, str]) -> dict[str, Any]:
    request = urllib.request.Request(f"{app.url}/v1/account", headers=headers)
    with urllib.request.urlopen(request, timeout=MACHINE.allow(30)) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def test_an_image_is_drawn_charged_and_downloads(app: Served, headers: dict[str, str]) -> None:
    before = balance(app, headers)["captured"]
    url = f"{app.url}/v1/images/generations"
    mine = {"x-request-id": "mine-1"}
    reply = httpx.post(url, json=SMALL, headers={**headers, **mine}, timeout=MACHINE.allow(120))
    assert reply.status_code == 200, reply.text
    assert reply.headers.get_list("x-request-id") == ["mine-1"]
    assert reply.headers["x-compute-units"] == str(UNITS)
    assert (
        httpx.get(reply.json()["data"][0]["url"], timeout=MACHINE.allow()).headers["content-type"]
        == "image/png"
    )
    assert balance(app, headers)["captured"] == before + UNITS


def test_every_failure_of_ours_is_in_openais_shape_with_one_request_id(app: Served) -> None:
    for path, status, code in (
        ("/v1/nothing", 404, "unknown_url"),
        ("/v1/models", 401, None),
        ("/v1/images/generations", 405, "method_not_allowed"),
    ):
        reply = httpx.get(
            f"{app.url}{path}", headers={"x-request-id": "bad id\t!"}, timeout=MACHINE.allow()
        )
        assert reply.status_code == status
        error = error_of(reply)
        assert code is None or error["code"] == code
        assert reply.headers["x-request-id"].startswith("req_")


def test_control_headers_from_outside_have_no_effect(app: Served, headers: dict[str, str]) -> None:
    url = f"{app.url}/v1/images/generations"
    reply = httpx.post(url, json=SMALL, headers={**headers, **HOSTILE}, timeout=MACHINE.allow(120))
    assert reply.status_code == 200, reply.text


def test_a_stream_brings_its_events(app: Served, headers: dict[str, str]) -> None:
    body = {**SMALL, "stream": True, "partial_images": 1}
    url = f"{app.url}/v1/images/generations"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=MACHINE.allow(120)) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if "data: {" in line]
    kinds = [json.loads(line)["type"] for line in lines]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]


def test_a_client_that_leaves_pays_nothing_though_it_asks_to_be_ignored(
    app: Served, headers: dict[str, str]
) -> None:
    before = balance(app, headers)["captured"]
    url = f"{app.url}/v1/images/generations"
    host, port = app.url.removeprefix("http://").split(":")
    body = json.dumps(LONG).encode()
    lines = [
        f"POST {url.removeprefix(app.url)} HTTP/1.1",
        f"host: {host}:{port}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in {**headers, **HOSTILE}.items()),
    ]
    with socket.create_connection((host, int(port))) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        eventually(lambda: balance(app, headers)["held"] > 0, "the units are held")
    eventually(lambda: balance(app, headers)["held"] == 0, "the hold is released")
    assert balance(app, headers)["captured"] == before
