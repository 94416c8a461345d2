"""Objectives are parsed strictly and judged strictly."""

import pytest

from serve_app.errors import ConfigError
from serve_app.loadtest.quantities import parse_duration
from serve_app.loadtest.slo import judge, parse_slos

MEASURED = {"p50": 1.0, "p90": 1.5, "p95": 2.0, "p99": None, "max": 9.0, "mean": 1.1, "errors": 0.0}


def test_objectives_are_read_with_their_units() -> None:
    found = parse_slos("p95=2s, p50=500ms,max=1.5m,errors=0.1%")
    assert [(one.name, one.limit) for one in found] == [
        ("p95", 2.0),
        ("p50", 0.5),
        ("max", 90.0),
        ("errors", 0.001),
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("", "p95", "p95=2", "p95=", "p95=-1s", "p95=0s", "p95=2 s", "p97=2s", "errors=0.1"),
        *("errors=101%", "errors=1s", "p95=2s,", "p95=2s,p95=3s", "p95=infs", "p95=nans"),
        *("P95=2s", "p95=1e3s"),
    ],
)
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--slo"):
        parse_slos(text)


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("p95=2s", True),  # the limit itself is allowed
        ("p95=1999ms", False),
        ("errors=0%", True),
        ("p99=1h", False),  # nothing was measured, so nothing was kept
    ],
)
def test_an_objective_is_met_up_to_its_limit(text: str, met: bool) -> None:
    (verdict,) = judge(parse_slos(text), MEASURED)
    assert verdict.met is met


@pytest.mark.parametrize("text", ["", "5", "5 s", "0s", "-1s", "5d", "s", "1.s", "inf"])
def test_a_duration_needs_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(ConfigError, match="--duration"):
        parse_duration(text, "--duration")
