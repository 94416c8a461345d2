"""Makes the tables of docs/tracing.md: `python -m tests.render_tracing`.

Data flow: `serve_app.tracing` -> Markdown tables -> between the two markers of the page.
`tests/test_docs.py` fails while page and code differ.
"""

from pathlib import Path

from serve_app.tracing import ALL, ATTRIBUTES, Info

PAGE = Path(__file__).parents[1] / "docs" / "tracing.md"
BEGIN = "<!-- tables: begin (python -m tests.render_tracing) -->"
END = "<!-- tables: end -->"


def main() -> None:
    """Bring the page up to date, in place."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def render(page: str) -> str:
    """The page with its tables made anew."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    assert found, f"{PAGE.name} lacks the marker {BEGIN}"
    assert ended, f"{PAGE.name} lacks the marker {END}"
    spans = ["| span | made by | attributes | what it is |", "|---|---|---|---|", *map(_span, ALL)]
    attributes = ["| attribute | what it holds |", "|---|---|"]
    attributes += [f"| `{name}` | {text} |" for name, text in ATTRIBUTES.values()]
    tables = "\n".join(["### Spans", "", *spans, "", "### Attributes", "", *attributes, ""])
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def _span(info: Info) -> str:
    names = ", ".join(f"`{ATTRIBUTES[key][0]}`" for key in info.attributes)
    return f"| `{info.name}` | {info.source} | {names} | {info.help} |"


if __name__ == "__main__":
    main()
