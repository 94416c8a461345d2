"""cluster.yaml as tests see it: its objects, its pods, and how to break a copy of it.

No cluster runs here. A rule takes the objects and returns sentences, so that a test can break a
copy of the file and see the rule say so.
"""

import copy
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.config import AppConfig

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster.yaml"
NAMESPACE = "flux-serve"
RAY = "RayService/flux-serve"
CLUSTER = f"{RAY}:spec:rayClusterConfig"
HEAD = f"{CLUSTER}:headGroupSpec"
GATEWAYS = f"{CLUSTER}:workerGroupSpecs:0"
MODELS = f"{CLUSTER}:workerGroupSpecs:1"
ROUTE = "HTTPRoute/flux-serve-edge"
POD = "template:spec"
CONTAINER = f"{POD}:containers:0"
DELETE = object()
"""As the value of `broken`: take the key away."""

Object = dict[str, Any]
Objects = list[Object]
Rule = Callable[[Objects], list[str]]


@functools.cache
def _as_json() -> str:
    return json.dumps(list(yaml.safe_load_all(FILE.read_text(encoding="utf-8"))))


def load() -> Objects:
    """Every object, with nothing shared between them: anchors would spread a break."""
    objects: Objects = json.loads(_as_json())
    return objects


def named(objects: Objects, name: str) -> Object:
    """The object called `Kind/name`."""
    (found,) = [item for item in objects if name_of(item) == name]
    return found


def name_of(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def of_kind(objects: Objects, kind: str) -> Objects:
    return [item for item in objects if item["kind"] == kind]


def at(objects: Objects, path: str) -> Any:
    """The value at `Kind/name:key:key`; numbers enter lists."""
    name, *keys = path.split(":")
    target: Any = named(objects, name)
    for key in keys:
        target = target[int(key) if isinstance(target, list) else key]
    return target


def broken(path: str, value: Any) -> Objects:
    """cluster.yaml with one value changed, or taken away with `DELETE`."""
    objects = load()
    parent, _, key = path.rpartition(":")
    target = at(objects, parent)
    last = int(key) if isinstance(target, list) else key
    if value is DELETE:
        del target[last]
    else:
        target[last] = copy.deepcopy(value)
    return objects


@dataclass(frozen=True)
class PodTemplate:
    """A pod that some object makes: where it is in the file, its labels, its spec."""

    where: str
    labels: dict[str, str]
    spec: Object
    claim_templates: frozenset[str] = frozenset()

    @property
    def containers(self) -> Objects:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pod_templates(objects: Objects) -> list[PodTemplate]:
    return list(_pod_templates(objects))


def _pod_templates(objects: Objects) -> Iterator[PodTemplate]:
    for item in objects:
        if item["kind"] in ("Job", "StatefulSet"):
            claims = item["spec"].get("volumeClaimTemplates", [])
            names = frozenset(claim["metadata"]["name"] for claim in claims)
            yield _template(name_of(item), item["spec"]["template"], names)
        if item["kind"] == "RayService":
            for where, group in groups(item):
                yield _template(f"{name_of(item)} {where}", group["template"])


def _template(where: str, template: Object, claims: frozenset[str] = frozenset()) -> PodTemplate:
    return PodTemplate(where, template["metadata"]["labels"], template["spec"], claims)


def groups(rayservice: Object) -> Iterator[tuple[str, Object]]:
    """The head group, then the worker groups by name."""
    cluster = rayservice["spec"]["rayClusterConfig"]
    yield "head", cluster["headGroupSpec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group


def environment(container: Object) -> dict[str, str | None]:
    """Variables of a container; None where the value comes from elsewhere."""
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def serve_config(objects: Objects) -> Object:
    """What `serveConfigV2`, a string to Kubernetes, says."""
    parsed: Object = yaml.safe_load(named(objects, RAY)["spec"]["serveConfigV2"])
    return parsed


def app_config(objects: Objects) -> AppConfig:
    """The arguments of the application in `serveConfigV2`."""
    (application,) = serve_config(objects)["applications"]
    return AppConfig.model_validate(application["args"])


def deployment(objects: Objects, prefix: str) -> Object:
    """The `deployments:` entry whose name starts so."""
    (application,) = serve_config(objects)["applications"]
    (found,) = [one for one in application["deployments"] if one["name"].startswith(prefix)]
    entry: Object = found
    return entry
