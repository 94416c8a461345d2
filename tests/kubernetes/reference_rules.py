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
        found = [*_pod_problems(objects, template), *_container_problems(objects, template)]
        problems += [f"{template.where}: {problem}" for problem in found]
    known = secrets(objects)
    for name, key in _secret_references(objects):
        if name not in known:
            problems.append(f"no Secret {name}")
        elif key is not None and key not in known[name]:
            problems.append(f"Secret {name} has no key {key}")
    return [*problems, *_route_problems(objects), *_service_problems(objects)]


def _route_problems(objects: Objects) -> Iterator[str]:
    gateways = names(objects, "Gateway")
    for route in of_kind(objects, "HTTPRoute"):
        for parent in route["spec"]["parentRefs"]:
            if parent["name"] not in gateways:
                yield f"{name_of(route)}: no Gateway {parent['name']}"
        for backend in (one for rule in route["spec"]["rules"] for one in rule["backendRefs"]):
            if backend["name"] not in services(objects):
                yield f"{name_of(route)}: no Service {backend['name']}"


def _service_problems(objects: Objects) -> Iterator[str]:
    for backup in of_kind(objects, "ScheduledBackup"):
        if backup["spec"]["cluster"]["name"] not in names(objects, "Cluster"):
            yield f"{name_of(backup)}: no such Cluster"
    addresses = {
        f"{item['metadata']['name']}:{port['port']}"
        for item in of_kind(objects, "Service")
        for port in item["spec"]["ports"]
    }
    for ray in of_kind(objects, "RayService"):
        redis = ray["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"]
        if redis not in addresses:
            yield f"{name_of(ray)}: no Service at redisAddress {redis}"


def names(objects: Objects, kind: str) -> set[str]:
    return {item["metadata"]["name"] for item in of_kind(objects, kind)}


def _pod_problems(objects: Objects, template: PodTemplate) -> Iterator[str]:
    for volume in template.spec.get("volumes", []):
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None and claim not in names(objects, "PersistentVolumeClaim"):
            yield f"no PersistentVolumeClaim {claim}"
    account = template.spec.get("serviceAccountName")
    if account is not None and account not in names(objects, "ServiceAccount"):
        yield f"no ServiceAccount {account}"


def _container_problems(objects: Objects, template: PodTemplate) -> Iterator[str]:
    volumes = {volume["name"] for volume in template.spec.get("volumes", [])}
    for container in template.containers:
        for source in container.get("envFrom", []):
            if source["configMapRef"]["name"] not in names(objects, "ConfigMap"):
                yield f"no ConfigMap {source['configMapRef']['name']}"
        for entry in container.get("env", []):
            if ("value" in entry) == ("valueFrom" in entry):
                yield f"{entry['name']} needs either a value or a source"
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
