"""Who may talk to whom in cluster.yaml, and what the edge lets through."""

import pytest

from serve_app.deployments.proxy import CONTROL_HEADERS, SYSTEM_ROUTES
from tests.kubernetes.cluster_kit import ROUTE, at, load, named, pod_templates
from tests.kubernetes.network_rules import allowed, pods


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("internet", "edge", 443),
        ("edge", "upgrade-gateway", 80),
        ("upgrade-gateway", "gateway", 8000),
        ("upgrade-gateway", "model", 8000),
        ("edge", "istiod", 15012),
        ("upgrade-gateway", "istiod", 15012),
        ("kuberay operator", "head", 8265),
        ("gateway", "head", 6379),
        ("model", "head", 6379),
        ("head", "model", 10002),
        ("model", "gateway", 30000),  # HAProxy of a GPU pod -> gateway
        ("gateway", "head", 8500),  # HAProxy's fallback: Serve's own proxy
        ("gateway", "model", 41971),  # a replica's random port for calls
        ("gateway", "ledger", 5432),
        ("migration", "ledger", 5432),
        ("ledger", "ledger", 5432),
        ("cloudnative-pg", "ledger", 8000),
        ("head", "redis", 6379),
        ("redis-cleanup", "redis", 6379),
        ("head", "internet", 443),  # stands for Kubernetes' own address
        ("ledger", "internet", 6443),
        ("gateway", "internet", 443),
        ("weights", "internet", 443),
        ("prometheus", "gateway", 9101),
        ("prometheus", "model", 8080),
        ("prometheus", "ledger", 9187),
    ],
)
def test_what_must_talk_may(source: str, target: str, port: int) -> None:
    assert allowed(load(), source, target, port)


@pytest.mark.parametrize(
    ("source", "target", "port"),
    [
        ("internet", "upgrade-gateway", 80),  # keys would travel in clear
        ("internet", "gateway", 8000),
        ("internet", "head", 8265),
        ("another tenant", "gateway", 8000),
        ("another tenant", "head", 6379),
        ("another tenant", "ledger", 5432),
        ("another tenant", "redis", 6379),
        ("edge", "gateway", 8000),
        ("upgrade-gateway", "head", 8000),
        ("upgrade-gateway", "gateway", 30000),  # past HAProxy
        ("upgrade-gateway", "gateway", 9101),
        ("upgrade-gateway", "head", 8265),
        ("kuberay operator", "gateway", 8000),
        ("prometheus", "gateway", 8000),
        ("prometheus", "head", 8265),
        ("model", "ledger", 5432),
        ("head", "ledger", 5432),
        ("weights", "ledger", 5432),
        ("gateway", "redis", 6379),
        ("model", "internet", 443),
        ("migration", "internet", 443),
        ("redis", "internet", 443),
        ("gateway", "internet", 80),
        ("weights", "head", 6379),
        ("migration", "head", 6379),
    ],
)
def test_what_need_not_talk_may_not(source: str, target: str, port: int) -> None:
    assert not allowed(load(), source, target, port)


@pytest.mark.parametrize("pod", [name for name, pod in pods(load()).items() if pod.namespace])
def test_every_pod_finds_names(pod: str) -> None:
    assert allowed(load(), pod, "dns", 53, "UDP")


def test_without_the_default_everything_is_open() -> None:
    """The evaluator follows Kubernetes: a pod that no policy selects takes any connection."""
    objects = [item for item in load() if item["kind"] != "NetworkPolicy"]
    assert allowed(objects, "another tenant", "ledger", 5432)


def test_every_monitored_port_exists_and_may_be_scraped() -> None:
    monitored = at(load(), "PodMonitor/flux-serve-ray:spec:podMetricsEndpoints")
    ports = {
        port["name"]: (template.labels["app.kubernetes.io/component"], port["containerPort"])
        for template in pod_templates(load())
        for port in template.spec["containers"][0].get("ports", [])
    }
    for endpoint in monitored:
        component, port = ports[endpoint["port"]]
        assert allowed(load(), "prometheus", component, port)


def test_the_edge_takes_no_orders_to_ray_serve() -> None:
    system, rest = named(load(), ROUTE)["spec"]["rules"]
    (removed,) = [one["requestHeaderModifier"]["remove"] for one in rest["filters"]]
    assert {name.encode() for name in removed} == CONTROL_HEADERS
    for route in SYSTEM_ROUTES:
        assert route.startswith(system["matches"][0]["path"]["value"])
    assert system["filters"][0]["type"] == "URLRewrite"
