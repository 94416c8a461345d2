"""The report: complete, self-contained, and nothing in it runs."""

import csv
import json
import re
from pathlib import Path

import pytest
from load_kit import outcome, run, sample

from serve_app.loadtest.report import Judged, write_report
from serve_app.loadtest.slo import judge, parse_slos

OUTCOMES = [
    *(outcome(i, 0.5 + i / 10) for i in range(20)),
    outcome(20, code="server_is_overloaded", status=503, retry_after_s=9.0),
    outcome(21, 3.0, code="<script>alert(1)</script>", status=500),
]
SAMPLES = [sample(at_s, running=1 + at_s // 10) for at_s in range(0, 26)]
PLOTS = {"arrivals", "latency", "status", "replicas", "gpu_seconds", "cost"}


@pytest.fixture(scope="module")
def judged() -> Judged:
    made = run(OUTCOMES, SAMPLES)
    verdicts = judge(parse_slos("p95=1s,errors=50%"), made.figures.objectives())
    return Judged(made, verdicts, gpu_hour_price=3.6)


@pytest.fixture(scope="module")
def written(judged: Judged, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report, written once: its plots take half a second."""
    return write_report(judged, tmp_path_factory.mktemp("report"))


def test_the_page_needs_nothing_from_outside(written: Path) -> None:
    page = written.read_text()
    assert "<script" not in page  # the code of a reply is shown, not run
    assert "&lt;script&gt;" in page
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert len(sources) == len(PLOTS)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"@import|url\(", page)


def test_the_page_says_what_was_found(written: Path) -> None:
    page = written.read_text()
    for text in ("charged 2,000 CU = delivered 2,000 CU", "missed", "met", "9: 1", "9.09%"):
        assert text in page, text


def test_every_plot_is_a_picture(written: Path) -> None:
    found = {path.stem: path.read_bytes() for path in written.parent.glob("*.png")}
    assert set(found) == PLOTS
    assert all(data.startswith(b"\x89PNG") for data in found.values())


def test_machines_get_the_same_as_people(written: Path) -> None:
    folder = written.parent
    found = json.loads((folder / "results.json").read_text())
    assert found["figures"]["delivered"] == 20
    assert found["figures"]["cost_per_image"] == pytest.approx(
        found["figures"]["gpu_seconds"] * 0.001 / 20
    )
    assert [one["met"] for one in found["objectives"]] == [False, True]
    assert found["ledger"]["standing"] == "equal"
    with (folder / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["latency_s"]) for row in rows[:2]] == [0.5, 0.6]
    assert len(rows) == len(OUTCOMES)
    with (folder / "replicas.csv").open() as file:
        assert [row["running"] for row in csv.DictReader(file)][::10] == ["1", "2", "3"]


def test_a_run_that_watched_no_replicas_says_so_and_has_no_such_plot(tmp_path: Path) -> None:
    page = write_report(Judged(run(OUTCOMES, []), (), 3.6), tmp_path).read_text()
    assert "Replicas were not watched" in page
    assert {path.stem for path in tmp_path.glob("*.png")} == {"arrivals", "latency", "status"}
    assert "cost per image" not in page


def test_a_run_without_a_single_reply_still_has_a_report(tmp_path: Path) -> None:
    page = write_report(
        Judged(run([], []), judge(parse_slos("p95=1s"), {"p95": None}), None), tmp_path
    )
    assert "nothing was measured" in page.read_text()
