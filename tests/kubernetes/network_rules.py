"""What the NetworkPolicies of cluster.yaml let through, worked out as Kubernetes defines it.

A connection needs an egress rule of its source and an ingress rule of its target; a pod that no
policy selects for a direction is open in it. Only what the file uses is understood.
"""

from dataclasses import dataclass, field

from tests.kubernetes.cluster_kit import NAMESPACE, Object, Objects, of_kind, pod_templates
from tests.kubernetes.reference_rules import FOREIGN_PODS, matches


@dataclass(frozen=True)
class Pod:
    """An end of a connection; `namespace` empty for an address outside the cluster."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE


INTERNET = Pod(namespace="")
OUTSIDE = {
    "internet": INTERNET,
    "another tenant": Pod({"app": "other"}, "elsewhere"),
    "kuberay operator": Pod({"app.kubernetes.io/name": "kuberay-operator"}, "kuberay-system"),
    "cloudnative-pg": Pod({"app.kubernetes.io/name": "cloudnative-pg"}, "cnpg-system"),
    "prometheus": Pod({"app": "prometheus"}, "monitoring"),
    "istiod": Pod({"app": "istiod"}, "istio-system"),
    "dns": Pod({"k8s-app": "kube-dns"}, "kube-system"),
}


def pods(objects: Objects) -> dict[str, Pod]:
    """Every pod of the file by its component, the pods of other software, and the outside."""
    own = {
        template.labels["app.kubernetes.io/component"]: Pod(template.labels)
        for template in pod_templates(objects)
    }
    foreign = {name: Pod(labels) for name, labels in FOREIGN_PODS.items()}
    return own | foreign | OUTSIDE


def allowed(objects: Objects, source: str, target: str, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection to `port` of `target`."""
    ends = pods(objects)
    start, end = ends[source], ends[target]
    return _passes(objects, start, end, "egress", port, protocol) and _passes(
        objects, end, start, "ingress", port, protocol
    )


def _passes(
    objects: Objects, pod: Pod, peer: Pod, direction: str, port: int, protocol: str
) -> bool:
    if pod.namespace != NAMESPACE:
        return True  # not ours to bound
    policies = [
        item["spec"]
        for item in of_kind(objects, "NetworkPolicy")
        if direction.capitalize() in item["spec"]["policyTypes"]
        and matches(item["spec"]["podSelector"], pod.labels)
    ]
    rules = [rule for policy in policies for rule in policy.get(direction, [])]
    side = "to" if direction == "egress" else "from"
    return not policies or any(
        (side not in rule or any(_is(peer, one) for one in rule[side]))
        and ("ports" not in rule or any(_has(port, protocol, one) for one in rule["ports"]))
        for rule in rules
    )


def _is(pod: Pod, peer: Object) -> bool:
    if "ipBlock" in peer:
        return pod == INTERNET
    if pod == INTERNET:
        return False
    if "namespaceSelector" in peer:
        labels = {"kubernetes.io/metadata.name": pod.namespace}
        if not matches(peer["namespaceSelector"], labels):
            return False
    elif pod.namespace != NAMESPACE:
        return False
    return matches(peer.get("podSelector", {}), pod.labels)


def _has(port: int, protocol: str, rule: Object) -> bool:
    last = rule.get("endPort", rule["port"])
    return bool(rule["port"] <= port <= last and rule.get("protocol", "TCP") == protocol)
