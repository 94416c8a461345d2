"""The documentation says what the code does: links, routes, errors, fields, settings, commands."""

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from serve_app.adminschema import (
    AccountObject,
    ActObject,
    AllowanceObject,
    AuditResponse,
    EntryObject,
    KeyObject,
    ModelStatus,
    ReplicaStatus,
    StandingObject,
    UsageObject,
)
from serve_app.checkconfig import check_config_file
from serve_app.cli import app as cli
from serve_app.config import AppConfig
from serve_app.errors import all_error_classes
from serve_app.eventschema import CompletedEvent, PartialImageEvent, ProgressEvent, QueuedEvent
from serve_app.ingress.admin import AdminApi
from serve_app.ingress.pages import Pages
from serve_app.ingress.routes import Api
from serve_app.schema import (
    AccountResponse,
    ImageRequest,
    ImagesResponse,
    ModelCapabilities,
    QuoteResponse,
)
from tests import render_cli, render_metrics, render_tracing
from tests.render_configuration import PAGE, render

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *ROOT.glob("docs/**/*.md"),
    ]
)
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ROW = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Anchors as GitHub makes them: lower case, spaces to hyphens, punctuation dropped."""
    headings = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def section(heading: str) -> str:
    """The text of api.md under a heading, up to the next one."""
    _, found, rest = API.partition(f"\n{heading}\n")
    assert found, f"api.md has no heading {heading!r}"
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_exist(page: Path) -> None:
    """Paths in backticks are relative to the repository or to `serve_app`."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    paths = re.findall(r"`((?:[a-z_]+/)+(?:[\w.-]+\.(?:py|md|yaml|toml))?)`", text)
    named = set(paths)
    assert [
        path
        for path in sorted(named)
        if not ((ROOT / path).exists() or (ROOT / "serve_app" / path).exists())
    ] == []


