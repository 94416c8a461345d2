"""Plots of a finished test, as PNG bytes: matplotlib without a display and without global state.

Data flow: `Run` -> `plots` -> name -> PNG. Every time axis is in seconds of the test.
"""

import io
from collections.abc import Callable, Iterable
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from serve_app.loadtest.conductor import Run
from serve_app.loadtest.figures import Window, cumulative, windows
from serve_app.loadtest.outcome import DELIVERED

WIDTH_IN, HEIGHT_IN, DPI = 8.0, 3.2, 110
RATE_POINTS = 200
LATENCY_COLOURS = {"p50": "#4477aa", "p95": "#ee7733", "p99": "#cc3311"}
DELIVERED_COLOUR = "#228833"


def plots(run: Run, gpu_hour_price: float | None) -> dict[str, bytes]:
    """Every plot that the run has data for: name -> PNG."""
    parts = windows(run.outcomes, run.figures.lasted_s)
    rate, end_s = "requests a second", max(run.figures.lasted_s, 1.0)
    found = {
        "arrivals": _plot(end_s, "Arrivals", rate, lambda axes: _arrivals(axes, run, parts)),
        "latency": _plot(end_s, "Latency", "s", lambda axes: _latency(axes, parts)),
        "status": _plot(end_s, "Replies by status", rate, lambda axes: _status(axes, parts)),
    }
    if len(run.samples) < 2:
        return found
    found["replicas"] = _plot(end_s, "Replicas", "replicas", lambda axes: _replicas(axes, run))
    if run.figures.gpu_seconds:
        found["gpu_seconds"] = _plot(end_s, "GPU time", "s", lambda axes: _gpu_seconds(axes, run))
        if gpu_hour_price is not None:
            price = gpu_hour_price
            title = f"Cost per image so far, at {price:g} a GPU-hour"
            found["cost"] = _plot(end_s, title, "per image", lambda axes: _cost(axes, run, price))
    return found


def _plot(end_s: float, title: str, unit: str, draw: Callable[[Any], None]) -> bytes:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel("s")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    draw(axes)
    axes.set_xlim(0, end_s)
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", fontsize="small")
    out = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(out, format="png")
    return out.getvalue()


def _middles(parts: Iterable[Window]) -> list[float]:
    return [part.start_s + part.length_s / 2 for part in parts]


def _arrivals(axes: Any, run: Run, parts: list[Window]) -> None:
    middles = _middles(parts)
    axes.plot(middles, [part.scheduled / part.length_s for part in parts], label="scheduled")
    axes.plot(middles, [part.finished / part.length_s for part in parts], label="answered")
    rate = run.plan.rate
    if rate:
        corners = [point for one in rate for point in _ends(one)]
        axes.plot(*zip(*corners, strict=True), "--", color="grey", label="planned rate")


def _ends(segment: Any) -> list[tuple[float, float]]:
    return [(segment.start_s, segment.start_rps), (segment.end_s, segment.end_rps)]


def _latency(axes: Any, parts: list[Window]) -> None:
    for name, colour in LATENCY_COLOURS.items():
        measured = [part for part in parts if part.latency[name] is not None]
        values = [part.latency[name] for part in measured]
        axes.plot(_middles(measured), values, ".-", color=colour, label=name)


def _status(axes: Any, parts: list[Window]) -> None:
    codes = sorted({code for part in parts for code in part.codes}, key=lambda c: (c != "200", c))
    bottom = [0.0] * len(parts)
    for code in codes:
        heights = [part.codes.get(code, 0) / part.length_s for part in parts]
        colour = DELIVERED_COLOUR if code == DELIVERED else None
        axes.bar(
            _middles(parts), heights, parts[0].length_s, bottom=bottom, label=code, color=colour
        )
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]


def _replicas(axes: Any, run: Run) -> None:
    times = [sample.at_s for sample in run.samples]
    work = axes.twinx()
    work.set_ylabel("held megaCU")
    for number, model in enumerate(run.samples[0].models):
        models = [sample.models[number] for sample in run.samples]
        prefix = f"{model.id} " if len(run.samples[0].models) > 1 else ""
        running = [one.running for one in models]
        wanted = [float("nan") if one.target is None else one.target for one in models]
        axes.step(times, running, where="post", label=f"{prefix}running")
        axes.step(times, wanted, "--", where="post", label=f"{prefix}target")
        held = [one.held_units / 1e6 for one in models]
        work.fill_between(times, held, alpha=0.25, color=f"C{number + 2}")
        axes.fill_between([], [], alpha=0.25, color=f"C{number + 2}", label=f"{prefix}held CU")
    work.set_ylim(bottom=0)


def _gpu_seconds(axes: Any, run: Run) -> None:
    points = cumulative([(sample.at_s, sample.gpus) for sample in run.samples])
    axes.plot(*zip(*points, strict=True))


def _cost(axes: Any, run: Run, gpu_hour_price: float) -> None:
    done = sorted((one.done_s, one.images) for one in run.outcomes if one.delivered)
    points, images, position = [], 0, 0
    for at_s, spent in cumulative([(sample.at_s, sample.gpus) for sample in run.samples]):
        while position < len(done) and done[position][0] <= at_s:
            images += done[position][1]
            position += 1
        if images:
            points.append((at_s, spent / 3600 * gpu_hour_price / images))
    if points:
        axes.plot(*zip(*points, strict=True))
