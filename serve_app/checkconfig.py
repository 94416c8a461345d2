"""What a Serve config file must satisfy before it is served: `flux-serve check-config FILE`.

Data flow: YAML -> Serve's own schema, with unknown keys refused (Serve ignores them silently) ->
`AppConfig` of each application -> rules that span both. Returns problems as sentences, never raises
for a bad file.
"""

import warnings
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import ServeDeploySchema

from serve_app.config import AppConfig, BatchingConfig
from serve_app.configfile import BUILDER, read_yaml, sentences
from serve_app.deployments.autoscaling import POLICY_PATH, ComputeBacklogPolicy
from serve_app.deployments.proxy import CALLBACK_PATH, CALLBACK_VARIABLE
from serve_app.engine.source import simulated_problem
from serve_app.errors import ConfigError
from serve_app.loopback import is_loopback

# Serve types these as plain dicts in its schema, yet reads them as the classes.
_TYPED_DICTS: dict[str, type[BaseModel]] = {
    "autoscaling_config": AutoscalingConfig,
    "request_router_config": RequestRouterConfig,
}
_FREE_FORM = frozenset({"args", "user_config", "env_vars", "runtime_env"})
"""Keys whose contents Serve does not define; the first two are checked by our own types."""


def check_config_file(path: Path) -> list[str]:
    """Every problem of a config file; an empty list means that it can be served."""
    with warnings.catch_warnings():
        # Serve deprecates `metrics_interval_s`, but 2.60 has nothing else that makes its handles
        # report in less than 10 s, on which scaling from zero waits.
        warnings.filterwarnings("ignore", "The `metrics_interval_s` field", DeprecationWarning)
        return _problems(path)


def _problems(path: Path) -> list[str]:
    try:
        data = read_yaml(path)
        unknown = _unknown_keys(data, ServeDeploySchema, "")
        schema = ServeDeploySchema.model_validate(data)
    except ConfigError as exc:
        return [str(exc)]
    except ValidationError as exc:
        return unknown + sentences("", exc)
    except (AttributeError, TypeError) as exc:  # Serve's validators trust some shapes
        return [*unknown, f"{path}: Serve cannot read it: {exc}"]
    problems = unknown + _proxy_problems(data)
    if all(application.import_path != BUILDER for application in schema.applications):
        problems.append(f"applications: none of them has import_path {BUILDER}")
    for index, application in enumerate(schema.applications):
        where = f"applications[{index}]"
        if application.import_path != BUILDER:
            continue
        try:
            config = AppConfig.model_validate(application.args)
        except ValidationError as exc:
            problems += sentences(f"{where}.args", exc)
            continue
        problems += _development_problems(config, schema.http_options.host)
        simulated = simulated_problem(config, schema.http_options.host)
        problems += [simulated] if simulated else []
        problems += _deployment_problems(config, data["applications"][index], where)
    return problems


def _unknown_keys(data: Any, model: type[BaseModel], where: str) -> list[str]:
    """Keys that Serve's schema does not know, recursively."""
    if not isinstance(data, dict):
        return []
    problems: list[str] = []
    for key, value in data.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in model.model_fields:
            problems.append(f"{path}: unknown key (Serve would ignore it)")
            continue
        if key in _FREE_FORM:
            continue
        inner = _TYPED_DICTS.get(key) or _model_in(model.model_fields[key].annotation)
        if inner is None:
            continue
        items = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, item in items:
            problems += _unknown_keys(item, inner, path if index is None else f"{path}[{index}]")
    return problems


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic class inside `X`, `Optional[X]` or `list[X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, list):
        for part in get_args(annotation):
            if (found := _model_in(part)) is not None:
                return found
    return None


def _proxy_problems(data: dict[str, Any]) -> list[str]:
    """Without the guard, Serve's own failures would reach clients as plain text."""
    options = data.get("controller_options") or {}
    variables = (options.get("runtime_env") or {}).get("env_vars") or {}
    if variables.get(CALLBACK_VARIABLE) == CALLBACK_PATH:
        return []
    where = f"controller_options.runtime_env.env_vars.{CALLBACK_VARIABLE}"
    return [f"{where}: must be {CALLBACK_PATH}"]


def _development_problems(config: AppConfig, host: str | None) -> list[str]:
    if config.development is None or is_loopback(host):
        return []
    return [
        "args.development: a development key needs http_options.host on loopback "
        f"(127.0.0.1), not {host!r}"
    ]


def _deployment_problems(config: AppConfig, application: dict[str, Any], where: str) -> list[str]:
    models = {model.deployment_name for model in config.models}
    problems: list[str] = []
    for index, deployment in enumerate(application.get("deployments") or []):
        path = f"{where}.deployments[{index}]"
        name = deployment.get("name")
        if name not in models | {"Gateway"}:
            known = ", ".join(sorted(models | {"Gateway"}))
            problems.append(f"{path}.name: no deployment {name!r}; there are {known}")
        for key, model in _TYPED_DICTS.items():
            problems += _value_problems(deployment.get(key), model, f"{path}.{key}")
        problems += _policy_problems(deployment.get("autoscaling_config"), path)
        if name in models:
            user_config = deployment.get("user_config")
            problems += _value_problems(user_config, BatchingConfig, f"{path}.user_config")
    return problems


def _policy_problems(autoscaling: Any, where: str) -> list[str]:
    """Serve makes the policy only when it deploys, deep inside its controller."""
    policy = autoscaling.get("policy") if isinstance(autoscaling, dict) else None
    if not isinstance(policy, dict) or policy.get("policy_function") != POLICY_PATH:
        return []
    try:
        ComputeBacklogPolicy(**(policy.get("policy_kwargs") or {}))
    except (TypeError, ValueError) as exc:
        return [f"{where}.autoscaling_config.policy.policy_kwargs: {exc}"]
    return []


def _value_problems(value: Any, model: type[BaseModel], where: str) -> list[str]:
    try:
        if value is not None:
            model.model_validate(value)
    except ValidationError as exc:
        return sentences(where, exc)
    return []
