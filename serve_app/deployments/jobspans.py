"""The spans of a job on a replica: one for its stay, and one for each stage of each sample.

Data flow: the job's `trace` -> `draw`; `SampleStages` and the prompt's pass, stamped by the engine
-> its children, all made when the job is over: the device thread is not kept from its steps, and a
job that failed shows how far it came.
"""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from serve_app.engine.job import GenerationJob
from serve_app.engine.parts import PromptEmbedding
from serve_app.engine.stages import SampleStages
from serve_app.observability import error_code
from serve_app.tracing import (
    DECODE,
    DRAW,
    ENCODE,
    FILE,
    NO_SPAN,
    QUEUE,
    STEPS,
    Info,
    Tracer,
    Value,
)

Stage = tuple[Info, float, float | None, dict[str, Value]]
"""Kind, begin, end (None: it was under way when the job ended), attributes."""


class JobSpans:
    """`with JobSpans(...) as spans:` around a job; give its `stages` to the engine."""

    def __init__(self, tracer: Tracer, job: GenerationJob, model_id: str) -> None:
        self._job = job
        self._span = tracer.resume(
            job.trace,
            DRAW,
            **job.ids,
            model=model_id,
            images=len(job.seeds),
            size=_size(job),
            steps=job.steps,
        )
        self.stages: list[SampleStages] = []
        self.embedding: PromptEmbedding | None = None
        """Of its prompt, once it was asked for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._span is NO_SPAN:
            return
        now, code = time.monotonic(), "cancelled"
        drawn = [sample for sample in self.stages if sample.filed_at is not None]
        if error is not None and len(drawn) < len(self._job.seeds):
            code = error_code(error)
            self._span.fail(code)
        if self.embedding is not None and self.embedding.passed is not None:
            began, ended, prompts = self.embedding.passed
            self._span.past(ENCODE, began, ended, prompts=prompts)
        for sample in self.stages:
            for info, began, over, attributes in _stages(self._job, sample):
                if over is None:
                    over, attributes["error"] = now, code
                self._span.past(info, began, over, image=sample.index, **attributes)
        self._span.end()


def _stages(job: GenerationJob, sample: SampleStages) -> Iterator[Stage]:
    """What a sample went through; the last one may not be over."""
    yield QUEUE, sample.admitted_at, sample.started_at, {}
    if sample.started_at is None or sample.stepped_at is None:
        return
    stepped_at = sample.stepped_at if sample.steps >= job.steps else None
    attributes: dict[str, Value] = {
        "steps": sample.steps,
        "size": _size(job),
        "batch": sample.batched / sample.steps,
        "device_s": sample.device_s,
        "previews": sample.previews,
    }
    yield STEPS, sample.started_at, stepped_at, attributes
    if stepped_at is None:
        return
    yield DECODE, stepped_at, sample.decoded_at, {}
    if sample.decoded_at is not None:
        yield FILE, sample.decoded_at, sample.filed_at, {"bytes": sample.file_bytes}


def _size(job: GenerationJob) -> str:
    return f"{job.width}x{job.height}"
