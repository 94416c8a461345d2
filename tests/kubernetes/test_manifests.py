"""cluster.yaml is valid for Kubernetes and for KubeRay, and every name in it leads somewhere.

Nothing is applied here. RayService is checked against KubeRay's CRD where the variable
RAYSERVICE_SCHEMA names it (as a strict JSON schema), pods and built-in kinds against Kubernetes'
own schemas, other custom resources by hand: their few required fields.
"""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.kubernetes.cluster_kit import (
    CLUSTER,
    CONTAINER,
    DELETE,
    GATEWAYS,
    HEAD,
    MODELS,
    NAMESPACE,
    POD,
    RAY,
    ROOT,
    Object,
    Objects,
    at,
    broken,
    environment,
    load,
    name_of,
    named,
    pod_templates,
)
from tests.kubernetes.kuberay_rules import kuberay_problems
from tests.kubernetes.reference_rules import (
    PREREQUISITES,
    reference_problems,
    selector_problems,
)
from tests.test_docs import resolve

DOCS = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
KUBERNETES = kubernetes_validate.latest_version()
REQUIRED = {
    "postgresql.cnpg.io/v1/Cluster": ["spec:instances", "spec:storage:size"],
    "postgresql.cnpg.io/v1/ScheduledBackup": ["spec:schedule", "spec:cluster:name"],
    "monitoring.coreos.com/v1/PodMonitor": ["spec:selector", "spec:podMetricsEndpoints:0:port"],
    "gateway.networking.k8s.io/v1/Gateway": [
        "spec:gatewayClassName",
        "spec:listeners:0:name",
        "spec:listeners:0:port",
        "spec:listeners:0:protocol",
    ],
    "gateway.networking.k8s.io/v1/HTTPRoute": ["spec:parentRefs:0:name", "spec:rules:0"],
}
"""Custom resources whose schemas are not at hand, and what they cannot do without."""


def kind_of(item: Object) -> str:
    return f"{item['apiVersion']}/{item['kind']}"


def is_custom(item: Object) -> bool:
    return kind_of(item) in REQUIRED or item["kind"] == "RayService"


@pytest.fixture(scope="module")
def rayservice_schema() -> jsonschema.Draft7Validator:
    path = Path(os.environ.get("RAYSERVICE_SCHEMA", ""))
    if not path.is_file():  # no package has it, so CI may lack it, too
        pytest.skip("RAYSERVICE_SCHEMA names no file with the JSON schema of KubeRay's CRD")
    return jsonschema.Draft7Validator(json.loads(path.read_text(encoding="utf-8")))


def test_the_rayservice_is_what_its_crd_says(rayservice_schema: Any) -> None:
    assert [error.message for error in rayservice_schema.iter_errors(named(load(), RAY))] == []


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (f"{RAY}:spec:serveConfig", "", "serveConfig"),
        (f"{GATEWAYS}:maxReplicas", "six", "six"),
        (f"{GATEWAYS}:groupName", DELETE, "groupName"),
        (f"{HEAD}:template", DELETE, "template"),
        (f"{HEAD}:{CONTAINER}:ressources", {}, "ressources"),
        (f"{HEAD}:rayStartParams:num-cpus", 0, "0 is not of type"),
        (f"{CLUSTER}:autoscalerOptions:version", "v3", "v3"),
    ],
)
def test_a_slip_in_the_rayservice_is_found(
    rayservice_schema: Any, path: str, value: Any, complaint: str
) -> None:
    errors = rayservice_schema.iter_errors(named(broken(path, value), RAY))
    assert any(complaint in error.message for error in errors)


@pytest.mark.parametrize("item", load(), ids=name_of)
def test_an_object_is_what_kubernetes_says(item: Object) -> None:
    assert item["metadata"].get("namespace") == (None if item["kind"] == "Namespace" else NAMESPACE)
    if is_custom(item):
        for path in REQUIRED.get(kind_of(item), []):
            assert at([item], f"{name_of(item)}:{path}") is not None
    else:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize("template", pod_templates(load()), ids=lambda template: template.where)
