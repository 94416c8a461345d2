"""Makes the tables of docs/configuration.md: `python -m tests.render_configuration`.

Data flow: `AppConfig` -> Markdown tables -> between the two markers of the page. The text around
them is written by hand. `tests/test_docs.py` fails while page and code differ.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from serve_app.config import AppConfig, ModelConfig
from serve_app.registry import MODEL_DEFAULTS

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN = "<!-- tables: begin (python -m tests.render_configuration) -->"
END = "<!-- tables: end -->"

BOUNDS = (
    ("minimum", "at least {}"),
    ("exclusiveMinimum", "more than {}"),
    ("maximum", "at most {}"),
    ("minLength", "characters: {} or more"),
    ("maxLength", "characters: {} or fewer"),
    ("minItems", "at least {}"),
    ("pattern", "matches `{}`"),
)


def main() -> None:
    """Bring the page up to date, in place."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def render(page: str) -> str:
    """The page with its tables made anew."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    assert found, f"{PAGE.name} lacks the marker {BEGIN}"
    assert ended, f"{PAGE.name} lacks the marker {END}"
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def tables() -> str:
    """One table for each section, the root first, and one for the known models."""
    parts = [_table(title, section) for title, section in sections(AppConfig, "args")]
    return "\n".join([*parts, _known_models()])


def sections(section: type[BaseModel], title: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """A section and those inside it, by their place in the YAML."""
    yield title, section
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            yield from sections(inner, f"{title}.{name}{'[]' if inner is ModelConfig else ''}")


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section inside `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((s for part in get_args(annotation) if (s := section_in(part))), None)


def _table(title: str, section: type[BaseModel]) -> str:
    schema = section.model_json_schema()
    about = " ".join((section.__doc__ or "").split())
    lines = [f"### `{title}`", "", about, "", "| key | takes | default | what it is |"]
    lines.append("|---|---|---|---|")
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        takes = "section" if inner else _takes(schema["properties"][name])
        row = (f"`{name}`", takes, _default(field, inner), field.description or "")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")
    return "\n".join([*lines, ""])


def _takes(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_takes(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = {"string": "text", "boolean": "`true` or `false`", "array": "list", "object": "mapping"}
    name = schema.get("type", "")
    bounds = [text.format(schema[key]) for key, text in BOUNDS if key in schema]
    return ", ".join([kind.get(name, name), *bounds])


def _default(field: Any, inner: type[BaseModel] | None) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if inner is not None and value is not None:
        return "its defaults"
    return f"`{json.dumps(value, default=str)}`"


def _known_models() -> str:
    lines = [
        "### Known models",
        "",
        "A model with one of these ids starts from these values; what is written in YAML wins.",
        "",
        "| id | key | value |",
        "|---|---|---|",
    ]
    for model_id, values in MODEL_DEFAULTS.items():
        for key, value in values.items():
            lines.append(f"| `{model_id}` | `{key}` | `{json.dumps(value)}` |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
