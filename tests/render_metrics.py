"""Makes the tables of docs/metrics.md: `python -m tests.render_metrics`.

Data flow: `serve_app.metrics.ALL` -> Markdown tables -> between the two markers of the page.
`tests/test_docs.py` fails while page and code differ.
"""

from pathlib import Path

from serve_app.metrics import ALL, Metric

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN = "<!-- tables: begin (python -m tests.render_metrics) -->"
END = "<!-- tables: end -->"
SOURCES = (("gateway", "From gateways"), ("replica", "From model replicas"))


def main() -> None:
    """Bring the page up to date, in place."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def render(page: str) -> str:
    """The page with its tables made anew."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    assert found, f"{PAGE.name} lacks the marker {BEGIN}"
    assert ended, f"{PAGE.name} lacks the marker {END}"
    tables = "\n".join(_table(source, title) for source, title in SOURCES)
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def _table(source: str, title: str) -> str:
    rows = [_row(metric) for metric in ALL if metric.source == source]
    head = ["| name | kind | labels | what it is |", "|---|---|---|---|"]
    return "\n".join([f"### {title}", "", *head, *rows, ""])


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    buckets = ", ".join(f"{bound:g}" for bound in metric.buckets)
    about = f"{metric.help} Buckets: {buckets}." if buckets else metric.help
    return f"| `{metric.exported}` | {metric.kind} | {labels} | {about} |"


if __name__ == "__main__":
    main()
