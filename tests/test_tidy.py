"""What keeps the code small and the project in step with itself; part of `make check`."""

import ast
import pickle  # noqa: TID251 - it reads back only what it wrote
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

import serve_app
from serve_app.config import AppConfig, Section
from serve_app.errors import AppError, all_error_classes

ROOT = Path(__file__).parents[1]
MODULE_LINES_MAX = 300
FUNCTION_LINES_MAX = 50
SOURCES = sorted(
    path
    for folder in ("serve_app", "tools", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if "versions" not in path.parts  # migrations are history: never edited again
)
each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
# Spelled apart, so that this file does not hold what it looks for.
UNFINISHED = re.compile(r"\b(FIX" + r"ME|TO" + r"DO|X" + r"XX)\b")


@each_source
def test_a_module_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MODULE_LINES_MAX


@each_source
def test_a_function_is_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@each_source
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert (
        ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stat().st_size == 0
    )


def test_nothing_is_left_unfinished() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "*.py", "*.md", "*.yaml", "*.toml", "Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = listed.stdout.split("\0") if listed.returncode == 0 else map(str, SOURCES)
    left = [
        name
        for name in names
        if name and (ROOT / name).exists() and UNFINISHED.search((ROOT / name).read_text("utf-8"))
    ]
    assert left == []


HEAVY = ("diffusers", "ray", "sqlalchemy", "torch", "transformers")


@pytest.mark.parametrize("module", ["serve_app", "serve_app.cli"])
def test_a_light_module_imports_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*sys.modules.keys() & set({HEAVY!r}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("error_class", all_error_classes(), ids=lambda cls: cls.__name__)
def test_an_error_crosses_between_actors(error_class: type[AppError]) -> None:
    found = pickle.loads(pickle.dumps(error_class("why").at("size").after(3)))
    assert (type(found), found.message) == (error_class, "why")
    assert (found.param, found.retry_after_s) == ("size", 3)


def headed(page: str) -> dict[str, str]:
    """The text of a page under each of its headings, code marks dropped from the headings."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)
    titles = (title.replace("`", "") for title in parts[1::2])
    return dict(zip(titles, parts[2::2], strict=True))


def config_sections(section: type[BaseModel], title: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """A section and those inside it, titled as in the docs: `args.models[].engine`."""
    yield title, section
    for name, field in section.model_fields.items():
        text = repr(field.annotation)
        for inner in Section.__subclasses__():
            if f".{inner.__name__}" in text:
                many = "[]" if "tuple" in text else ""
                yield from config_sections(inner, f"{title}.{name}{many}")


def test_every_config_field_is_documented() -> None:
    page = headed("configuration.md")
    for title, section in config_sections(AppConfig, "args"):
        missing = [name for name in section.model_fields if f"`{name}`" not in page[title]]
        assert not missing, f"{title}: {missing}"


def test_every_error_code_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    codes = {cls.code for cls in all_error_classes() if cls.code}
    assert {code for code in codes if f"`{code}`" not in page} == set()


def test_the_changelog_is_about_this_version() -> None:
    versions = re.findall(
        r"^## \[?(\d+\.\d+\.\d+)\]?", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert versions[0] == serve_app.__version__
    assert f'version = "{serve_app.__version__}"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_every_test_module_has_a_name_of_its_own() -> None:
    """Pytest imports test modules by their bare names: of two alike it collects one."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
