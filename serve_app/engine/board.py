"""The board: which jobs and samples are inside an engine, and how each job ends.

Data flow: event loop -> `admit` -> samples in order of arrival -> device thread -> `finish` or
`end` -> the job's `deliver`. Everything here may be called from any thread, under one lock that is
never held while the model runs. Must not touch the model, nor import asyncio: `engine.py` does.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from serve_app.engine.job import (
    EngineStats,
    Event,
    Finished,
    GenerationJob,
    JobCancelled,
    Queued,
    preview_steps,
)
from serve_app.engine.meters import Meters, StepClock
from serve_app.engine.parts import PromptEmbedding, Sample
from serve_app.engine.planner import Estimate, Planner
from serve_app.engine.schedule import Candidate
from serve_app.engine.stages import SampleStages
from serve_app.errors import DeadlineExceeded, Overloaded, Unavailable

RETRY_AFTER_MAX_S = 120  # clients ignore a longer Retry-After

Deliver = Callable[[Event | Exception | None], None]
"""Takes a job's events, from any thread; last comes None (all finished) or why it failed."""


@dataclass(eq=False)
class JobRun:
    """A job inside the engine."""

    job: GenerationJob
    deliver: Deliver
    embedding: PromptEmbedding
    admitted_at: float
    samples_left: int
    """Samples that are not finished images yet."""
    came_encoded: bool
    """Whether the text encoders had done their work before the job was admitted."""
    ended: bool = False

    @property
    def late(self) -> bool:
        return time.monotonic() > self.admitted_at + self.job.timeout_s


@dataclass(eq=False)
class SampleRun:
    """One sample of a job, until its pixels leave the device."""

    run: JobRun
    index: int
    sample: Sample | None = None
    """None until its first step: queued samples take no device memory."""
    stages: SampleStages = field(default_factory=SampleStages)
    queued_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    device_s: float = 0.0
    previews: int = 0
    """Previews made so far."""
    decoding: bool = False
    """Whether all steps are done, and the VAE has it or soon will."""
    encoding: Future[None] | None = None
    """Its newest file in the making."""

    @property
    def seed(self) -> int:
        return self.run.job.seeds[self.index]

    @property
    def candidate(self) -> Candidate:
        job = self.run.job
        done = self.sample.steps_done if self.sample else 0
        return _candidate(job, done, id(self.run), self.run.admitted_at)

    @property
    def units_left(self) -> int:
        """Pixels x steps still to do."""
        left = self.candidate
        return left.width * left.height * left.steps_left


