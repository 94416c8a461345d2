"""Reading a Serve config file: YAML -> the `AppConfig` of its flux-serve application.

Must not import Ray: every command of `flux-serve` that needs the ledger starts here.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serve_app.config import AppConfig
from serve_app.errors import ConfigError

BUILDER = "serve_app.graph:build"
"""`import_path` of an application that this package builds."""


def load_app_config(path: Path) -> AppConfig:
    """The configuration of the file's flux-serve application, or `ConfigError`."""
    for application in read_yaml(path).get("applications") or []:
        if isinstance(application, dict) and application.get("import_path") == BUILDER:
            try:
                return AppConfig.model_validate(application.get("args") or {})
            except ValidationError as exc:
                raise ConfigError(f"{path}: {'; '.join(sentences('args', exc))}") from exc
    raise ConfigError(f"{path}: no application has import_path {BUILDER}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's mapping, or `ConfigError`."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path}: cannot be read as YAML: {exc}") from exc
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping with 'applications'")
    return data


def sentences(where: str, exc: ValidationError) -> list[str]:
    """Each problem with the path of its field."""
    found = []
    for error in exc.errors(include_url=False, include_input=False):
        path = ".".join(str(part) for part in (where, *error["loc"]) if part != "")
        found.append(f"{path}: {error['msg']}")
    return found
