"""Makes monitoring/dashboard.json for Grafana: `python -m tools.render_dashboard`.

Data flow: `ROWS`, a table of panels and their PromQL -> Grafana's JSON. A panel written by hand is
fifty lines; here it is two or three. `tests/test_monitoring.py` fails while table and file differ.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "monitoring" / "dashboard.json"
WIDTH, HEIGHT, COLUMNS = 8, 8, 3  # of Grafana's 24 units
GENERATIONS = 'route="/v1/images/generations"'
FAILED = 'status=~"5.."'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """`queries` are (PromQL, legend)."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def series(name: str, labels: str = "") -> str:
    """One of our metrics, of the application that the dashboard shows."""
    chosen = 'application=~"$application"'
    return f"ray_flux_serve_{name}{{{', '.join(filter(None, (chosen, labels)))}}}"


def per_second(name: str, by: str, labels: str = "") -> str:
    """How fast a counter grows."""
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate({series(name, labels)}[$__rate_interval]))"


def quantile(share: float, name: str, by: str = "", labels: str = "") -> str:
    """Of a histogram; its `_sum` is not to be used, as docs/metrics.md says."""
    group = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({share}, {per_second(f'{name}_bucket', group, labels)})"


def quantiles(name: str, by: str = "", labels: str = "") -> tuple[tuple[str, str], ...]:
    """Median, and the slowest of 20 and of 100."""
    legend = f"{{{{{by}}}}} " if by else ""
    shares = (0.5, 0.95, 0.99)
    return tuple((quantile(s, name, by, labels), f"{legend}p{s * 100:.0f}") for s in shares)


def shared(name: str, by: str) -> str:
    """A gauge that every gateway shows alike."""
    return f"max by ({by}) ({series(name)})"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Requests",
        (
            Panel("Requests", "reqps", ((per_second("requests_total", "status"), "{{status}}"),)),
            Panel("Errors", "reqps", ((per_second("errors_total", "code"), "{{code}}"),)),
            Panel(
                "Share of requests that failed here (5xx)",
                "percentunit",
                (
                    (
                        f"{per_second('requests_total', '', FAILED)}"
                        f" / {per_second('requests_total', '')}",
                        "5xx",
                    ),
                ),
            ),
            Panel("Generations, end to end", "s", quantiles("request_seconds", "", GENERATIONS)),
            Panel("Jobs, sent to last image", "s", quantiles("job_seconds", "model")),
            Panel(
                "Streams: first preview, first image",
                "s",
                (
                    (quantile(0.95, "first_preview_seconds", "model"), "{{model}} preview p95"),
                    (quantile(0.95, "first_image_seconds", "model"), "{{model}} image p95"),
                ),
            ),
        ),
    ),
    (
        "Models",
        (
            Panel("Queue wait", "s", quantiles("queue_wait_seconds", "model")),
            Panel("Step time", "s", quantiles("step_seconds", "model")),
            Panel(
                "Samples in a step batch",
                "short",
                (
                    (
                        f"{per_second('steps_total', 'model')}"
                        f" / {per_second('step_batches_total', 'model')}",
                        "{{model}}",
                    ),
                ),
            ),
            Panel(
                "Replicas", "short", ((shared("replicas", "model, state"), "{{model}} {{state}}"),)
            ),
            Panel(
                "GPU-seconds a second",
                "short",
                ((per_second("device_seconds_total", "model"), "{{model}}"),),
            ),
            Panel(
                "Work inside",
                "s",
                ((f"sum by (model) ({series('backlog_seconds')})", "{{model}}"),),
            ),
            Panel(
                "Samples inside",
                "short",
                (
                    (f"sum by (model) ({series('samples_queued')})", "{{model}} queued"),
                    (f"sum by (model) ({series('samples_running')})", "{{model}} running"),
                ),
            ),
            Panel(
                "Stages, p95",
                "s",
                (
                    (quantile(0.95, "prompt_encode_seconds", "model"), "{{model}} text"),
                    (quantile(0.95, "denoise_seconds", "model"), "{{model}} steps"),
                    (quantile(0.95, "decode_seconds", "model"), "{{model}} decode"),
                    (quantile(0.95, "image_encode_seconds", "model"), "{{model}} file"),
                ),
            ),
            Panel(
                "Trouble",
                "short",
                tuple(
                    (per_second(name, "model"), f"{{{{model}}}} {name.removesuffix('_total')}")
                    for name in (
                        "replica_deaths_total",
                        "out_of_memory_total",
                        "recompiles_total",
                        "eager_calls_total",
                        "graph_misses_total",
                    )
                ),
            ),
            Panel(
                "GPU memory peak",
                "bytes",
                ((f"max by (model) ({series('memory_peak_bytes')})", "{{model}}"),),
            ),
        ),
    ),
    (
        "Compute units, ledger and store",
        (
            Panel(
                "Compute units captured a second",
                "short",
                (
                    (per_second("compute_units_captured_total", "model"), "{{model}}"),
                    (per_second("compute_units_refunded_total", ""), "refunded"),
                ),
            ),
            Panel(
                "Images a second", "short", ((per_second("images_total", "model"), "{{model}}"),)
            ),
            Panel("Open holds", "short", ((shared("holds_open", "model"), "{{model}}"),)),
            Panel(
                "Compute units held",
                "short",
                ((shared("compute_units_held", "model"), "{{model}}"),),
            ),
            Panel(
                "Compute units queued",
                "short",
                ((f"sum by (model) ({series('compute_units_queued')})", "{{model}}"),),
            ),
            Panel(
                "Ledger operations, p99",
                "s",
                ((quantile(0.99, "ledger_seconds", "operation"), "{{operation}}"),),
            ),
            Panel(
                "Ledger",
                "short",
                (
                    (f"min({series('ledger_up')})", "up"),
                    (per_second("ledger_outages_total", "operation"), "outages {{operation}}"),
                    (f"max({series('ledger_imbalance_compute_units')})", "imbalance"),
                    (per_second("holds_expired_total", ""), "holds expired"),
                    (per_second("holds_refunded_total", ""), "charges refunded"),
                ),
            ),
            Panel("Storing an image", "s", quantiles("store_put_seconds")),
            Panel(
                "Store failures",
                "short",
                ((per_second("store_failures_total", "operation"), "{{operation}}"),),
            ),
        ),
    ),
)


def render() -> str:
    """The whole file."""
    dashboard = {
        "title": "flux-serve",
        "uid": "flux-serve",
        "tags": ["flux-serve"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": list(_panels()),
    }
    return json.dumps(dashboard, indent=1) + "\n"


def _variables() -> list[dict[str, Any]]:
    values = "label_values(ray_flux_serve_ledger_up, application)"
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {
            "name": "application",
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": values, "refId": "application"},
            "refresh": 2,
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS:
        number += 1
        place = {"x": 0, "y": top, "w": WIDTH * COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": title, "gridPos": place, "collapsed": False}
        top += 1
        for index, panel in enumerate(panels):
            number += 1
            row, column = divmod(index, COLUMNS)
            place = {"x": column * WIDTH, "y": top + row * HEIGHT, "w": WIDTH, "h": HEIGHT}
            yield {"id": number, "gridPos": place, **_panel(panel)}
        top += HEIGHT * -(-len(panels) // COLUMNS)


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "expr": query,
            "legendFormat": legend,
            "datasource": SOURCE,
        }
        for index, (query, legend) in enumerate(panel.queries)
    ]
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
    }


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
