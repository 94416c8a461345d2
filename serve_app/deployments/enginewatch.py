"""What an engine counts by itself, as metrics: every few seconds, by how much it has grown.

Data flow: `engine.stats()` -> `EngineWatch.report` -> `Recorder`. Histograms do not come this way:
the engine records those as things happen (`engine.meters`).
"""

from collections.abc import Callable

from serve_app.engine.job import EngineStats
from serve_app.metrics import (
    BACKLOG_SECONDS,
    DECODES_ALONE,
    DEVICE_SECONDS,
    EAGER_CALLS,
    GRAPH_MISSES,
    GRAPH_REPLAYS,
    IMAGES_DRAWN,
    MEMORY_PEAK_BYTES,
    OUT_OF_MEMORY,
    RECOMPILES,
    SAMPLES_QUEUED,
    SAMPLES_RUNNING,
    STEP_BATCHES,
    STEPS,
    UNITS_QUEUED,
    Metric,
    Recorder,
)

INTERVAL_S = 2.0
"""Well under what Prometheus scrapes at, so that gauges are fresh."""

COUNTERS: tuple[tuple[Metric, Callable[[EngineStats], float]], ...] = (
    (STEPS, lambda stats: stats.steps_done),
    (STEP_BATCHES, lambda stats: stats.step_batches_done),
    (IMAGES_DRAWN, lambda stats: stats.images_done),
    (DEVICE_SECONDS, lambda stats: stats.busy_s),
    (RECOMPILES, lambda stats: stats.recompiles),
    (EAGER_CALLS, lambda stats: stats.eager_calls),
    (GRAPH_REPLAYS, lambda stats: stats.graph_replays),
    (GRAPH_MISSES, lambda stats: stats.graph_misses),
    (DECODES_ALONE, lambda stats: stats.decodes_alone),
    (OUT_OF_MEMORY, lambda stats: stats.out_of_memory),
)


class EngineWatch:
    """Of one replica. What the warm-up did is not counted."""

    def __init__(self, record: Recorder, reference_steps: int, stats: EngineStats) -> None:
        """`stats` are those at the end of the warm-up."""
        self._record = record
        self._reference_steps = reference_steps
        self._before = stats

    def report(self, stats: EngineStats) -> None:
        """Record how far the counters have come, and what is inside now."""
        before, self._before = self._before, stats
        for metric, value in COUNTERS:
            self._record.count(metric, value(stats) - value(before))
        units = stats.compute_units_queued / self._reference_steps  # pixels x steps before
        self._record.set(SAMPLES_QUEUED, stats.samples_queued)
        self._record.set(SAMPLES_RUNNING, stats.samples_running)
        self._record.set(UNITS_QUEUED, units)
        self._record.set(BACKLOG_SECONDS, stats.backlog_s)
        self._record.set(MEMORY_PEAK_BYTES, stats.memory_peak_bytes)
