"""Private names of Ray are used in one module, which an upgrade of Ray goes through."""

import ast
from pathlib import Path

import ray

import serve_app
from serve_app.deployments import ray_compat

PACKAGE = Path(serve_app.__file__).parent
COMPAT = Path(ray_compat.__file__)


def private_imports(path: Path) -> list[str]:
    """Imports from a private module of Ray, or of a private name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "ray"]
        else:
            continue
        found += [name for name in names if any(part.startswith("_") for part in name.split("."))]
    return found


def test_no_other_module_imports_a_private_name_of_ray() -> None:
    users = {path: private_imports(path) for path in PACKAGE.rglob("*.py") if path != COMPAT}
    assert {path: names for path, names in users.items() if names} == {}
    assert private_imports(COMPAT)  # it would be found


def test_they_were_last_looked_at_for_this_version_of_ray() -> None:
    """An upgrade moves them without a word: read each name's reason again, then change VERSION."""
    assert ray.__version__.startswith(f"{ray_compat.VERSION}.")


def test_the_functions_that_are_called_are_there() -> None:
    assert callable(ray_compat.api.serve_start)
    assert callable(ray_compat.api._create_controller_and_proxy_refs)
    assert callable(ray_compat.services.start_api_server)
    assert callable(ray_compat.available_resources_per_node)
    assert ray_compat.serve_client() is None


def test_without_dashboard_restores_what_it_replaced() -> None:
    before = ray_compat.services.start_api_server
    with ray_compat.without_dashboard():
        assert ray_compat.services.start_api_server("any", key="any") == (None, None)
    assert ray_compat.services.start_api_server is before
