"""The Jobs of cluster.yaml: weights are there when all of them are, and the migration is ours."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.cluster_kit import (
    CONTAINER,
    MODELS,
    POD,
    ROOT,
    app_config,
    at,
    load,
    pod_templates,
)


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
