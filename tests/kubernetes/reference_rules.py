"""Names in cluster.yaml must lead somewhere: Secrets, ConfigMaps, volumes, Services, selectors.

What other software makes, or the operator of a cluster, is in `PREREQUISITES` and `FOREIGN_PODS`;
docs/kubernetes.md must tell of each Secret.
"""

from collections.abc import Iterator
from typing import Any

from tests.kubernetes.cluster_kit import (
    Object,
    Objects,
    PodTemplate,
    name_of,
    of_kind,
    pod_templates,
)

PREREQUISITES: dict[str, set[str]] = {
    "flux-serve-object-store": {"access-key-id", "secret-access-key"},
    "flux-serve-ray-token": {"auth_token"},
    "flux-serve-redis": {"password"},
    "flux-serve-hugging-face": {"token"},
    "flux-serve-tls": {"tls.crt", "tls.key"},
}
"""Secrets that somebody makes by hand, and their keys."""


def secrets(objects: Objects) -> dict[str, set[str]]:
    """Secrets that will exist: prerequisites, and what CloudNativePG makes for its clusters."""
    made = {f"{item['metadata']['name']}-app": {"uri"} for item in of_kind(objects, "Cluster")}
    return PREREQUISITES | made


def services(objects: Objects) -> set[str]:
    """Services that will exist: in the file, and Istio's for each Gateway, KubeRay's included."""
    own = {item["metadata"]["name"] for item in of_kind(objects, "Service")}
    for item in of_kind(objects, "RayService"):
        options = item["spec"].get("upgradeStrategy", {}).get("clusterUpgradeOptions")
        if options:
            own.add(f"{item['metadata']['name']}-gateway-{options['gatewayClassName']}")
    return own


def reference_problems(objects: Objects) -> list[str]:
    """Every name that leads nowhere."""
    problems = []
    for template in pod_templates(objects):
        problems += [f"{template.where}: {text}" for text in _pod_problems(objects, template)]
    known = secrets(objects)
    for name, key in _secret_references(objects):
        if name not in known:
            problems.append(f"no Secret {name}")
        elif key is not None and key not in known[name]:
            problems.append(f"Secret {name} has no key {key}")
    gateways = {item["metadata"]["name"] for item in of_kind(objects, "Gateway")}
    for route in of_kind(objects, "HTTPRoute"):
        for parent in route["spec"]["parentRefs"]:
            if parent["name"] not in gateways:
                problems.append(f"{name_of(route)}: no Gateway {parent['name']}")
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                if backend["name"] not in services(objects):
                    problems.append(f"{name_of(route)}: no Service {backend['name']}")
    clusters = {item["metadata"]["name"] for item in of_kind(objects, "Cluster")}
    for backup in of_kind(objects, "ScheduledBackup"):
        if backup["spec"]["cluster"]["name"] not in clusters:
            problems.append(f"{name_of(backup)}: no such Cluster")
    for ray in of_kind(objects, "RayService"):
        redis = ray["spec"]["rayClusterConfig"].get("gcsFaultToleranceOptions", {})
        host, _, port = redis.get("redisAddress", "").partition(":")
        ports = {
            str(port["port"])
            for item in of_kind(objects, "Service")
            if item["metadata"]["name"] == host
            for port in item["spec"]["ports"]
        }
        if redis and port not in ports:
            problems.append(f"{name_of(ray)}: no Service at redisAddress {host}:{port}")
    return problems


def _pod_problems(objects: Objects, template: PodTemplate) -> Iterator[str]:
    maps = {item["metadata"]["name"]: item["data"] for item in of_kind(objects, "ConfigMap")}
    claims = {item["metadata"]["name"] for item in of_kind(objects, "PersistentVolumeClaim")}
    accounts = {item["metadata"]["name"] for item in of_kind(objects, "ServiceAccount")}
    volumes = {volume["name"] for volume in template.spec.get("volumes", [])}
    for volume in template.spec.get("volumes", []):
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None and claim not in claims:
            yield f"no PersistentVolumeClaim {claim}"
    account = template.spec.get("serviceAccountName")
    if account is not None and account not in accounts:
        yield f"no ServiceAccount {account}"
    for container in template.containers:
        for source in container.get("envFrom", []):
            name = source.get("configMapRef", {}).get("name")
            if name is not None and name not in maps:
                yield f"no ConfigMap {name}"
        for entry in container.get("env", []):
            if (entry.get("value") is None) == (entry.get("valueFrom") is None):
                yield f"{entry['name']} needs either a value or a source"
            reference = entry.get("valueFrom", {}).get("configMapKeyRef")
            if reference and reference["key"] not in maps.get(reference["name"], {}):
                yield f"no key {reference['key']} in ConfigMap {reference['name']}"
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes | template.claim_templates:
                yield f"no volume {mount['name']}"


def _secret_references(node: Any) -> Iterator[tuple[str, str | None]]:
    """Every Secret that the file names, with its key where one is named."""
    if isinstance(node, list):
        for item in node:
            yield from _secret_references(item)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == "secretKeyRef":
            yield value["name"], value["key"]
        elif key in ("secretRef", "secret") and isinstance(value, dict):
            yield value.get("name", value.get("secretName", "")), None
        elif key == "authOptions" and "secretName" in value:
            yield value["secretName"], "auth_token"
        elif key == "certificateRefs":
            yield from ((reference["name"], "tls.crt") for reference in value)
        else:
            yield from _secret_references(value)


FOREIGN_PODS: dict[str, dict[str, str]] = {
    "ledger": {"cnpg.io/cluster": "flux-serve-ledger"},
    "upgrade-gateway": {"gateway.networking.k8s.io/gateway-name": "flux-serve-gateway"},
    "edge": {"gateway.networking.k8s.io/gateway-name": "flux-serve-edge"},
    "redis-cleanup": {"ray.io/node-type": "redis-cleanup"},
}
"""Pods of this namespace that CloudNativePG, Istio and KubeRay make, by the labels they get."""


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector picks a pod; the empty one picks all."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", "no other operator is used"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def selector_problems(objects: Objects) -> list[str]:
    """Every selector of a Service, PDB, StatefulSet, monitor or policy that picks no pod."""
    labels = [template.labels for template in pod_templates(objects)] + [*FOREIGN_PODS.values()]
    problems = []
    for item in objects:
        spec = item.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector"))
        if selector is None:
            continue
        if item["kind"] == "Service":
            selector = {"matchLabels": selector}
        if not any(matches(selector, pod) for pod in labels):
            problems.append(f"{name_of(item)}: selects no pod")
    for template in pod_templates(objects):
        for spread in template.spec.get("topologySpreadConstraints", []):
            if not matches(spread["labelSelector"], template.labels):
                problems.append(f"{template.where}: spreads other pods than its own")
    return problems
