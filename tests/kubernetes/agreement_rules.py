"""What two parts of cluster.yaml may not say differently, nor it and the package.

Data flow: objects -> `agreement_problems`, `scaling_problems` -> sentences; none for a good file.
"""

import tomllib

from packaging.requirements import Requirement

from serve_app import __version__
from serve_app.deployments.autoscaling import POLICY_PATH
from serve_app.graph import SHUTDOWN_MARGIN_S
from tests.kubernetes.cluster_kit import (
    CLUSTER,
    CONTAINER,
    GATEWAYS,
    HEAD,
    MODELS,
    RAY,
    ROOT,
    ROUTE,
    Objects,
    app_config,
    at,
    deployment,
    environment,
    groups,
    named,
    of_kind,
    pod_templates,
    serve_config,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def scaling_problems(objects: Objects) -> list[str]:
    """How the model's replicas would follow something else than the work that waits, or late."""
    scaling = deployment(objects, "FluxModel")["autoscaling_config"]
    delays = [scaling.get(name) for name in ("upscale_delay_s", "downscale_delay_s")]
    interval_s, look_back_s = scaling.get("metrics_interval_s"), scaling.get("look_back_period_s")
    rules = {
        "the model does not scale by its backlog": (
            scaling.get("policy", {}).get("policy_function") != POLICY_PATH
        ),
        "Serve delays the policy": delays != [0, 0],
        "the policy hears of work late": interval_s != 0.5 or look_back_s != 1,
        "jobs stay behind in busy replicas": (
            deployment(objects, "FluxModel").get("max_ongoing_requests") != 16
        ),
    }
    return [problem for problem, found in rules.items() if found]


def agreement_problems(objects: Objects) -> list[str]:
    """What two parts of the file say differently."""
    return (
        _placement_problems(objects)
        + _time_problems(objects)
        + _environment_problems(objects)
        + _edge_problems(objects)
        + _version_problems(objects)
        + _ledger_problems(objects)
    )


def _placement_problems(objects: Objects) -> list[str]:
    gateways, models, head = at(objects, GATEWAYS), at(objects, MODELS), at(objects, HEAD)
    gateway, model = deployment(objects, "Gateway"), deployment(objects, "FluxModel")
    wanted, held = gateway["ray_actor_options"], gateways.get("resources", {})
    config = app_config(objects).models[0]
    limits = at(objects, f"{MODELS}:{CONTAINER}:resources:limits")
    gpus, cpus = int(limits["nvidia.com/gpu"]), int(limits["cpu"])
    scales, model_scales = gateway["autoscaling_config"], model["autoscaling_config"]
    rules = {
        "replicas could run on the head": head["rayStartParams"].get("num-cpus") != "0",
        "a gateway pod does not hold exactly one gateway": (
            wanted.get("resources", {}).get("gateway") != float(held.get("gateway", 0))
        ),
        "gateways could run on other pods": any(
            "gateway" in group.get("resources", {}) for group in (models, head)
        ),
        "a gateway pod has too few CPUs": int(held.get("CPU", 0)) < wanted["num_cpus"],
        "gateways: pods and replicas have different limits": (
            gateways["maxReplicas"] != scales["max_replicas"]
        ),
        "fewer than two gateways, or idle gateway pods": (
            not 2 <= gateways["minReplicas"] <= scales["min_replicas"]
        ),
        "the GPU pods cannot hold every replica": (
            models["maxReplicas"] * gpus < config.num_gpus * model_scales["max_replicas"]
        ),
        "a GPU pod cannot hold a replica": not 0 < config.num_gpus <= gpus
        or config.num_cpus > cpus,
        "the model's min_replicas alone decides how many GPUs wait": models["minReplicas"] > 0,
        "no accelerator is chosen": not models["template"]["spec"].get("nodeSelector"),
    }
    return [problem for problem, found in rules.items() if found]


def _time_problems(objects: Objects) -> list[str]:
    longest_s = app_config(objects).limits.request_timeout_s
    drain_s = longest_s + SHUTDOWN_MARGIN_S
    ray = named(objects, RAY)
    problems = []
    for name, group in groups(ray):
        container = group["template"]["spec"]["containers"][0]
        hard_stop_s = environment(container).get("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S") or "120"
        if int(hard_stop_s) < drain_s:
            problems.append(f"{name}: HAProxy cuts off the longest jobs")
        if name == "head":
            continue
        if group["template"]["spec"].get("terminationGracePeriodSeconds", 30) < drain_s + 20:
            problems.append(f"{name}: Kubernetes kills the longest jobs")
        if "drain-node.sh" not in str(container.get("lifecycle")):
            problems.append(f"{name}: does not drain")
    if ray["spec"]["rayClusterDeletionDelaySeconds"] < drain_s:
        problems.append("an upgrade kills the longest jobs")
    for rule in named(objects, ROUTE)["spec"]["rules"]:
        timeout = rule.get("timeouts", {}).get("request")
        if timeout is not None and int(timeout.removesuffix("s")) <= longest_s:
            problems.append("the edge gives up before flux-serve does")
    return problems


def _environment_problems(objects: Objects) -> list[str]:
    problems = []
    for name, group in groups(named(objects, RAY)):
        container = group["template"]["spec"]["containers"][0]
        if environment(container).get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
            problems.append(f"{name}: HAProxy mode must be on for every Ray pod")
        ports = {port["containerPort"] for port in container["ports"] if port["name"] == "serve"}
        if ports != {serve_config(objects)["http_options"]["port"]}:
            problems.append(f"{name}: the port `serve` is not Serve's")
    holders = {
        template.where
        for template in pod_templates(objects)
        for container in template.containers
        if "LEDGER_URL" in environment(container)
    }
    if holders != {"RayService/flux-serve gateway", "Job/flux-serve-migrate-0-1-0"}:
        problems.append(f"the ledger's password is in {sorted(holders)}")
    return problems


def _edge_problems(objects: Objects) -> list[str]:
    host = app_config(objects).public_url.removeprefix("https://")
    hosts = {*named(objects, ROUTE)["spec"]["hostnames"]}
    hosts |= {one["hostname"] for one in at(objects, "Gateway/flux-serve-edge:spec:listeners")}
    classes = {
        at(objects, "Gateway/flux-serve-edge:spec:gatewayClassName"),
        at(objects, f"{RAY}:spec:upgradeStrategy:clusterUpgradeOptions:gatewayClassName"),
    }
    problems = [] if hosts == {host} else [f"clients are told {host}, the edge serves {hosts}"]
    return problems + ([] if len(classes) == 1 else ["two gateway classes"])


def _version_problems(objects: Objects) -> list[str]:
    (ray,) = [one for one in map(Requirement, PROJECT["dependencies"]) if one.name == "ray"]
    problems = []
    if not ray.specifier.contains(at(objects, f"{CLUSTER}:rayVersion")):
        problems.append(f"rayVersion is not {ray}")
    expected = {"head": "cpu", "gateway": "cpu", "h100": "cuda"}
    for template in pod_templates(objects):
        for container in template.containers:
            if "flux-serve:" not in container["image"]:
                continue
            version, _, variant = container["image"].rpartition(":")[2].partition("-")
            if version != __version__:
                problems.append(f"{template.where}: another version, {version}")
            group = template.where.rpartition(" ")[2]
            if container["name"].startswith("ray-") and variant != expected[group]:
                problems.append(f"{template.where}: the wrong image, {variant}")
    job = f"Job/flux-serve-migrate-{__version__.replace('.', '-')}"
    if job not in {f"Job/{item['metadata']['name']}" for item in of_kind(objects, "Job")}:
        problems.append(f"no {job}: a Job cannot change")
    return problems


def _ledger_problems(objects: Objects) -> list[str]:
    cluster = named(objects, "Cluster/flux-serve-ledger")["spec"]
    gateways = deployment(objects, "Gateway")["autoscaling_config"]["max_replicas"]
    # Twice: during an upgrade the old and the new cluster's gateways are there.
    needed = 2 * gateways * app_config(objects).ledger.pool_size
    reserved = 20  # CloudNativePG's own, the migration, a person with psql
    problems = []
    if needed + reserved > int(cluster["postgresql"]["parameters"]["max_connections"]):
        problems.append("gateways may open more connections than PostgreSQL takes")
    if cluster["instances"] < 2 or "synchronous" not in cluster["postgresql"]:
        problems.append("a failover could forget charges")
    if app_config(objects).ledger.migrate_on_start:
        problems.append("the Job migrates, not the gateways")
    return problems
