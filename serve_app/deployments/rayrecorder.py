"""RayRecorder: metrics into Ray's, which sums them up in this process and sends them on.

Data flow: `count`, `observe`, `set` from any thread -> gathered for a second, in a gateway -> Ray's
C++ metrics (1.7 microseconds each, measured alone; ten in a busy gateway) -> every
`metrics_report_interval_ms` to the node's agent -> Prometheus. Serve adds the labels `application`,
`deployment` and `replica`.
"""

from collections.abc import Iterable
from typing import Any

from ray.serve import metrics as serve_metrics

from serve_app.metrics import ALL, Metric, Recorder


class RayRecorder:
    """A `Recorder` inside a Serve replica."""

    def __init__(self, metrics: Iterable[Metric], **labels: str) -> None:
        """`labels` are those that every value of this process has."""
        self._made: dict[Metric, Any] = {metric: _make(metric, labels) for metric in metrics}

    def count(self, metric: Metric, value: float = 1, **labels: str) -> None:
        if value > 0:  # Ray takes nothing else
            self._made[metric].inc(value, labels)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self._made[metric].observe(value, labels)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self._made[metric].set(value, labels)


class GatheringRecorder:
    """A `Recorder` before another one: what comes costs next to nothing, and goes on in `flush`.

    A request counts some ten things, each of which costs Ray some ten microseconds of the event
    loop. Most are counters, of which only the sum goes on.
    """

    def __init__(self, record: Recorder) -> None:
        self._record = record
        self._gathered: list[tuple[str, Metric, float, dict[str, str]]] = []

    def count(self, metric: Metric, value: float = 1, **labels: str) -> None:
        self._gathered.append(("count", metric, value, labels))

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self._gathered.append(("observe", metric, value, labels))

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self._gathered.append(("set", metric, value, labels))

    def flush(self) -> None:
        """Send on what has come; no two at a time."""
        gathered, self._gathered = self._gathered, []
        sums: dict[tuple[Metric, tuple[tuple[str, str], ...]], float] = {}
        for kind, metric, value, labels in gathered:
            if kind == "observe":
                self._record.observe(metric, value, **labels)
            elif kind == "set":
                self._record.set(metric, value, **labels)
            else:
                key = metric, tuple(sorted(labels.items()))
                sums[key] = sums.get(key, 0) + value
        for (metric, pairs), value in sums.items():
            self._record.count(metric, value, **dict(pairs))


def _make(metric: Metric, labels: dict[str, str]) -> Any:
    common = (metric.full_name, metric.help)
    made: Any
    if metric.kind == "histogram":
        made = serve_metrics.Histogram(*common, list(metric.buckets), metric.labels)
    elif metric.kind == "gauge":
        made = serve_metrics.Gauge(*common, metric.labels)
    else:
        made = serve_metrics.Counter(*common, metric.labels)
    made.set_default_tags(dict(labels))  # Serve adds its own here, so also without any
    return made


def gateway_recorder() -> GatheringRecorder:
    """What a gateway records with; nothing gets to Ray before `flush`."""
    return GatheringRecorder(RayRecorder(metric for metric in ALL if metric.source == "gateway"))


def replica_recorder(model_id: str) -> RayRecorder:
    """What a model's replica records with."""
    return RayRecorder((metric for metric in ALL if metric.source == "replica"), model=model_id)
