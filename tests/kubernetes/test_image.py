"""The Dockerfile, read and not built: there is no Docker here.

Checked: who runs, from what, in which order the layers come, that every copied file exists and is
not kept out by .dockerignore, and that versions are the package's.
"""

import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.kubernetes.cluster_kit import CONTAINER, GATEWAYS, ROOT, at, load, pod_templates
from tests.machine import MACHINE

DOCKERFILE = ROOT / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
VARIANTS = ["cpu", "cuda"]


def steps() -> list[tuple[str, str]]:
    """Every instruction and its argument, in order."""
    parser = DockerfileParser(path=str(DOCKERFILE.parent))
    return [
        (step["instruction"], step["value"])
        for step in parser.structure
        if step["instruction"] != "COMMENT"
    ]


def values(instruction: str) -> list[str]:
    return [value for name, value in steps() if name == instruction]


def position(text: str) -> int:
    (found,) = [index for index, (_, value) in enumerate(steps()) if text in value]
    return found


def extras(variant: str) -> str:
    """FLUX_SERVE_EXTRAS as the stage of a variant sets it."""
    _, _, stage = DOCKERFILE.read_text(encoding="utf-8").partition(f"AS variant-{variant}\n")
    found = re.search(r"FLUX_SERVE_EXTRAS=(\S+)", stage)
    assert found
    return found[1]


def test_both_variants_are_stages_that_end_in_the_same_image() -> None:
    stages = [value.split() for value in values("FROM")]
    names = [stage[-1] for stage in stages]
    assert names == ["base", *(f"variant-{variant}" for variant in VARIANTS), "final"]
    assert stages[-1][0] == "variant-${VARIANT}"
    defaults = dict(value.split("=", 1) for value in values("ARG"))
    assert defaults["VARIANT"] in VARIANTS
    images = {
        container["image"].rpartition("-")[2]
        for template in pod_templates(load())
        for container in template.containers
        if "flux-serve:" in container["image"]
    }
    assert images == set(VARIANTS)


def test_python_and_torch_are_pinned_as_in_the_package() -> None:
    defaults = dict(value.split("=", 1) for value in values("ARG"))
    python = defaults["PYTHON_VERSION"]
    assert re.fullmatch(r"3\.\d+\.\d+", python)
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    (torch,) = [one for one in map(Requirement, PROJECT["dependencies"]) if one.name == "torch"]
    assert str(torch.specifier) == f"=={defaults['TORCH_VERSION']}"


def test_what_changes_most_comes_last() -> None:
    """A new line of source must rebuild neither torch nor the dependencies."""
    torch, pins = position('"torch==${TORCH_VERSION}"'), position("requirements.py pyproject.toml")
    source = position("serve_app serve_app")
    listed = position("pyproject.toml docker/requirements.py ./")
    assert torch < listed < pins < source
    assert position("pip install --no-deps .") > source


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_layer_of_dependencies_is_what_pyproject_says(variant: str) -> None:
    script = ROOT / "docker" / "requirements.py"
    done = subprocess.run(
        [sys.executable, str(script), str(ROOT / "pyproject.toml"), extras(variant)],
        capture_output=True,
        text=True,
        check=True,
    )
    optional = PROJECT["optional-dependencies"]
    assert "postgres" in extras(variant)  # the cluster's ledger
    assert done.stdout.splitlines() == [
        *PROJECT["dependencies"],
        *(line for extra in extras(variant).split(",") for line in optional[extra]),
    ]


def test_an_unknown_extra_stops_the_build() -> None:
    script = ROOT / "docker" / "requirements.py"
    command = [sys.executable, str(script), str(ROOT / "pyproject.toml"), "postgress"]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_the_image_runs_as_nobody_special() -> None:
    (user,) = values("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # a number: Kubernetes cannot check a name
    assert position(user) > position("docker/drain-node.sh docker/drain-node.sh")
    for template in pod_templates(load()):
        if any("flux-serve:" in container["image"] for container in template.containers):
            assert str(template.spec["securityContext"]["runAsUser"]) == user.partition(":")[0]


def copied() -> list[tuple[str, str]]:
    pairs = []
    for value in values("COPY"):
        *sources, target = value.split()
        pairs += [(source, target) for source in sources]
    return pairs


@pytest.mark.parametrize("source", [source for source, _ in copied()])
def test_every_copied_file_exists_and_is_sent_to_the_builder(source: str) -> None:
    assert (ROOT / source).exists()
    assert not is_ignored(source)


def is_ignored(path: str) -> bool:
    """As Docker reads .dockerignore: the last line that matches the path or a parent wins."""
    ignored = False
    for line in IGNORED:
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        parts = Path(path).parts
        heads = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        if any(fnmatch(head, pattern) for head in heads):
            ignored = not line.startswith("!")
    return ignored


@pytest.mark.parametrize(
    "path", ["data/signing.key", ".git/config", "tests/conftest.py", ".venv/bin/python", ".env"]
)
def test_nothing_else_is_sent_to_the_builder(path: str) -> None:
    assert is_ignored(path)


def test_nothing_secret_is_built_in() -> None:
    names = [value.partition("=")[0] for value in (*values("ARG"), *values("ENV"))]
    assert not [name for name in names if re.search("TOKEN|SECRET|PASSWORD|_KEY", name)]


def test_what_kuberay_and_the_probes_call_is_there() -> None:
    packages = next(value for value in values("RUN") if "apt-get" in value)
    assert " wget " in packages  # its readiness probe of worker pods
    (check,) = values("HEALTHCHECK")
    assert '"wget"' in check
    assert ":8000/health" in check
    assert "8000" in values("EXPOSE")


def test_the_pods_find_the_drain_script() -> None:
    (folder,) = values("WORKDIR")
    command = at(load(), f"{GATEWAYS}:{CONTAINER}:lifecycle:preStop:exec:command")
    assert command == ["/bin/bash", f"{folder}/{dict(copied())['docker/drain-node.sh']}"]


def drain(folder: Path, status: int) -> tuple[list[str], bool]:
    """Run the script where a replica lives until somebody sleeps; `ray drain-node` ends so.

    `ray` and `sleep` are ours. Returns what Ray was asked, and whether the script waited.
    """
    replica = folder / "proc" / "77" / "cmdline"
    replica.parent.mkdir(parents=True)
    replica.write_bytes(b"ray::ServeReplica:flux-serve:Gateway\0")
    (folder / "proc" / "1").mkdir()
    (folder / "proc" / "1" / "cmdline").write_bytes(b"/bin/bash\0-c\0ray start --block\0")
    for name, body in {
        "ray": f'printf "%s\\n" "$@" > "{folder}/asked"; exit {status}',
        "sleep": f'rm "{replica}"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "docker" / "drain-node.sh")],
        env={"PATH": f"{folder}:/usr/bin:/bin", "DRAIN_PROC": str(folder / "proc")},
        timeout=MACHINE.allow(),
        check=False,
    )
    assert done.returncode == 0
    return (folder / "asked").read_text().splitlines(), not replica.exists()


def test_a_pod_waits_for_its_replicas_before_it_goes(tmp_path: Path) -> None:
    asked, waited = drain(tmp_path, status=0)
    assert asked[0] == "drain-node"
    assert {"DRAIN_NODE_REASON_PREEMPTION", "340"} <= set(asked)
    assert waited


def test_a_pod_without_a_head_does_not_wait(tmp_path: Path) -> None:
    _, waited = drain(tmp_path, status=1)
    assert not waited
