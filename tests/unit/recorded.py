"""A recorder that remembers, and refuses what Ray would: unknown labels, counting down."""

from collections import defaultdict
from threading import Lock

from serve_app.metrics import Metric

Labels = tuple[str, ...]
"""Label values in the metric's order."""


class Recorded:
    def __init__(self, *fixed: str) -> None:
        """`fixed` are labels that every value of the process has, as a replica's `model`."""
        self._fixed = set(fixed)
        self._lock = Lock()  # engines record from their own threads
        self.counts: dict[Metric, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self.values: dict[Metric, dict[Labels, list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self.gauges: dict[Metric, dict[Labels, float]] = defaultdict(dict)

    def count(self, metric: Metric, value: float = 1, **labels: str) -> None:
        assert metric.kind == "counter"
        assert value >= 0
        with self._lock:
            if value:
                self.counts[metric][self._labels(metric, labels)] += value

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        assert metric.kind == "histogram"
        with self._lock:
            self.values[metric][self._labels(metric, labels)].append(value)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        assert metric.kind == "gauge"
        with self._lock:
            self.gauges[metric][self._labels(metric, labels)] = value

    def _labels(self, metric: Metric, labels: dict[str, str]) -> Labels:
        assert set(labels) == set(metric.labels) - self._fixed, metric.name
        assert all(isinstance(value, str) for value in labels.values())
        return tuple(labels[name] for name in metric.labels if name in labels)