def test_named_functions_exist() -> None:
    """`Class.method` of the architecture page is in the code."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("serve_app/**/*.py"))
    named = re.findall(r"`([A-Z]\w+)\.([a-z_]\w+)`", text)
    assert named
    for owner, function in named:
        assert re.search(rf"^class {owner}\b", code, re.MULTILINE), owner
        assert re.search(rf"^    (?:async )?def {function}\(", code, re.MULTILINE), function


def test_every_route_is_documented() -> None:
    nothing: Any = None
    routes: Any = [
        *Api(nothing, nothing).routes(),
        *AdminApi(nothing, nothing, nothing).routes(),
        *Pages(nothing).routes(),
    ]
    served = {
        f"{method} {route.path.replace(':path', '')}"
        for route in routes
        for method in route.methods - {"HEAD"}
    }
    assert set(ROW.findall(section("## Endpoints"))) == served


def test_every_error_is_documented() -> None:
    rows = re.findall(
        r"^\| (\d+) \| `(\w+)` \| (?:null|`(\w+)`) \| `(\w+)` \|",
        section("## Errors"),
        re.MULTILINE,
    )
    documented = {(name, int(status), kind, code or None) for status, kind, code, name in rows}
    real = {(cls.__name__, cls.status, cls.type, cls.code) for cls in all_error_classes()}
    assert documented == real


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("### Request", set(ImageRequest.model_fields)),
        ("### Reply", set(ImagesResponse.model_fields)),
        ("### Streaming", {*PartialImageEvent.model_fields, *CompletedEvent.model_fields}),
        ("### Progress events", {*QueuedEvent.model_fields, *ProgressEvent.model_fields}),
        ("## Quote", set(QuoteResponse.model_fields)),
        ("## Account", set(AccountResponse.model_fields)),
        (
            "## Status",
            {
                *(ModelStatus.model_fields.keys() - {"replicas"}),
                *(f"replicas.{field}" for field in ReplicaStatus.model_fields),
            },
        ),
        (
            "## Usage",
            {
                "by",
                "account",
                "format",
                *UsageObject.model_fields,
                *(StandingObject.model_fields.keys() - {"day", "month"}),
                *(
                    f"{name}.{field}"
                    for name in ("day", "month")
                    for field in AllowanceObject.model_fields
                ),
            },
        ),
        ("### Accounts", set(AccountObject.model_fields)),
        ("### API keys", set(KeyObject.model_fields)),
        ("### Entries", set(EntryObject.model_fields)),
        ("### Acts", set(ActObject.model_fields)),
        ("### Audit", set(AuditResponse.model_fields)),
        ("## Models", {"aliases", *(f"capabilities.{f}" for f in ModelCapabilities.model_fields)}),
    ],
)
def test_every_field_is_documented(heading: str, fields: set[str]) -> None:
    assert set(ROW.findall(section(heading))) == fields


def test_configuration_tables_are_made_from_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert render(text) == text, "run: python -m tests.render_configuration"


def test_the_command_reference_is_made_from_the_code() -> None:
    text = render_cli.PAGE.read_text(encoding="utf-8")
    assert render_cli.render(text) == text, "run: python -m tests.render_cli"


def test_metrics_tables_are_made_from_the_code() -> None:
    text = render_metrics.PAGE.read_text(encoding="utf-8")
    assert render_metrics.render(text) == text, "run: python -m tests.render_metrics"


def test_tracing_tables_are_made_from_the_code() -> None:
    text = render_tracing.PAGE.read_text(encoding="utf-8")
    assert render_tracing.render(text) == text, "run: python -m tests.render_tracing"


def configuration_examples() -> list[dict[str, Any]]:
    blocks = FENCE.findall(PAGE.read_text(encoding="utf-8"))
    return [yaml.safe_load(text) for language, text in blocks if language == "yaml"]


@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")
@pytest.mark.parametrize("example", configuration_examples(), ids=lambda block: next(iter(block)))
def test_configuration_examples_are_valid(example: dict[str, Any], tmp_path: Path) -> None:
    whole = example
    if "applications" not in example:  # entries of an application: put them into a real file
        whole = yaml.safe_load((ROOT / "configs" / "gpu.yaml").read_text(encoding="utf-8"))
        whole["applications"][0].update(example)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    assert check_config_file(file) == []


def test_sections_of_the_recipes_are_valid() -> None:
    """Blocks that show a part of `args`; LiteLLM's own file is none of them."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    shown = [yaml.safe_load(block) for language, block in FENCE.findall(text) if language == "yaml"]
    parts = [block for block in shown if block.keys() <= AppConfig.model_fields.keys()]
    assert [next(iter(block)) for block in parts] == ["store", "ledger"]
    for block in parts:
        AppConfig.model_validate(
            {"public_url": "https://images.example.com", "models": [{"id": "flux-mini"}], **block}
        )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_well_formed(page: Path) -> None:
    read = {"python": ast.parse, "json": json.loads, "yaml": yaml.safe_load}
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in read:
            assert read[language](block), block


def shown_commands() -> list[str]:
    """Every `flux-serve` line of a shell block."""
    found = set()
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language in ("bash", "sh", "console", "shell"):
                found.update(re.findall(r"^(?:\$ )?(?:\.venv/bin/)?(flux-serve .+)$", block, re.M))
    return sorted(found)


def mentioned_commands() -> list[str]:
    """Every `flux-serve ...` in running text."""
    texts = [FENCE.sub("", page.read_text(encoding="utf-8")) for page in PAGES]
    return sorted({line for text in texts for line in re.findall(r"`(flux-serve [^`]+)`", text)})


def resolve(words: list[str], *, parse: bool) -> None:
    """Find the command as the real CLI does; with `parse`, read its arguments too."""
    command: Any = get_command(cli)
    context = command.make_context("flux-serve", list(words), resilient_parsing=True)
    while words and hasattr(command, "commands"):
        _, command, rest = command.resolve_command(context, words)
        assert command is not None, f"flux-serve has no command {words[0]!r}"
        context = command.make_context(words[0], list(rest), context, resilient_parsing=True)
        words = rest
    if parse:
        command.make_context(command.name, words)


@pytest.mark.parametrize("line", shown_commands())
def test_commands_in_shell_blocks_parse(line: str) -> None:
    resolve(shlex.split(line, comments=True)[1:], parse=True)


@pytest.mark.parametrize("line", mentioned_commands())
def test_commands_in_text_exist(line: str) -> None:
    words = line.split()[1:]
    plain = [word for word in words if re.fullmatch(r"[a-z][a-z-]*", word)]
    assert plain or words[0].startswith("-")
    resolve(plain, parse=False)


def test_newest_release_is_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", changelog, re.MULTILINE)
    assert released[0] == project["version"]
    assert "## [Unreleased]" in changelog
