"""The report of a finished test: HTML that needs nothing from outside, PNG, JSON and CSV.

Data flow: `Run` + verdicts -> `write_report` -> files in one folder. The HTML has its plots and
style inside: it opens without a network and names no other host than the target.
"""

import base64
import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jinja2

from serve_app.loadtest.conductor import Run
from serve_app.loadtest.live import seconds
from serve_app.loadtest.outcome import Outcome
from serve_app.loadtest.plots import plots
from serve_app.loadtest.slo import ERRORS, Verdict

SEND_LAG_WARN_S = 0.05
"""Later sending than this at p99: the figures then tell about this machine, too."""


@dataclass(frozen=True)
class Judged:
    """A run, what was promised of it, and what a GPU-hour costs."""

    run: Run
    verdicts: tuple[Verdict, ...]
    gpu_hour_price: float | None


def write_report(judged: Judged, folder: Path) -> Path:
    """Write every file; returns the HTML page."""
    run = judged.run
    images = plots(run, judged.gpu_hour_price)
    for name, data in images.items():
        (folder / f"{name}.png").write_bytes(data)
    (folder / "results.json").write_text(json.dumps(results(judged), indent=2) + "\n", "utf-8")
    write_requests(run.outcomes, folder / "requests.csv")
    if run.samples:
        write_samples(run, folder / "replicas.csv")
    page = folder / "report.html"
    page.write_text(render(judged, images), "utf-8")
    return page


def rows(judged: Judged) -> list[tuple[str, str]]:
    """The figures of the page and of the summary on the terminal, for people."""
    figures, price = judged.run.figures, judged.gpu_hour_price
    found = [
        ("requests", f"{figures.requests:,}"),
        ("delivered", f"{figures.delivered:,}"),
        ("images", f"{figures.images:,}"),
        ("errors", "-" if figures.errors is None else f"{figures.errors:.2%}"),
        *((name, seconds(value)) for name, value in figures.latency.items()),
        ("lasted", f"{figures.lasted_s:.1f} s"),
        ("images a second", f"{figures.images_per_s:.2f}"),
        ("compute units delivered", f"{figures.units:,}"),
        ("sent late by, p99", seconds(figures.send_lag_p99_s)),
    ]
    if figures.replica_seconds is not None:
        found.append(("replica-seconds", f"{figures.replica_seconds:,.1f}"))
    if figures.gpu_seconds:
        found.append(("GPU-seconds", f"{figures.gpu_seconds:,.1f}"))
        cost = None if price is None else figures.cost_per_image(price)
        if cost is not None:
            found.append((f"cost per image at {price:g} a GPU-hour", f"{cost:.6f}"))
    return found


def notes(judged: Judged) -> list[str]:
    """What a reader must know before believing the figures."""
    run, found = judged.run, []
    if run.interrupted:
        found.append(f"Cut short: {len(run.outcomes):,} of {run.planned:,} requests were sent.")
    if not run.samples:
        found.append("Replicas were not watched: no key with the scope 'admin' was given.")
    lag = run.figures.send_lag_p99_s
    if lag is not None and lag > SEND_LAG_WARN_S:
        found.append(
            f"This side sent late (p99 {seconds(lag)}): use more --workers or another machine. "
            "The lateness is inside the latencies."
        )
    return found


def render(judged: Judged, images: dict[str, bytes]) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    run = judged.run
    return environment.get_template("report.html.j2").render(
        plan=run.plan,
        planned=run.planned,
        prices=run.prices,
        interrupted=run.interrupted,
        books=run.books,
        figures=run.figures,
        verdicts=judged.verdicts,
        measured=measured,
        rows=rows(judged),
        notes=notes(judged),
        images={name: base64.b64encode(data).decode() for name, data in images.items()},
    )


def measured(verdict: Verdict) -> str:
    """What was measured, in the objective's unit."""
    if verdict.measured is None:
        return "nothing was measured"
    if verdict.objective.name == ERRORS:
        return f"{verdict.measured:.3%}"
    return seconds(verdict.measured)


def results(judged: Judged) -> dict[str, Any]:
    """Everything but the single requests, for machines. Seconds and compute units."""
    run, figures, books = judged.run, judged.run.figures, judged.run.books
    price = judged.gpu_hour_price
    return {
        "plan": run.plan.model_dump(mode="json", exclude={"trace"}),
        "planned": run.planned,
        "interrupted": run.interrupted,
        "prices": list(run.prices),
        "figures": {
            **asdict(figures),
            "errors": figures.errors,
            "images_per_s": figures.images_per_s,
            "gpu_hour_price": price,
            "cost_per_image": None if price is None else figures.cost_per_image(price),
        },
        "ledger": {
            "standing": books.standing.value,
            "charged_units": books.charged_units,
            "delivered_units": books.delivered_units,
            "surplus_units": books.surplus_units,
            "held_after_units": books.after.held,
            "cut_off_requests": len(books.doubtful_units),
            "cut_off_units": sum(books.doubtful_units),
            "explanation": books.explain(),
        },
        "objectives": [
            {
                "objective": verdict.objective.text,
                "limit": verdict.objective.limit,
                "measured": verdict.measured,
                "met": verdict.met,
            }
            for verdict in judged.verdicts
        ],
        "notes": notes(judged),
    }


def write_requests(outcomes: Sequence[Outcome], path: Path) -> None:
    """One row for each request."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(field.name for field in fields(Outcome)), "latency_s"])
        for outcome in outcomes:
            writer.writerow([*outcome.row(), round(outcome.latency_s, 6)])


def write_samples(run: Run, path: Path) -> None:
    """One row for each model and moment."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        names = [field.name for field in fields(type(run.samples[0].models[0]))]
        writer.writerow(["at_s", *names])
        for sample in run.samples:
            for model in sample.models:
                writer.writerow([round(sample.at_s, 3), *asdict(model).values()])
