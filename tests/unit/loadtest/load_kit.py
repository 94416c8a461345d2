"""Plans, outcomes and runs for the tests of load tests."""

from typing import Any

from serve_app.loadtest.books import Balance, reconcile
from serve_app.loadtest.conductor import Run
from serve_app.loadtest.figures import summarise
from serve_app.loadtest.mix import Mix
from serve_app.loadtest.outcome import Outcome
from serve_app.loadtest.plan import Plan
from serve_app.loadtest.target import ModelSample, Sample

PRICE = 100


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "run_id": "load-1",
        "target": "http://127.0.0.1:1",
        "profile": "ramp",
        "duration_s": 60.0,
        "peak_rps": 10.0,
        "seed": 1,
        "timeout_s": 30.0,
        "mix": Mix(),
        "trace": None,
    }
    return Plan(**{**fields, **changes})


def outcome(index: int = 0, latency_s: float = 1.0, **changes: Any) -> Outcome:
    at_s = float(changes.pop("at_s", index))
    code = changes.pop("code", "200")
    fields: dict[str, Any] = {
        "index": index,
        "entry": 0,
        "scheduled_s": at_s,
        "sent_s": at_s,
        "done_s": at_s + latency_s,
        "status": 200 if code == "200" else 0,
        "code": code,
        "units": PRICE if code == "200" else 0,
        "images": 1 if code == "200" else 0,
        "retry_after_s": None,
    }
    return Outcome(**{**fields, **changes})


def sample(at_s: float, running: int, starting: int = 0, num_gpus: float = 1.0) -> Sample:
    model = ModelSample(
        id="flux-mini",
        running=running,
        starting=starting,
        stopping=0,
        target=running + starting,
        num_gpus=num_gpus,
        open_holds=running,
        held_units=running * PRICE,
    )
    return Sample(at_s, (model,))


def run(outcomes: list[Outcome], samples: list[Sample], charged: int | None = None) -> Run:
    delivered = sum(one.units for one in outcomes)
    before, after = (
        Balance(0, 0, 10**9),
        Balance(delivered if charged is None else charged, 0, 10**9),
    )
    return Run(
        plan=plan(),
        prices=(PRICE,),
        outcomes=tuple(outcomes),
        samples=tuple(samples),
        figures=summarise(outcomes, samples),
        books=reconcile(before, after, outcomes, [PRICE]),
        planned=len(outcomes),
        interrupted=False,
    )
