"""One request, told of by every process that it passed, under the same ids."""

import secrets
from typing import Any

import httpx
import pytest

from tests.integration.conftest import MINI, App, Apps, Cluster, eventually
from tests.machine import MACHINE
from tests.otlp_receiver import PROMPT, assert_documented, named

pytestmark = pytest.mark.serve

GENERATION = "POST /v1/images/generations"
BODY = {"prompt": PROMPT, "size": "256x256", "user": 'u-7\n{"forged": 1}'}


def the_line(cluster: Cluster, component: str, request_id: str) -> dict[str, Any]:
    """Of ours there is one for a request in each process; Serve adds some of its own at times."""

    def ours() -> list[dict[str, Any]]:
        entries = cluster.log_entries("main", component, request_id=request_id)
        return [entry for entry in entries if entry["filename"] in {"accesslog.py", "jobline.py"}]

    (found,) = eventually(ours, f"a line of {component}")
    return dict(found)


def test_gateway_and_replica_log_a_job_under_the_same_ids(cluster: Cluster, main: App) -> None:
    url, chosen = f"{main.url}/v1/images/generations", "trace-me:1"
    headers = {**main.headers, "x-request-id": chosen}
    reply = httpx.post(url, json=BODY, headers=headers, timeout=MACHINE.allow())
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
        assert PROMPT not in str(entry)
        assert main.key not in str(entry)


@pytest.mark.parametrize("stream", [False, True])
def test_gateway_and_replica_make_one_trace_under_the_clients_span(
    cluster: Cluster, apps: Apps, main: App, stream: bool
) -> None:
    trace_id, client = secrets.token_hex(16), secrets.token_hex(8)
    headers = {**main.headers, "traceparent": f"00-{trace_id}-{client}-01", "tracestate": "v=1"}
    body = {**BODY, "prompt": f"{PROMPT} {trace_id}", "n": 2, "stream": stream}
    url = f"{main.url}/v1/images/generations"
    reply = httpx.post(url, json=body, headers=headers, timeout=MACHINE.allow())
    assert reply.status_code == 200
    request_id = reply.headers["x-request-id"]
    spans = apps.receiver.until(
        lambda found: {"capture", "draw", GENERATION} <= {span.name for span in found}, trace_id
    )
    assert_documented(spans)
    request, job, drawn = (named(spans, name) for name in (GENERATION, "job", "draw"))
    assert (request.parent_id, request.tracestate) == (client, "v=1")
    assert job.parent_id == request.span_id
    assert drawn.parent_id == job.span_id
    for name in ("hold", "capture"):
        assert named(spans, name).parent_id == request.span_id
    stored = [span for span in spans if span.name == "store"]
    assert [span.parent_id for span in stored] == [request.span_id] * 2
    inside = [span for span in spans if span.parent_id == drawn.span_id]
    stages = ["queue", "steps", "decode", "file"]
    assert sorted(span.name for span in inside) == sorted([*stages, *stages, "encode"])
    assert job.lies_in(request)
    assert drawn.lies_in(job)
    assert all(span.lies_in(drawn) for span in inside)
    assert all(span.lies_in(request) for span in stored)
    assert not any(span.failed for span in spans)
    told, told_there = (the_line(cluster, name, request_id) for name in ("Gateway", MINI))
    for span, line in ((request, told), (drawn, told_there)):
        for name in ("request_id", "account_id", "hold_id", "model"):
            assert span.attributes[f"flux_serve.{name}"] == line[name]
        assert span.resource["service.instance.id"].endswith(line["replica"])
    assert job.attributes["flux_serve.stream"] is stream
    assert PROMPT not in str(spans)
    assert main.key not in str(spans)
