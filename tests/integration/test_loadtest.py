"""`flux-serve loadtest` against the shipped configuration: verdicts, report, and the books."""

import csv
import json
import os
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BIN, Served, free_port
from tests.machine import MACHINE, eventually

pytestmark = pytest.mark.serve

MIX = """
requests:
  - {weight: 3, size: 256x256, quality: low, prompts: [a red circle, a blue square]}
  - {weight: 1, size: 256x256, steps: 1, n: 2}
"""


def start(served: Served, folder: Path, *options: str, key: str = "") -> "subprocess.Popen[str]":
    (folder / "mix.yaml").write_text(MIX)
    command = [str(BIN / "flux-serve"), "loadtest", "--target", served.url]
    return subprocess.Popen(
        [*command, "--out", str(folder / "out"), *options],
        env={**os.environ, "FLUX_SERVE_API_KEY": key or served.key},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    said, noise = process.communicate(timeout=MACHINE.allow(200))
    return process.returncode, said + (noise or "")


def results(folder: Path) -> Any:
    return json.loads((folder / "out" / "results.json").read_text())


def test_a_burst_is_charged_exactly_what_it_delivered(served: Served, tmp_path: Path) -> None:
    before = eventually(
        lambda: (now := served.balance())["held"] == 0 and now, "jobs of other tests have ended"
    )["captured"]
    options = ("--profile", "burst", "--duration", "6s", "--peak-rps", "4", "--workers", "2")
    options += ("--mix", str(tmp_path / "mix.yaml"), "--slo", "p95=100s,errors=0%")
    status, said = finish(start(served, tmp_path, *options))
    assert status == 0, said
    found = results(tmp_path)
    assert found["ledger"]["standing"] == "equal"
    assert found["figures"]["delivered"] == found["planned"] > 0
    assert found["ledger"]["charged_units"] == served.balance()["captured"] - before
    with (tmp_path / "out" / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["units"]) for row in rows) == found["ledger"]["charged_units"] > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"charged {found['ledger']['charged_units']:,} CU = delivered" in page
    assert (tmp_path / "out" / "replicas.png").stat().st_size > 1000
    assert found["figures"]["replica_seconds"] >= found["figures"]["lasted_s"] * 0.9


def test_workers_elsewhere_send_what_a_master_plans(served: Served, tmp_path: Path) -> None:
    """Two workers that know the target, the key and the master's address, and nothing else."""
    address = f"127.0.0.1:{free_port()}"
    command = [str(BIN / "flux-serve"), "loadtest", "--target", served.url, "--worker", address]
    key = served.new_key("elsewhere", 10**9)
    workers = [
        subprocess.Popen(
            command,
            env={**os.environ, "FLUX_SERVE_API_KEY": key},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    options = ("--profile", "burst", "--duration", "6s", "--peak-rps", "4", "--workers", "2")
    options += ("--mix", str(tmp_path / "mix.yaml"), "--master", address)
    try:
        status, said = finish(start(served, tmp_path, *options, key=key))
        assert status == 0, said
        found = results(tmp_path)
        assert found["figures"]["delivered"] == found["planned"] > 0
        assert found["ledger"]["charged_units"] == served.balance(key)["captured"] > 0
        assert [worker.wait(MACHINE.allow()) for worker in workers] == [
            0,
            0,
        ]  # the master dismisses them
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_a_missed_objective_and_cut_off_requests_have_their_own_exit_status(
    served: Served, tmp_path: Path
) -> None:
    """A time limit that no picture can keep: all is given up, and nothing is charged for it."""
    key = served.new_key("hasty", 10**9)
    options = ("--profile", "soak", "--duration", "3s", "--peak-rps", "2", "--timeout", "100ms")
    status, said = finish(start(served, tmp_path, *options, "--slo", "errors=1%", key=key))
    assert status == 3, said
    assert results(tmp_path)["figures"]["codes"].keys() == {"client_timeout"}
    assert served.balance(key)["captured"] == 0
    assert "no key with the scope 'admin'" in said  # a customer's key watches no replicas


def test_another_client_of_the_account_is_found_out(served: Served, tmp_path: Path) -> None:
    key = served.new_key("shared", 10**9)
    (tmp_path / "trace.csv").write_text("time_s,size,steps\n0,256x256,1\n3,256x256,1\n")
    process = start(served, tmp_path, "--profile", str(tmp_path / "trace.csv"), key=key)
    eventually(
        lambda: (now := served.balance(key))["held"] + now["captured"] > 0, "the test has begun"
    )
    process.send_signal(signal.SIGSTOP)  # it does not look at the account again meanwhile
    other = urllib.request.Request(
        f"{served.url}/v1/images/generations",
        data=json.dumps({"prompt": "mine", "size": "256x256"}).encode(),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(other, timeout=MACHINE.allow(120)) as reply:
        spent = int(reply.headers["x-compute-units"])
    process.send_signal(signal.SIGCONT)
    status, said = finish(process)
    assert status == 4, said
    found = results(tmp_path)["ledger"]
    assert (found["standing"], found["surplus_units"]) == ("wrong", spent)
    assert "another client spent on this account" in said


def test_a_test_that_the_account_cannot_pay_is_not_begun(served: Served, tmp_path: Path) -> None:
    key = served.new_key("poor", 1)
    status, said = finish(start(served, tmp_path, key=key))
    assert status == 1
    assert "the account has 1:" in said
    assert served.balance(key)["captured"] == 0
