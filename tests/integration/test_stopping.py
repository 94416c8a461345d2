"""`flux-serve serve` told to stop while it draws: the job under way gets its pictures."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
import yaml

from tests.conftest import ROOT, free_port, short_folder
from tests.integration.conftest import eventually
from tests.machine import MACHINE
from tests.serving import Command, written

pytestmark = pytest.mark.serve

SIZE = "1024x1024"
JOB = {"prompt": "a red circle", "size": SIZE, "num_inference_steps": 50, "n": 8}
"""Fourteen seconds of the simulated GPU: far more than Serve needs to refuse others."""
UNITS = 8 * 1024 * 1024 * 50 // 4
STOP_S = 120.0


@pytest.fixture
def command() -> Iterator[Command]:
    """`flux-serve serve` on the shipped configs/loadtest.yaml, with one GPU."""
    folder, port = short_folder(), free_port()
    data = yaml.safe_load((ROOT / "configs" / "loadtest.yaml").read_text())
    data["http_options"]["port"] = port
    application = data["applications"][0]
    args = application["args"]
    args["public_url"] = f"http://127.0.0.1:{port}"
    simulation = args["models"][0]["engine"]["simulation"]
    simulation |= {"load_s": 0, "time_scale": MACHINE.slowness}
    del application["deployments"]
    key = args["development"]["key"]
    served = written(folder, yaml.safe_dump(data), args["public_url"], key)
    command = Command(served, "flux-serve", "serve")
    try:
        command.wait_until_ready()
        yield command
    finally:
        command.stop()


def test_a_job_under_way_is_finished_delivered_and_charged(command: Command) -> None:
    app, process = command.served, command.process
    started = psutil.Process(process.pid).children(recursive=True)
    headers = {"authorization": f"Bearer {app.key}"}
    url = f"{app.url}/v1/images/generations"
    wait_s = MACHINE.allow(120)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(httpx.post, url, json=JOB, headers=headers, timeout=wait_s)
        eventually(lambda: app.balance()["held"] == UNITS, "the job is held")
        process.send_signal(signal.SIGTERM)
        late = eventually(
            lambda: (
                (
                    reply := httpx.get(f"{app.url}/v1/models", headers=headers, timeout=wait_s)
                ).status_code
                != 200
                and reply
            ),
            "new requests are refused",
        )
        assert not job.done()
        reply = job.result()
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "service_unavailable"
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["data"]) == 8
    assert process.wait(MACHINE.allow(STOP_S)) == 0
    account = app.flux_serve("accounts", "list")[0]
    assert (account["captured"], account["held"]) == (UNITS, 0)
    eventually(
        lambda: not [one for one in started if one.is_running()], "no process of the server is left"
    )