@dataclass(eq=False)
class Board:
    """Jobs and samples inside one engine."""

    queue_max_samples: int
    planner: Planner
    """What is known about time; used under the lock only."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    """The lock (it may be taken again by its holder), and the news that something changed."""
    runs: dict[int, JobRun] = field(default_factory=dict)
    """By identity, in order of arrival."""
    samples: list[SampleRun] = field(default_factory=list)
    """Queued and running, in order of arrival; not those already with the image encoders."""
    clock: StepClock = field(default_factory=StepClock)
    busy_s: float = 0.0
    """Device time of step batches and decodes so far."""
    images_done: int = 0
    meters: Meters = field(default_factory=Meters)
    refusal: tuple[type[Unavailable], str] | None = None
    """Why no new job is taken any more: class and message of the error."""

    def admit(
        self,
        job: GenerationJob,
        deliver: Deliver,
        embedding: PromptEmbedding | None,
        stages: list[SampleStages] | None = None,
    ) -> tuple[JobRun, Queued]:
        """Queue a job; return it and what to tell its owner. Its samples are added to `stages`.

        Raises:
            Draining: the engine is closing. Unavailable: it is dead.
            Overloaded: the queue is full, or the job would not be finished in time.
            DeadlineExceeded: not even alone would it be finished in time.
        """
        count = len(job.seeds)
        with self.changed:
            self.refuse_when_closed()
            ahead = self._inside()
            expected = self._refuse_hopeless(job, ahead)
            embedding = embedding or PromptEmbedding(job.prompt)
            now = time.monotonic()
            run = JobRun(job, deliver, embedding, now, count, not embedding.pending)
            self.runs[id(run)] = run
            samples = [
                SampleRun(run, index, stages=SampleStages(index, now)) for index in range(count)
            ]
            self.samples.extend(samples)
            if stages is not None:
                stages.extend(sample.stages for sample in samples)
            self.planner.shares.enter(id(run), job.account)
            self.changed.notify_all()
        return run, Queued(job.job_id, ahead, expected.finish_s if expected else None)

    def refuse_when_closed(self) -> None:
        """Raise once nobody would ever take a new job from the board."""
        if self.refusal:
            kind, message = self.refusal
            raise kind(message)

    def send(self, run: JobRun, event: Event) -> None:
        """Deliver an event of a job that has not ended."""
        with self.changed:
            if not run.ended:
                self._deliver(run, event)

    def finish(self, run: JobRun, finished: Finished) -> None:
        """Deliver an image; the last one ends the job."""
        with self.changed:
            if run.ended:
                return
            run.samples_left -= 1
            self.images_done += 1
            self.meters.finished((run.job.height, run.job.width), finished.timings)
            self._deliver(run, finished)
            if run.samples_left == 0:
                self.end(run, None)

    def end(self, run: JobRun, outcome: Exception | None) -> None:
        """End a job, once: its samples leave the queue now, the device at its next step."""
        with self.changed:
            if run.ended:
                return
            run.ended = True
            del self.runs[id(run)]
            self.planner.shares.leave(id(run))
            self.samples = [sample for sample in self.samples if sample.run is not run]
            self._deliver(run, outcome)
            self.changed.notify_all()

    def end_all(self, outcome: Exception) -> None:
        """End every job."""
        with self.changed:
            for run in list(self.runs.values()):
                self.end(run, outcome)

    def end_late(self) -> None:
        """End the jobs whose deadline has passed."""
        with self.changed:
            for run in [run for run in self.runs.values() if run.late]:
                self.end(run, DeadlineExceeded("The images were not finished in time."))

    def stepped(self, batch: Sequence[SampleRun], seconds: float) -> None:
        """Learn from a step batch."""
        with self.changed:
            self.clock.count(len(batch), seconds)
            self.busy_s += seconds
            self.meters.stepped(batch[0].candidate.shape, len(batch), seconds)
            self.planner.stepped([sample.candidate for sample in batch], seconds)

    def decoded(self, sample: SampleRun, seconds: float) -> None:
        """Learn from a decode, of an image or a preview."""
        with self.changed:
            self.busy_s += seconds
            self.planner.decoded(sample.candidate, seconds)

    def cancel(self, job_id: str) -> bool:
        """End the jobs of that id; False when there is none."""
        with self.changed:
            found = [run for run in self.runs.values() if run.job.job_id == job_id]
            for run in found:
                self.end(run, JobCancelled("The job was cancelled."))
        return bool(found)

    def stats(self) -> EngineStats:
        """A consistent snapshot."""
        with self.changed:
            queued = sum(1 for sample in self.samples if sample.sample is None)
            return EngineStats(
                samples_queued=queued,
                samples_running=self._inside() - queued,
                compute_units_queued=sum(sample.units_left for sample in self.samples),
                steps_done=self.clock.steps,
                step_batches_done=self.clock.batches,
                step_time_s=self.clock.batch_s,
                busy_s=self.busy_s,
                backlog_s=self.planner.backlog_s([sample.candidate for sample in self.samples]),
                images_done=self.images_done,
                sizes=self.meters.stats(sample.candidate for sample in self.samples),
            )

    def _inside(self) -> int:
        return sum(run.samples_left for run in self.runs.values())

    def estimate(self, job: GenerationJob) -> Estimate | None:
        """When a job would be done, were it admitted now; None before anything was measured."""
        with self.changed:
            if not self.planner.costs.measured:
                return None
            one = _candidate(job, 0, -1, time.monotonic())
            inside = [sample.candidate for sample in self.samples]
            return self.planner.estimate(inside, [one] * len(job.seeds))

    def cost_s(self, job: GenerationJob) -> float | None:
        """Device time of a job alone; None before anything was measured."""
        with self.changed:
            one = Candidate(job.width, job.height, job.steps)
            return self.planner.backlog_s([one] * len(job.seeds)) or None

    def _refuse_hopeless(self, job: GenerationJob, ahead: int) -> Estimate | None:
        """Refuse what finds no room, or would only be thrown away at its deadline.

        Returns when the job should be done, as far as that is known.
        """
        expected = self.estimate(job)
        wait_s = round(expected.ahead_s) if expected else 0
        retry_after_s = max(1, min(RETRY_AFTER_MAX_S, wait_s))
        if ahead + len(job.seeds) > self.queue_max_samples:
            raise Overloaded("The model's queue is full. Try again later.").after(retry_after_s)
        if expected and job.timeout_s > 0 and expected.finish_s > job.timeout_s:
            if expected.own_s > job.timeout_s:
                raise DeadlineExceeded("The images take longer than a request may.")
            message = "The images could not be finished in time. Try again later."
            raise Overloaded(message).after(retry_after_s)
        return expected

    def _deliver(self, run: JobRun, item: Event | Exception | None) -> None:
        try:
            run.deliver(item)
        except RuntimeError:  # the event loop of the consumer is closed: nobody will come back
            self.end(run, None)


def _candidate(job: GenerationJob, steps_done: int, number: int, arrived_s: float) -> Candidate:
    """A sample of a job as the schedule sees it."""
    previews = sum(step > steps_done for step in preview_steps(job.steps, job.previews))
    return Candidate(
        job.width,
        job.height,
        job.steps - steps_done,
        job.account,
        number,
        arrived_s,
        decodes=1 + previews,
    )