def test_a_pod_is_what_kubernetes_says(template: Any) -> None:
    """Pods inside a RayService, too: this check needs no CRD."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": template.labels}}
    kubernetes_validate.validate(pod | {"spec": template.spec}, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("PodDisruptionBudget/flux-serve-gateway:spec:minimum", 1),
        ("Job/flux-serve-migrate-0-1-0:spec:template", DELETE),
        ("NetworkPolicy/dns:spec:egress:0:ports:0:port", [53]),
        ("StatefulSet/flux-serve-redis:spec:replicas", "one"),
        ("PersistentVolumeClaim/flux-serve-models:spec:accessMode", "ReadWriteMany"),
    ],
)
def test_a_slip_in_an_object_is_found(path: str, value: Any) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            named(broken(path, value), path.partition(":")[0]), KUBERNETES, strict=True
        )


def test_the_file_describes_a_whole_cluster() -> None:
    kinds = [item["kind"] for item in load()]
    assert kinds.count("RayService") == 1
    assert {"Cluster", "Job", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"} <= set(kinds)
    assert len({name_of(item) for item in load()}) == len(kinds)


def test_the_operator_would_take_the_rayservice() -> None:
    assert kuberay_problems(load()) == []


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (f"{HEAD}:{POD}:restartPolicy", "Always", "restartPolicy"),
        (f"{MODELS}:{POD}:restartPolicy", "OnFailure", "restartPolicy"),
        (f"{GATEWAYS}:rayStartParams:num-cpus", "2", "both rayStartParams and resources"),
        (f"{HEAD}:resources", {"CPU": "0"}, "both rayStartParams and resources"),
        (f"{GATEWAYS}:rayStartParams:labels", "a=b", "labels"),
        (f"{CLUSTER}:rayVersion", DELETE, "rayVersion"),
        (f"{CLUSTER}:rayVersion", "2.51.0", "rayVersion"),
        (f"{GATEWAYS}:minReplicas", 7, "minReplicas"),
        (f"{HEAD}:headService", {"metadata": {"name": "mine"}}, "headService"),
        (f"{CLUSTER}:authOptions:enableK8sTokenAuth", True, "enableK8sTokenAuth"),
        (f"{CLUSTER}:enableInTreeAutoscaling", False, "enableInTreeAutoscaling"),
        (f"{RAY}:spec:upgradeStrategy:type", "Rolling", "none of the three"),
        (f"{RAY}:spec:upgradeStrategy:clusterUpgradeOptions", {}, "gatewayClassName"),
        (f"{RAY}:metadata:name", "x" * 42, "too long"),
        (f"{HEAD}:template:metadata:labels:app.kubernetes.io/name", "flux-serve", "operator's"),
        (f"{MODELS}:template:metadata:labels:ray.io/serve", "false", "operator's"),
        (f"{HEAD}:{CONTAINER}:env:0", {"name": "RAY_REDIS_ADDRESS", "value": "x"}, "Redis"),
        (f"{MODELS}:suspend", True, "suspended"),
    ],
)
def test_what_the_operator_refuses_is_found(path: str, value: Any, complaint: str) -> None:
    objects = broken(path, value)
    assert any(complaint in problem for problem in kuberay_problems(objects))


def test_every_name_leads_somewhere() -> None:
    assert reference_problems(load()) == []


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (f"{GATEWAYS}:{CONTAINER}:env:3:valueFrom:secretKeyRef:name", "nobody", "Secret nobody"),
        (f"{GATEWAYS}:{CONTAINER}:env:4:valueFrom:secretKeyRef:key", "nothing", "no key nothing"),
        (f"{GATEWAYS}:{CONTAINER}:envFrom:0:configMapRef:name", "nobody", "ConfigMap nobody"),
        (f"{GATEWAYS}:{CONTAINER}:volumeMounts:0:name", "nobody", "volume nobody"),
        (f"{MODELS}:{POD}:volumes:0:persistentVolumeClaim:claimName", "nobody", "Claim nobody"),
        (f"{MODELS}:{POD}:serviceAccountName", "nobody", "ServiceAccount nobody"),
        (f"{MODELS}:{POD}:initContainers:0:envFrom:0:configMapRef:name", "nobody", "nobody"),
        (f"{CLUSTER}:authOptions:secretName", "nobody", "Secret nobody"),
        (f"{CLUSTER}:gcsFaultToleranceOptions:redisAddress", "redis:1", "redisAddress redis:1"),
        ("HTTPRoute/flux-serve-edge:spec:rules:1:backendRefs:0:name", "nobody", "Service nobody"),
        ("HTTPRoute/flux-serve-edge:spec:parentRefs:0:name", "nobody", "Gateway nobody"),
        ("Gateway/flux-serve-edge:spec:listeners:0:tls:certificateRefs:0:name", "no", "Secret no"),
        ("Cluster/flux-serve-ledger:metadata:name", "other", "Secret flux-serve-ledger-app"),
        ("ScheduledBackup/flux-serve-ledger:spec:cluster:name", "other", "no such Cluster"),
        ("StatefulSet/flux-serve-redis:spec:volumeClaimTemplates:0:metadata:name", "x", "data"),
        (f"{HEAD}:{CONTAINER}:env:0:value", DELETE, "either a value or a source"),
    ],
)
def test_a_name_that_leads_nowhere_is_found(path: str, value: Any, complaint: str) -> None:
    objects = broken(path, value)
    assert any(complaint in problem for problem in reference_problems(objects))


def test_every_selector_picks_a_pod() -> None:
    assert selector_problems(load()) == []


@pytest.mark.parametrize(
    "path",
    [
        "PodDisruptionBudget/flux-serve-gateway:spec:selector:matchLabels",
        "Service/flux-serve-redis:spec:selector",
        "NetworkPolicy/http:spec:podSelector:matchLabels",
        "PodMonitor/flux-serve-ray:spec:selector:matchLabels",
        f"{GATEWAYS}:{POD}:topologySpreadConstraints:0:labelSelector:matchLabels",
        f"{GATEWAYS}:template:metadata:labels",
    ],
)
def test_a_selector_that_picks_no_pod_is_found(path: str) -> None:
    assert selector_problems(broken(path, {"app.kubernetes.io/component": "nobody"})) != []


@pytest.mark.parametrize("name", PREREQUISITES)
def test_the_page_says_how_to_make_each_secret(name: str) -> None:
    made = re.search(rf"create secret (?:generic|tls) {name} (?:[^\n]*\\\n)*[^\n]*", DOCS)
    assert made
    for key in PREREQUISITES[name]:
        option = {"tls.crt": "--cert", "tls.key": "--key"}.get(key, f"{key}=")
        assert option in made[0]


SECRET_NAME = re.compile(r"(?<!DIS)(KEY|TOKEN|PASSWORD|SECRET|AUTH|_URL)", re.IGNORECASE)


def secrets_in_clear(objects: Objects) -> list[str]:
    """Secret objects, and variables with a telling name and a value."""
    found = [name_of(item) for item in objects if item["kind"] == "Secret"]
    for template in pod_templates(objects):
        for container in template.containers:
            for name, value in environment(container).items():
                if value is not None and SECRET_NAME.search(name):
                    found.append(f"{template.where}: {name}")
    return found


def test_no_secret_is_in_the_file() -> None:
    assert secrets_in_clear(load()) == []
    assert secrets_in_clear(
        broken(f"{GATEWAYS}:{CONTAINER}:env:3", {"name": "A_KEY", "value": "x"})
    )
    assert "PRIVATE KEY" not in (ROOT / "cluster.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", re.findall(r"^run (flux-serve .+)$", DOCS, re.MULTILINE))
def test_the_pages_commands_inside_a_pod_are_ours(line: str) -> None:
    resolve(shlex.split(line)[1:], parse=True)
    assert "'${LEDGER_URL}'" in line  # else the shell outside would fill it in


@pytest.mark.parametrize("name", re.findall(r"wait --for=\S+ \w+/([a-z0-9-]+)", DOCS))
def test_the_page_names_objects_of_the_file(name: str) -> None:
    assert name in {item["metadata"]["name"] for item in load()}


def test_the_page_tells_where_the_operators_live() -> None:
    """The policies let in whole namespaces, by name."""
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    for namespace in set(re.findall(r"kubernetes.io/metadata.name: ([\w-]+)", text)):
        assert namespace == "kube-system" or f"`{namespace}`" in DOCS


def test_the_migration_can_be_applied_alone() -> None:
    option = re.search(r"kubectl apply -f cluster.yaml -l (\S+)=(\S+)", DOCS)
    assert option
    picked = [
        name_of(item)
        for item in load()
        if item["metadata"].get("labels", {}).get(option[1]) == option[2]
    ]
    assert picked == ["Job/flux-serve-migrate-0-1-0"]
