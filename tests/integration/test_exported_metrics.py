"""What Prometheus scrapes of a real cluster: every metric of the table, with its labels."""

from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from serve_app.metrics import (
    ACCOUNT_UNITS,
    ALL,
    ERRORS,
    HOLDS_ENDED,
    IMAGES,
    JOB_SECONDS,
    JOBS,
    LEDGER_IMBALANCE,
    LEDGER_UP,
    REPLICAS,
    REQUESTS,
    STEP_BATCHES,
    STEPS,
    UNITS_CAPTURED,
    Metric,
)
from tests.integration.conftest import App, Apps, Cluster, eventually, until_healthy
from tests.integration.metrics_kit import Scrape, once_quiet
from tests.machine import MACHINE

pytestmark = pytest.mark.serve

GENERATIONS = "/v1/images/generations"
BODY = {"prompt": "a red circle", "size": "256x256"}
UNITS = 256 * 256
OF_MAIN = {"application": "main", "model": "flux-mini"}
OF_ROUTE = {"application": "main", "route": GENERATIONS}
CAUSED: tuple[tuple[str, dict[str, str], int], ...] = (
    (IMAGES.exported, OF_MAIN, 3),
    (JOBS.exported, OF_MAIN, 2),
    (STEPS.exported, OF_MAIN, 3 * 4),
    (REQUESTS.exported, OF_ROUTE, 4),
)
"""What processes count that report at times of their own."""
NOT_HERE = {
    "idempotent_replays_total": "no request of these tests is sent again",
    "replica_deaths_total": "the tests that kill replicas come later",
    "holds_expired_total": "no gateway of these tests dies with a hold",
    "holds_refunded_total": "no gateway of these tests dies with a reply",
    "compute_units_refunded_total": "no gateway of these tests dies with a reply",
    "ledger_outages_total": "the ledger stays up",
    "store_failures_total": "the store stays up",
    "images_swept_total": "no image lives long enough to expire",
    "recompiles_total": "nothing is compiled on this CPU",
    "eager_calls_total": "nothing is compiled on this CPU",
    "graph_replays_total": "needs CUDA graphs",
    "graph_misses_total": "needs CUDA graphs",
    "decodes_alone_total": "needs overlap_decode",
    "out_of_memory_total": "needs a GPU",
}
"""Counters that count nothing here, and so are absent."""


def post(app: App, body: dict[str, Any], key: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key or app.key}"}
    return httpx.post(
        f"{app.url}{GENERATIONS}", json=body, headers=headers, timeout=MACHINE.allow(120)
    )


@dataclass(frozen=True)
class Seen:
    """What was exported before the traffic of these tests, and after it."""

    before: Scrape
    after: Scrape

    def more(self, name: str, **labels: str) -> float:
        return self.after.total(name, **labels) - self.before.total(name, **labels)


@pytest.fixture(scope="module")
def seen(cluster: Cluster, apps: Apps) -> Seen:
    """One job, one stream and two failures."""
    main = apps.main
    until_healthy(main)
    before = once_quiet(cluster.metrics_url)  # other tests use the cluster, too
    post(main, {**BODY, "n": 2}).raise_for_status()
    stream = post(main, {**BODY, "stream": True, "partial_images": 1})
    assert "image_generation.completed" in stream.text
    assert post(main, {**BODY, "model": "nobody"}).status_code == 404
    assert post(main, BODY, key="sk-wrong-key").status_code == 401

    def told() -> bool:
        now = Scrape.of(cluster.metrics_url)
        return all(
            now.total(name, **labels) - before.total(name, **labels) >= count
            for name, labels, count in CAUSED
        )

    eventually(told, "every process has told what it counted")
    after = once_quiet(cluster.metrics_url)
    missing = {series_of(metric) for metric in ALL if metric.name not in NOT_HERE} - after.names
    assert not missing
    return Seen(before, after)


def series_of(metric: Metric) -> str:
    return metric.exported + ("_bucket" if metric.kind == "histogram" else "")


def test_every_metric_is_exported_as_the_documentation_says(seen: Seen, cluster: Cluster) -> None:
    for metric in ALL:
        found = seen.after.named(series_of(metric))
        if metric.name in NOT_HERE and not found:
            continue
        family = metric.exported.removesuffix("_total")  # as Prometheus' parser names counters
        assert seen.after.kinds[family] == metric.kind, metric
        le = {"le"} if metric.kind == "histogram" else set()
        for one in found:
            assert set(one.own_labels) == {*metric.labels, *le}, metric
            expected = "Gateway" if metric.source == "gateway" else "FluxModel-"
            assert one.labels["deployment"].startswith(expected), metric
            assert one.labels["application"] in cluster.seen, metric


def test_the_numbers_are_those_of_what_was_done(seen: Seen) -> None:
    of = OF_MAIN
    assert seen.more(IMAGES.exported, **of) == 3
    assert seen.more(UNITS_CAPTURED.exported, **of) == 3 * UNITS
    assert seen.more(HOLDS_ENDED.exported, **of, state="captured") == 2
    assert seen.more(JOBS.exported, **of, mode="json", outcome="ok") == 1
    assert seen.more(JOBS.exported, **of, mode="stream", outcome="ok") == 1
    assert seen.more(f"{JOB_SECONDS.exported}_count", **of) == 2
    assert seen.more(ACCOUNT_UNITS.exported, application="main") == 3 * UNITS
    steps = seen.more(STEPS.exported, **of)
    assert steps == 3 * 4
    assert 2 * 4 <= seen.more(STEP_BATCHES.exported, **of) <= steps


def test_requests_and_errors_are_counted_by_route_and_code(seen: Seen) -> None:
    of = OF_ROUTE
    assert seen.more(REQUESTS.exported, **of, method="POST", status="200") == 2
    assert seen.more(REQUESTS.exported, **of, method="POST", status="404") == 1
    assert seen.more(ERRORS.exported, **of, code="model_not_found") == 1
    assert seen.more(ERRORS.exported, **of, code="invalid_api_key") == 1


def test_the_gauges_show_a_healthy_server(seen: Seen) -> None:
    assert {one.value for one in seen.after.named(LEDGER_UP.exported)} == {1}
    assert {one.value for one in seen.after.named(LEDGER_IMBALANCE.exported)} == {0}
    of = {"application": "main", "model": "flux-mini"}
    assert seen.after.total(REPLICAS.exported, **of, state="running") == 2
    assert seen.after.total(REPLICAS.exported, **of, state="target") == 2
