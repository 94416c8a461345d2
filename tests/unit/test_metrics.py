"""The table of metrics is one that Prometheus and Ray take."""

import ast
import re
from pathlib import Path

import pytest

from serve_app import metrics as table
from serve_app.metrics import ALL, Metric

RESERVED = {"application", "deployment", "replica", "le", "quantile", "instance", "job"}
SERVED = Path(__file__).parents[2] / "serve_app"
each_metric = pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)


def test_no_two_metrics_share_a_name() -> None:
    assert len({metric.name for metric in ALL}) == len(ALL) > 30


@each_metric
def test_its_name_follows_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.exported == f"ray_flux_serve_{metric.name}"
    assert metric.help.endswith(".")


@each_metric
def test_its_labels_are_its_own_and_few(metric: Metric) -> None:
    assert not RESERVED & set(metric.labels)
    assert len(metric.labels) <= 3
    assert ("account" in metric.labels) == metric.name.startswith("account_")


@each_metric
def test_only_histograms_have_buckets_which_rise(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert all(bound > 0 for bound in metric.buckets)  # Ray takes nothing else


def test_each_of_them_is_recorded_somewhere() -> None:
    """A metric that nothing records would be a promise of the documentation only."""
    used = set()
    for path in SERVED.rglob("*.py"):
        if path.name != "metrics.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert {name for name, value in vars(table).items() if type(value) is Metric} <= used
