"""What KubeRay's operator refuses beyond its CRD, and what it does that a manifest must allow for.

From `ray-operator/controllers/ray/utils/validation.go` and `common/{pod,service}.go` of KubeRay
1.7; only the rules that apply to the parts used in cluster.yaml.
"""

from packaging.version import Version

from tests.kubernetes.cluster_kit import Object, Objects, environment, groups, of_kind

RESOURCE_PARAMS = {"num-cpus", "num-gpus", "memory", "resources"}
OPERATORS_LABELS = ("ray.io/", "app.kubernetes.io/name", "app.kubernetes.io/created-by")
"""Set by the operator, and selected by its Services: overriding one cuts the pod off."""
TOKEN_AUTH_SINCE = Version("2.52.0")
REDIS_VARIABLES = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}
NAME_CHARS_MAX = 41


def kuberay_problems(objects: Objects) -> list[str]:
    """Every rule of the operator that a RayService of the file breaks."""
    problems = []
    for service in of_kind(objects, "RayService"):
        problems += _service_problems(service)
        for where, group in groups(service):
            problems += [f"{where}: {problem}" for problem in _group_problems(service, group)]
    return problems


def _service_problems(service: Object) -> list[str]:
    cluster = service["spec"]["rayClusterConfig"]
    auth = cluster.get("authOptions", {})
    problems = []
    if len(service["metadata"]["name"]) > NAME_CHARS_MAX:
        problems.append("the name of the RayService is too long")
    if auth.get("mode") == "token":
        version = cluster.get("rayVersion")
        if not version or Version(version) < TOKEN_AUTH_SINCE:
            problems.append("token authentication needs rayVersion 2.52.0 or later")
    if "enableK8sTokenAuth" in auth:
        problems.append("enableK8sTokenAuth is refused for a RayService")
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        problems.append("headService must have no name")
    return problems + _upgrade_problems(service)


def _upgrade_problems(service: Object) -> list[str]:
    strategy = service["spec"].get("upgradeStrategy", {})
    if strategy.get("type") not in ("NewCluster", "NewClusterWithIncrementalUpgrade", "None"):
        return ["upgradeStrategy.type is none of the three"]
    if strategy["type"] != "NewClusterWithIncrementalUpgrade":
        return []
    options = strategy.get("clusterUpgradeOptions", {})
    problems = []
    if not service["spec"]["rayClusterConfig"].get("enableInTreeAutoscaling"):
        problems.append("an incremental upgrade needs enableInTreeAutoscaling")
    if not options.get("gatewayClassName"):
        problems.append("an incremental upgrade needs gatewayClassName")
    for name in ("maxSurgePercent", "stepSizePercent"):
        if not 0 < options.get(name, 0) <= 100:
            problems.append(f"{name} must be a percentage")
    if options.get("intervalSeconds", 0) <= 0:
        problems.append("intervalSeconds must be positive")
    return problems


def _group_problems(service: Object, group: Object) -> list[str]:
    cluster = service["spec"]["rayClusterConfig"]
    params = group.get("rayStartParams", {})
    variables = environment(group["template"]["spec"]["containers"][0])
    scales = cluster.get("enableInTreeAutoscaling", False)
    second = scales and cluster.get("autoscalerOptions", {}).get("version") == "v2"
    restart = group["template"]["spec"].get("restartPolicy", "Never")
    fewest, most = group.get("minReplicas", 0), group.get("maxReplicas", 0)
    rules = {
        "resources are in both rayStartParams and resources": (
            RESOURCE_PARAMS & set(params) and group.get("resources")
        ),
        "labels belong beside rayStartParams, not into them": "labels" in params,
        "minReplicas exceeds maxReplicas": fewest > most,
        "autoscaler v2 needs restartPolicy Never, or none": second and restart != "Never",
        "a group cannot be suspended while the autoscaler is on": scales and group.get("suspend"),
        "Redis is set by gcsFaultToleranceOptions alone": (
            REDIS_VARIABLES & set(variables) or "redis-password" in params
        ),
        "autoscalerOptions.version sets the autoscaler's version": (
            "RAY_enable_autoscaler_v2" in variables
        ),
    }
    return [problem for problem, found in rules.items() if found] + [
        f"the label {label} is the operator's"
        for label in group["template"]["metadata"]["labels"]
        if label.startswith(OPERATORS_LABELS)
    ]
