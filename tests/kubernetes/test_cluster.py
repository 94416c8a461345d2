"""The parts of cluster.yaml agree: with configs/cluster.yaml, with each other, with the package."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray.serve.schema import ServeDeploySchema

from serve_app import __version__
from serve_app.checkconfig import check_config_file
from serve_app.config import AppConfig
from serve_app.deployments.autoscaling import POLICY_PATH
from serve_app.graph import SHUTDOWN_MARGIN_S
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
    Objects,
    at,
    broken,
    deployment,
    environment,
    groups,
    load,
    named,
    of_kind,
    pod_templates,
    serve_config,
)
from tests.kubernetes.network_rules import allowed, pods

CONFIG = ROOT / "configs" / "cluster.yaml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ROUTE = "HTTPRoute/flux-serve-edge"


def app_config(objects: Objects) -> AppConfig:
    (application,) = serve_config(objects)["applications"]
    return AppConfig.model_validate(application["args"])


def test_the_serve_config_is_valid_for_ray_and_for_us(tmp_path: Path) -> None:
    text = named(load(), RAY)["spec"]["serveConfigV2"]
    ServeDeploySchema.model_validate(yaml.safe_load(text))
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    assert check_config_file(file) == []


def test_the_serve_config_equals_the_config_file() -> None:
    assert serve_config(load()) == yaml.safe_load(CONFIG.read_text(encoding="utf-8"))


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
    from serve_app.deployments.proxy import CONTROL_HEADERS, SYSTEM_ROUTES

    system, rest = named(load(), ROUTE)["spec"]["rules"]
    (removed,) = [one["requestHeaderModifier"]["remove"] for one in rest["filters"]]
    assert {name.encode() for name in removed} == CONTROL_HEADERS
    for route in SYSTEM_ROUTES:
        assert route.startswith(system["matches"][0]["path"]["value"])
    assert system["filters"][0]["type"] == "URLRewrite"


def test_a_disruption_budget_is_one_that_kubernetes_honours() -> None:
    """For pods without a scale subresource, only a number in `minAvailable` is."""
    for budget in of_kind(load(), "PodDisruptionBudget"):
        assert isinstance(budget["spec"]["minAvailable"], int)
        assert "maxUnavailable" not in budget["spec"]


def weights_script() -> str:
    container = at(load(), "Job/flux-serve-weights-flux-1-schnell:spec:" + CONTAINER)
    assert container["command"] == ["/bin/bash", "-euo", "pipefail", "-c"]
    script: str = container["args"][0]
    return script


@pytest.mark.parametrize(("status", "complete"), [(0, True), (1, False)])
def test_weights_count_as_there_only_when_all_are(
    tmp_path: Path, status: int, complete: bool
) -> None:
    """The script of the Job, and the test that other pods wait for, with a downloader of ours."""
    folder = tmp_path / "model"
    folder.mkdir()
    downloader = tmp_path / "hf"
    downloader.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/asked"\nexit {status}\n')
    downloader.chmod(0o755)
    variables = at(load(), "ConfigMap/flux-serve-weights:data") | {
        "MODEL_DIR": str(folder),
        "PATH": f"{tmp_path}:/usr/bin:/bin",
    }
    bash = [str(shutil.which("bash")), "-euo", "pipefail", "-c"]
    done = subprocess.run([*bash, weights_script()], env=variables, check=False)
    waiting = at(load(), f"{MODELS}:{POD}:initContainers:0:args")[0]
    looked = subprocess.run(
        [*bash, waiting.replace("until", "if").replace("do sleep 5; done", "then exit 9; fi")],
        env=variables,
        check=False,
    )
    assert (done.returncode == 0, looked.returncode == 9) == (complete, complete)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[:2] == ["download", "black-forest-labs/FLUX.1-schnell"]
    included = {asked[i + 1].split("/")[0] for i, word in enumerate(asked) if word == "--include"}
    embedded = ROOT / "serve_app" / "models" / "flux-mini"
    assert included == {path.name for path in embedded.iterdir()}  # any FLUX pipeline's folders


def test_weights_are_downloaded_to_where_the_model_is_read() -> None:
    folder = at(load(), "ConfigMap/flux-serve-weights:data:MODEL_DIR")
    assert app_config(load()).models[0].source == folder
    for template in pod_templates(load()):
        for container in template.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] == "models":
                    assert folder.startswith(f"{mount['mountPath']}/")
                    assert mount.get("readOnly", False) == (container["name"] != "download")


def test_the_migration_is_a_command_of_ours() -> None:
    from typer.main import get_command

    from serve_app.cli import app

    container = at(load(), "Job/flux-serve-migrate-0-1-0:spec:" + CONTAINER)
    assert container["command"] == ["flux-serve"]
    root: Any = get_command(app)
    words = container["args"]
    upgrade = root.commands[words[0]].commands[words[1]]
    parsed = upgrade.make_context("upgrade", words[2:])
    assert parsed.params["ledger_url"] == "${LEDGER_URL}"


def test_what_to_change_is_marked() -> None:
    """Every line that no cluster can take as it is says so."""
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    marked = "\n".join(line for line in text.splitlines() if "CHANGE" in line)
    for key in ("image:", "storageClassName:", "className:", "gpu.product:", "hostname:"):
        assert re.search(rf"^ *-? *{re.escape(key)}|{re.escape(key)}", marked, re.MULTILINE), key
