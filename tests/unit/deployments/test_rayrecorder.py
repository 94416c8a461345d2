"""What a gateway gathers before it goes to Ray: sums of counters, every value of a histogram."""

from serve_app.deployments.rayrecorder import GatheringRecorder
from serve_app.metrics import HOLDS, JOB_SECONDS, LEDGER_UP, Metric


class Told:
    """A `Recorder` that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, float, dict[str, str]]] = []

    def count(self, metric: Metric, value: float = 1, **labels: str) -> None:
        self.calls.append(("count", metric.name, value, labels))

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        self.calls.append(("observe", metric.name, value, labels))

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        self.calls.append(("set", metric.name, value, labels))


def test_nothing_is_told_before_a_flush_and_nothing_twice() -> None:
    told = Told()
    record = GatheringRecorder(told)
    record.count(HOLDS, model="a")
    assert told.calls == []
    record.flush()
    record.flush()
    assert told.calls == [("count", HOLDS.name, 1, {"model": "a"})]


def test_counters_are_summed_by_their_labels() -> None:
    told = Told()
    record = GatheringRecorder(told)
    for model, value in (("a", 1), ("b", 2), ("a", 5)):
        record.count(HOLDS, value, model=model)
    record.flush()
    assert told.calls == [
        ("count", HOLDS.name, 6, {"model": "a"}),
        ("count", HOLDS.name, 2, {"model": "b"}),
    ]


def test_each_value_of_a_histogram_goes_on_and_of_a_gauge_the_last_one_wins() -> None:
    told = Told()
    record = GatheringRecorder(told)
    record.observe(JOB_SECONDS, 0.5, model="a", mode="json")
    record.observe(JOB_SECONDS, 0.5, model="a", mode="json")
    record.set(LEDGER_UP, 0)
    record.set(LEDGER_UP, 1)
    record.flush()
    observed = ("observe", JOB_SECONDS.name, 0.5, {"model": "a", "mode": "json"})
    assert told.calls[:2] == [observed] * 2
    assert told.calls[-1] == ("set", LEDGER_UP.name, 1, {})
