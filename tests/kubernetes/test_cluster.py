"""The parts of cluster.yaml agree: with configs/cluster.yaml, with each other, with the package."""

import re
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app import __version__
from serve_app.checkconfig import check_config_file
from tests.kubernetes.agreement_rules import agreement_problems, scaling_problems
from tests.kubernetes.cluster_kit import (
    CLUSTER,
    CONTAINER,
    DELETE,
    GATEWAYS,
    HEAD,
    MODELS,
    POD,
    RAY,
    ROOT,
    ROUTE,
    Objects,
    broken,
    load,
    named,
    of_kind,
    pod_templates,
    serve_config,
)

CONFIG = ROOT / "configs" / "cluster.yaml"


def test_the_serve_config_is_valid_for_ray_and_for_us(tmp_path: Path) -> None:
    text = named(load(), RAY)["spec"]["serveConfigV2"]
    ServeDeploySchema.model_validate(yaml.safe_load(text))
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    assert check_config_file(file) == []


def test_the_serve_config_equals_the_config_file() -> None:
    assert serve_config(load()) == yaml.safe_load(CONFIG.read_text(encoding="utf-8"))


def test_the_parts_of_the_file_agree() -> None:
    assert agreement_problems(load()) == []


def with_serve(old: str, new: str) -> Objects:
    """cluster.yaml with a change inside `serveConfigV2`."""
    text = named(load(), RAY)["spec"]["serveConfigV2"]
    assert old in text
    return broken(f"{RAY}:spec:serveConfigV2", text.replace(old, new))


@pytest.mark.parametrize(
    ("objects", "complaint"),
    [
        (broken(f"{HEAD}:rayStartParams:num-cpus", "2"), "on the head"),
        (broken(f"{GATEWAYS}:resources:gateway", "2"), "exactly one gateway"),
        (broken(f"{MODELS}:resources", {"gateway": "1"}), "on other pods"),
        (broken(f"{GATEWAYS}:resources:CPU", "0"), "too few CPUs"),
        (broken(f"{GATEWAYS}:maxReplicas", 5), "different limits"),
        (broken(f"{GATEWAYS}:minReplicas", 1), "fewer than two"),
        (broken(f"{MODELS}:maxReplicas", 3), "every replica"),
        (broken(f"{MODELS}:minReplicas", 1), "alone decides"),
        (broken(f"{MODELS}:{POD}:nodeSelector", DELETE), "accelerator"),
        (broken(f"{MODELS}:{CONTAINER}:resources:limits:cpu", "2"), "hold a replica"),
        (with_serve("num_gpus: 1", "num_gpus: 2"), "hold a replica"),
        (with_serve("resources:\n", "ressources:\n"), "exactly one gateway"),
        (broken(f"{HEAD}:{CONTAINER}:env:1", {"name": "X", "value": "1"}), "HAProxy cuts off"),
        (broken(f"{MODELS}:{POD}:terminationGracePeriodSeconds", 30), "Kubernetes kills"),
        (broken(f"{MODELS}:{CONTAINER}:lifecycle", DELETE), "does not drain"),
        (broken(f"{RAY}:spec:rayClusterDeletionDelaySeconds", 60), "an upgrade kills"),
        (broken(f"{ROUTE}:spec:rules:1:timeouts:request", "60s"), "gives up"),
        (broken(f"{MODELS}:{CONTAINER}:env:0:value", "0"), "HAProxy mode"),
        (broken(f"{MODELS}:{CONTAINER}:ports:0:containerPort", 80), "not Serve's"),
        (broken(f"{MODELS}:{CONTAINER}:env:0:name", "LEDGER_URL"), "password is in"),
        (broken(f"{ROUTE}:spec:hostnames", ["other.example.com"]), "the edge serves"),
        (broken("Gateway/flux-serve-edge:spec:gatewayClassName", "eg"), "gateway classes"),
        (broken(f"{CLUSTER}:rayVersion", "2.59.0"), "rayVersion"),
        (broken(f"{MODELS}:{CONTAINER}:image", "r/flux-serve:0.0.9-cuda"), "another version"),
        (broken(f"{MODELS}:{CONTAINER}:image", f"r/flux-serve:{__version__}-cpu"), "wrong image"),
        (broken("Job/flux-serve-migrate-0-1-0:metadata:name", "migrate"), "cannot change"),
        (with_serve("max_replicas: 6", "max_replicas: 9"), "more connections"),
        (broken("Cluster/flux-serve-ledger:spec:instances", 1), "forget charges"),
        (with_serve("${LEDGER_URL}", "${LEDGER_URL}\n        migrate_on_start: true"), "the Job"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parts_that_disagree_are_found(objects: Objects, complaint: str) -> None:
    assert any(complaint in problem for problem in agreement_problems(objects))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (":ComputeBacklogPolicy", ":decide", "by its backlog"),
        ("upscale_delay_s: 0 ", "upscale_delay_s: 30 ", "delays"),
        ("metrics_interval_s: 0.5", "metrics_interval_s: 10", "late"),
        ("max_ongoing_requests: 16", "max_ongoing_requests: 64", "stay behind"),
    ],
)
def test_models_follow_the_work_that_waits(old: str, new: str, complaint: str) -> None:
    assert scaling_problems(load()) == []
    assert any(complaint in problem for problem in scaling_problems(with_serve(old, new)))


def hardening_problems(objects: Objects) -> list[str]:
    """What Kubernetes' Pod Security Standard `restricted` would refuse."""
    problems = []
    for template in pod_templates(objects):
        pod = template.spec.get("securityContext", {})
        if not pod.get("runAsNonRoot") or not pod.get("runAsUser"):
            problems.append(f"{template.where}: may run as root")
        if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
            problems.append(f"{template.where}: no seccomp profile")
        for container in template.containers:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False:
                problems.append(f"{template.where}: {container['name']} may gain privileges")
            if own.get("capabilities") != {"drop": ["ALL"]}:
                problems.append(f"{template.where}: {container['name']} keeps capabilities")
            if set(container.get("resources", {})) != {"requests", "limits"}:
                problems.append(f"{template.where}: {container['name']} is not bounded")
    return problems


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (f"{HEAD}:{POD}:securityContext:runAsNonRoot", "as root"),
        (f"{HEAD}:{POD}:securityContext:seccompProfile", "seccomp"),
        (f"{MODELS}:{CONTAINER}:securityContext", "gain privileges"),
        ("Job/flux-serve-migrate-0-1-0:spec:" + CONTAINER + ":securityContext", "capabilities"),
        (f"{MODELS}:{CONTAINER}:resources:limits", "not bounded"),
    ],
)
def test_pods_are_restricted(path: str, complaint: str) -> None:
    assert hardening_problems(load()) == []
    assert any(complaint in problem for problem in hardening_problems(broken(path, DELETE)))


def test_a_disruption_budget_is_one_that_kubernetes_honours() -> None:
    """For pods without a scale subresource, only a number in `minAvailable` is."""
    for budget in of_kind(load(), "PodDisruptionBudget"):
        assert isinstance(budget["spec"]["minAvailable"], int)
        assert "maxUnavailable" not in budget["spec"]


def test_what_to_change_is_marked() -> None:
    """Every line that no cluster can take as it is says so."""
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    marked = "\n".join(line for line in text.splitlines() if "CHANGE" in line)
    for key in ("image:", "storageClassName:", "className:", "gpu.product:", "hostname:"):
        assert re.search(rf"^ *-? *{re.escape(key)}|{re.escape(key)}", marked, re.MULTILINE), key
