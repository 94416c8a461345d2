"""`flux-serve serve` told to stop while it draws: the job under way gets its pictures."""

import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from tests.conftest import ROOT, Served, free_port, start, stop, wait_until_ready
from tests.integration.conftest import eventually

pytestmark = pytest.mark.serve

SIZE = "1024x1024"
JOB = {"prompt": "a red circle", "size": SIZE, "num_inference_steps": 50, "n": 8}
"""Fourteen seconds of the simulated GPU: far more than Serve needs to refuse others."""
UNITS = 8 * 1024 * 1024 * 50 // 4


@pytest.fixture
def started() -> Iterator[tuple[Served, "subprocess.Popen[bytes]"]]:
    """`flux-serve serve` on the shipped configs/loadtest.yaml, with one GPU."""
    with tempfile.TemporaryDirectory(prefix="fs-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        config, port = folder / "config.yaml", free_port()
        data = yaml.safe_load((ROOT / "configs" / "loadtest.yaml").read_text())
        data["http_options"]["port"] = port
        application = data["applications"][0]
        args = application["args"]
        args["public_url"] = f"http://127.0.0.1:{port}"
        args["models"][0]["engine"]["simulation"]["load_s"] = 0
        del application["deployments"]
        config.write_text(yaml.safe_dump(data))
        key = args["development"]["key"]
        app = Served(args["public_url"], key, folder, config, folder / "serve.log")
        process = start(app, ("flux-serve", "serve"))
        try:
            wait_until_ready(app, process)
            yield app, process
        finally:
            stop(process)


def test_a_job_under_way_is_finished_delivered_and_charged(
    started: "tuple[Served, subprocess.Popen[bytes]]",
) -> None:
    app, process = started
    headers = {"authorization": f"Bearer {app.key}"}
    url = f"{app.url}/v1/images/generations"
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(httpx.post, url, json=JOB, headers=headers, timeout=120)
        eventually(lambda: app.balance()["held"] == UNITS, "the job is held")
        process.send_signal(signal.SIGTERM)
        late = eventually(
            lambda: (
                (r := httpx.get(f"{app.url}/v1/models", headers=headers, timeout=60)).status_code
                != 200
                and r
            ),
            "new requests are refused",
        )
        assert not job.done()
        reply = job.result()
    assert late.status_code == 503
    assert late.json()["error"]["code"] == "service_unavailable"
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["data"]) == 8
    assert process.wait(120) == 0
    account = app.flux_serve("accounts", "list")[0]
    assert (account["captured"], account["held"]) == (UNITS, 0)
