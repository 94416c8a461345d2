"""The dashboard and the alerts ask for series that exist, with labels that they have."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from serve_app.metrics import ALL, EXPORT_PREFIX, PREFIX
from tests.required import require
from tools.render_dashboard import PAGE, render

ROOT = Path(__file__).parents[1]
ALERTS = yaml.safe_load((ROOT / "monitoring" / "alerts.yaml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
CASES = ROOT / "monitoring" / "alerts_test.yaml"
DASHBOARD = json.loads(PAGE.read_text(encoding="utf-8"))
SERVES_LABELS = {"application", "deployment", "replica"}
OURS = EXPORT_PREFIX + PREFIX


def labels_of(series: str) -> set[str]:
    """Of a series as it is exported; fails for one that nobody exports, and for every `_sum`."""
    for metric in ALL:
        if metric.kind == "histogram" and series == f"{metric.exported}_bucket":
            return {*metric.labels, *SERVES_LABELS, "le"}
        if metric.kind != "histogram" and series == metric.exported:
            return {*metric.labels, *SERVES_LABELS}
    raise AssertionError(f"no such series: {series}")


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "5m").replace("$application", ".*")
            yield f"{panel['title']} {target['refId']}", query


def nodes(expression: Any) -> Iterator[Any]:
    """An expression of PromQL and all that is in it."""
    yield expression
    if isinstance(expression, promql_parser.AggregateExpr | promql_parser.ParenExpr):
        yield from nodes(expression.expr)
    elif isinstance(expression, promql_parser.BinaryExpr):
        yield from nodes(expression.lhs)
        yield from nodes(expression.rhs)
    elif isinstance(expression, promql_parser.Call):
        for argument in expression.args:
            yield from nodes(argument)
    elif isinstance(expression, promql_parser.MatrixSelector):
        yield from nodes(expression.vector_selector)


def selectors(expression: Any) -> Iterator[tuple[str, set[str]]]:
    for node in nodes(expression):
        if isinstance(node, promql_parser.VectorSelector):
            yield node.name, {matcher.name for matcher in node.matchers.matchers}


@pytest.mark.parametrize(("name", "query"), list(expressions()), ids=lambda text: text[:40])
def test_a_query_asks_for_series_and_labels_that_exist(name: str, query: str) -> None:
    parsed = promql_parser.parse(query)
    found = list(selectors(parsed))
    assert found
    # The walk above has seen every series that the text names.
    assert len(found) == query.count(OURS)
    for series, matched in found:
        assert matched <= labels_of(series)
    known = set.intersection(*(labels_of(series) for series, _ in found))
    for node in nodes(parsed):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            assert set(node.modifier.labels) <= known


def test_the_dashboard_is_made_from_its_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m tools.render_dashboard"


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & mine
        cells |= mine
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "action"}
    kept = re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])
    grouped = re.search(r"by \(([\w, ]+)\)", rule["expr"])
    assert set(kept) <= set(grouped[1].split(", ") if grouped else ())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_has_a_case_where_it_fires_and_one_where_it_does_not(rule: dict[str, Any]) -> None:
    cases = yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]
    asked = [case for one in cases for case in one["alert_rule_test"]]
    fires = {bool(case["exp_alerts"]) for case in asked if case["alertname"] == rule["alert"]}
    assert fires == {True, False}


def test_prometheus_itself_finds_that_each_alert_fires_when_it_should() -> None:
    promtool = shutil.which("promtool")
    require(promtool is not None, "promtool is not installed: it is in Debian's prometheus")
    done = subprocess.run(
        [promtool, "test", "rules", str(CASES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_but_those_for_the_curious_is_on_the_dashboard() -> None:
    shown = json.dumps(DASHBOARD)
    absent = {metric.name for metric in ALL if metric.exported not in shown}
    assert absent == {
        "idempotent_replays_total",
        "jobs_total",
        "account_compute_units_captured_total",
        "holds_total",
        "holds_ended_total",
        "images_swept_total",
        "step_batch_occupancy",
        "images_drawn_total",
        "graph_replays_total",
        "decodes_alone_total",
    }
