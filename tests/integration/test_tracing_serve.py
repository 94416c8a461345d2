"""One request, told of by every process that it passed, under the same ids."""

from typing import Any

import httpx
import pytest

from tests.integration.conftest import MINI, App, Cluster, eventually

pytestmark = pytest.mark.serve

BODY = {"prompt": "a private circle", "size": "256x256", "user": 'u-7\n{"forged": 1}'}


def the_line(cluster: Cluster, component: str, request_id: str) -> dict[str, Any]:
    """Of ours there is one for a request in each process; Serve adds some of its own at times."""

    def ours() -> list[dict[str, Any]]:
        entries = cluster.log_entries(component, request_id=request_id)
        return [entry for entry in entries if entry["filename"] in {"accesslog.py", "jobline.py"}]

    (found,) = eventually(ours, f"a line of {component}")
    return dict(found)


def test_gateway_and_replica_log_a_job_under_the_same_ids(cluster: Cluster, main: App) -> None:
    url, chosen = f"{main.url}/v1/images/generations", "trace-me:1"
    headers = {**main.headers, "x-request-id": chosen}
    reply = httpx.post(url, json=BODY, headers=headers, timeout=60)
    assert reply.status_code == 200
    told = the_line(cluster, "Gateway", chosen)
    drawn = the_line(cluster, MINI, chosen)
    ids = {name: told[name] for name in ("request_id", "account_id", "hold_id", "model")}
    assert {**drawn, **ids} == drawn
    assert all(ids.values()), ids
    assert (told["status"], told["images"], told["user"]) == (200, 1, BODY["user"])
    assert told["units"] == int(reply.headers["x-compute-units"])
    assert (drawn["outcome"], drawn["images"]) == ("drawn", 1)
    assert told["deployment"].endswith("Gateway")
    assert drawn["deployment"].endswith(MINI)
    for entry in (told, drawn):
        assert "private" not in str(entry)
        assert main.key not in str(entry)
