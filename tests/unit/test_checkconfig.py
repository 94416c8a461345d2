"""check-config: the shipped files pass, and a slip anywhere in a file is refused by name."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.checkconfig import check_config_file
from serve_app.configfile import load_app_config
from serve_app.deployments.autoscaling import POLICY_PATH
from serve_app.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))
LOCAL = yaml.safe_load((CONFIGS / "local.yaml").read_text(encoding="utf-8"))
Check = Callable[[Any], list[str]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """The problems of a configuration given as data."""

    def run(data: Any) -> list[str]:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return check_config_file(path)

    return run


def local(path: str, value: Any) -> dict[str, Any]:
    """configs/local.yaml with one value set; lists are entered by number and made as needed."""
    data: dict[str, Any] = copy.deepcopy(LOCAL)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    target: Any = data
    for key in parents:
        target = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
    target[last] = value
    return data


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_config_passes(path: Path) -> None:
    assert check_config_file(path) == []
    assert load_app_config(path).models


def test_local_and_gpu_are_shipped() -> None:
    assert {"local.yaml", "gpu.yaml"} <= {path.name for path in SHIPPED}


def test_only_loopback_configs_have_a_development_key() -> None:
    for path in SHIPPED:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if load_app_config(path).development is not None:
            assert data["http_options"]["host"] == "127.0.0.1"


DEPLOYMENT = "applications.0.deployments.0"
TYPOS = [
    "proxy_loation",
    "http_options.prot",
    "grpc_options.prot",
    "controller_options.runtime_envs",
    "logging_config.log_levl",
    "applications.0.route_prefx",
    "applications.0.args.modells",
    "applications.0.args.models.0.alias",
    "applications.0.args.models.0.engine.devise",
    "applications.0.args.models.0.batching.max_batch",
    "applications.0.args.ledger.hold_ttl",
    "applications.0.args.store.image_ttl",
    "applications.0.args.limits.timeout",
    "applications.0.args.development.keys",
    f"{DEPLOYMENT}.max_ongoing_request",
    f"{DEPLOYMENT}.ray_actor_options.num_cpu",
    f"{DEPLOYMENT}.autoscaling_config.max_replica",
    f"{DEPLOYMENT}.request_router_config.max_backof_s",
    f"{DEPLOYMENT}.user_config.max_batch",
]


@pytest.mark.parametrize("path", TYPOS)
def test_a_misspelt_key_is_refused_by_name(check: Check, path: str) -> None:
    problems = check(local(path, 1))
    assert any(path.rpartition(".")[2] in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("http_options.port", "eighty"),
        ("applications.0.import_path", "serve_app.graph:biuld"),
        ("applications.0.args.models", []),
        ("applications.0.args.ledger.hold_ttl_s", 300),
        (f"{DEPLOYMENT}.name", "FluxModel-flux-maxi"),
        (f"{DEPLOYMENT}.num_replicas", -1),
        (f"{DEPLOYMENT}.user_config", {"max_batch_size": 0}),
        (f"{DEPLOYMENT}.user_config", "fast"),
        (f"{DEPLOYMENT}.autoscaling_config", {"min_replicas": -1}),
        (f"{DEPLOYMENT}.autoscaling_config", {"min_replicas": 5, "max_replicas": 2}),
        (f"{DEPLOYMENT}.request_router_config", {"max_backoff_s": "soon"}),
        (f"{DEPLOYMENT}.ray_actor_options", {"num_gpus": -1}),
    ],
)
def test_a_bad_value_is_refused_with_its_place(check: Check, path: str, value: Any) -> None:
    data = local(path, value)
    if path.endswith("autoscaling_config"):
        del data["applications"][0]["deployments"][0]["num_replicas"]
    problems = check(data)
    keys = [key for key in path.split(".") if not key.isdigit()]
    assert any(keys[-1] in problem for problem in problems), problems


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", None])
def test_a_development_key_is_refused_unless_on_loopback(check: Check, host: str | None) -> None:
    data = local("http_options.host", host)
    if host is None:
        del data["http_options"]["host"]  # Serve then listens everywhere
    (problem,) = check(data)
    assert "development" in problem
    assert "http_options.host" in problem


def test_without_a_development_key_serve_may_listen_anywhere(check: Check) -> None:
    data = local("http_options.host", "0.0.0.0")
    del data["applications"][0]["args"]["development"]
    assert check(data) == []


@pytest.mark.parametrize("path", ["controller_options", "controller_options.runtime_env"])
def test_serves_own_failures_must_be_turned_into_ours(check: Check, path: str) -> None:
    (problem,) = check(local(path, {}))
    assert "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" in problem


def test_every_problem_of_a_file_is_told_at_once(check: Check) -> None:
    data = local("prot", 1)
    data["http_options"]["prot"] = 1
    data["applications"][0]["args"]["public_url"] = "x"
    assert len(check(data)) == 3


@pytest.mark.parametrize(
    "data",
    [
        None, 5, "x", [], [1], {}, {"applications": None}, {"applications": {}},
        {"applications": []}, {"applications": [5]}, {"applications": "x"},
        local("applications", []),
        local("http_options", None), local("http_options", 5), local("http_options", []),
        local("controller_options", 5), local("controller_options.runtime_env", "x"),
        local("controller_options.runtime_env.env_vars", ["x"]),
        local("controller_options.runtime_env.env_vars", "x"),
        local("applications.0.args", None), local("applications.0.args", 5),
        local("applications.0.args.models", 5), local("applications.0.args.models", [5]),
        local("applications.0.deployments", {}), local("applications.0.deployments", [5]),
        local("applications.0.deployments", 5), local(DEPLOYMENT, {}),
        {1: 2}, {"applications": [{}], None: None},
    ],
    ids=lambda data: repr(data)[:30],
)  # fmt: skip
def test_a_file_of_any_other_shape_is_a_problem_and_never_a_crash(check: Check, data: Any) -> None:
    assert check(data) != []


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"a: b: c", b"\t- x", b""])
def test_a_file_that_is_no_yaml_is_a_problem(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    (problem,) = check_config_file(path)
    assert str(path) in problem


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    (problem,) = check_config_file(tmp_path / "none.yaml")
    assert "none.yaml" in problem


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("applications: !!python/object/apply:os.system ['true']\n", encoding="utf-8")
    (problem,) = check_config_file(path)
    assert "cannot be read as YAML" in problem


def test_loading_a_config_without_our_application_says_so(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("applications: [{import_path: other:app}]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"serve_app\.graph:build"):
        load_app_config(path)


def test_loading_a_bad_config_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    data = local("applications.0.args.public_url", "x")
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"args\.public_url"):
        load_app_config(path)


def test_a_simulated_model_is_refused_unless_on_loopback_or_allowed(check: Check) -> None:
    data = local("applications.0.args.models.0.source", "simulated:h200:schnell")
    assert check(data) == []
    data["http_options"]["host"] = "0.0.0.0"
    del data["applications"][0]["args"]["development"]
    (problem,) = check(data)
    assert "flux-mini" in problem
    assert "allow_simulated" in problem
    data["applications"][0]["args"]["allow_simulated"] = True
    assert check(data) == []


@pytest.mark.parametrize("kwargs", [{"target_queue": 4}, {"hold_s": 0}, {"utilization": "all"}])
def test_a_bad_setting_of_the_autoscaling_policy_is_refused_by_name(
    check: Check, kwargs: dict[str, Any]
) -> None:
    policy = {"policy_function": POLICY_PATH, "policy_kwargs": kwargs}
    data = local(f"{DEPLOYMENT}.autoscaling_config", {"max_replicas": 2, "policy": policy})
    del data["applications"][0]["deployments"][0]["num_replicas"]
    (problem,) = check(data)
    assert "policy_kwargs" in problem
    assert next(iter(kwargs)) in problem
