"""The device thread: the only one that touches the model, from prompt to pixels, step by step.

Data flow: samples on the board -> each turn: the prompts that wait for the text encoders, in one
pass; one step of the batch that `schedule.py` picks; pixels of finished samples -> pool of image
encoders -> back to the board. Must not import asyncio: the board takes its events to their loop.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from serve_app.engine.board import Board, SampleRun
from serve_app.engine.decoding import FAILED, Decoding
from serve_app.engine.images import Images
from serve_app.engine.job import Step, preview_steps
from serve_app.engine.parts import Encoder, PromptEmbedding, Sampler
from serve_app.engine.prompts import PromptQueue
from serve_app.engine.retry import Retrying
from serve_app.engine.schedule import Shape
from serve_app.engine.watchdog import Watchdog
from serve_app.errors import AppError, Draining, GenerationFailed, Unavailable

if TYPE_CHECKING:
    from serve_app.engine.lane import Lane  # loads torch

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW_MAX = 5  # then the device itself is taken for broken: CUDA faults never heal
JOIN_S = 10.0  # how long `close` waits for the step in progress before it leaves the thread behind

CLOSING = "The server is shutting down."
DEAD = "The model is not running."


class DeviceThread:
    """Runs the samples on a board until it is closed."""

    def __init__(
        self,
        board: Board,
        encoder: Encoder,
        sampler: Sampler,
        watchdog: Watchdog,
        images: Images,
        prepare_thread: Callable[[], None],
        lane: "Lane | None" = None,
        fits_beside: Callable[[Shape], bool] = lambda _: False,
    ) -> None:
        """With a `lane`, sizes that `fits_beside` tells are decoded beside the steps."""
        self._board = board
        self._sampler = sampler
        self.retrying = Retrying(sampler, self._limit_batches, lambda: self.decoding.wait_idle())
        self._watchdog = watchdog
        self.decoding = Decoding(board, sampler, self.retrying, images, watchdog, lane, fits_beside)
        self._lane = lane
        self._prepare_thread = prepare_thread
        self._prompts = PromptQueue(board, encoder, watchdog)
        self._errands: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._failures_in_a_row = 0
        self._thread = threading.Thread(target=self._main, name="flux-device", daemon=True)
        self._thread.start()
        if lane is not None:
            lane.start(died=self._fail_for_good)

    def encode(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """Take prompts to encode before the next step; raises as `PromptQueue.ask`. Any thread."""
        return self._prompts.ask(prompts)

    def run_between_steps(self, errand: Callable[[], None]) -> Future[None]:
        """Have the device thread do something between two steps. Any thread."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                errand()
            except Exception as exc:
                logger.exception("an errand between two steps failed")
                done.set_exception(exc)
            else:
                done.set_result(None)

        with self._board.changed:
            self._board.refuse_when_closed()
            self._errands.append(run)
            self._board.changed.notify_all()
        return done

    def trouble(self) -> str | None:
        """Say why the device cannot be relied on, or None. Any thread."""
        if not self._thread.is_alive():
            return "the device thread is dead"
        if self._failures_in_a_row >= FAILURES_IN_A_ROW_MAX:
            return f"the last {self._failures_in_a_row} step batches failed"
        return self._watchdog.overdue() or (self._lane.trouble() if self._lane else None)

    def close(self, drain_s: float) -> None:
        """Refuse new jobs, finish the others for `drain_s`, fail the rest, end the thread."""
        board = self._board
        with board.changed:
            board.refusal = board.refusal or (Draining, CLOSING)
            board.changed.wait_for(lambda: not board.runs, timeout=drain_s)
            self._stopping = True
            self._fail_everything(Draining(CLOSING))
            board.changed.notify_all()
        if self._lane is not None:
            self._lane.stop()
        self._thread.join(JOIN_S)
        if self._lane is not None:
            self._lane.join(JOIN_S)

    def _main(self) -> None:
        try:
            self._prepare_thread()
            while self._wait_for_work():
                self._turn()
        except BaseException:
            logger.exception("the device thread died")
            raise
        finally:
            self._fail_for_good()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when the thread shall end."""
        board = self._board
        with board.changed:
            board.changed.wait_for(
                lambda: (
                    self._stopping
                    or self._prompts
                    or self._errands
                    or self.decoding.returned
                    or (self.decoding.has_room and any(not one.decoding for one in board.samples))
                )
            )
            return not self._stopping

    def _turn(self) -> None:
        """Everything between two step boundaries."""
        board = self._board
        board.end_late()
        while self._errands:
            self._watchdog.begin("an errand")
            self._errands.popleft()()
            self._watchdog.end(learn=False)
        self._prompts.encode()
        self.decoding.finish_returned()
        with board.changed:
            if not self.decoding.has_room:
                return
            ready = [
                sample
                for sample in board.samples
                if sample.run.embedding.vectors and not sample.decoding
            ]
            chosen = board.planner.choose([sample.candidate for sample in ready])
        batch = [ready[index] for index in chosen if self._start(ready[index])]
        batch = self._step(batch) if batch else []
        if batch:
            for sample in batch:
                self._tell(sample)
            for sample in batch:
                self.decoding.finish(sample)
            for sample in batch:
                self.decoding.preview(sample)

    def _start(self, sample: SampleRun) -> bool:
        """Draw the noise of a sample chosen for the first time; False when that failed."""
        if sample.sample is not None:
            return True
        run, job = sample.run, sample.run.job
        vectors = run.embedding.vectors
        if vectors is None:
            return False
        try:
            sample.sample = self._sampler.start(
                vectors, job.width, job.height, job.steps, job.guidance, sample.seed
            )
        except Exception:
            logger.exception("starting a sample failed: job %s", job.job_id, extra=job.ids)
            self._board.end(run, GenerationFailed(FAILED))
            return False
        sample.sample.preview_steps = preview_steps(sample.sample.steps, job.previews)
        waited_s = time.monotonic() - run.admitted_at
        encode_s = 0.0 if run.came_encoded else vectors.encode_s
        sample.queued_s = max(0.0, waited_s - encode_s)
        return True

    def _step(self, batch: list[SampleRun]) -> list[SampleRun]:
        """One step of each sample, in one transformer call; returns those that took it.

        Should the call fail, smaller ones find out whose fault it was; only that job fails.
        """
        states = {id(sample.sample): sample for sample in batch}
        height, width = batch[0].candidate.shape
        self._watchdog.begin(("step", height, width, len(batch)))
        started_at = time.monotonic()
        calls_before = self.retrying.failures
        failed = self.retrying.step([sample.sample for sample in batch if sample.sample])
        seconds = time.monotonic() - started_at
        smooth = self.retrying.failures == calls_before
        self._watchdog.end(learn=smooth)
        for state in failed:
            self._board.end(states.pop(id(state)).run, GenerationFailed(FAILED))
        stepped = list(states.values())
        self._failures_in_a_row = 0 if stepped else self._failures_in_a_row + 1
        if smooth:  # a retried step says nothing about what steps cost
            self._board.stepped(batch, seconds)
        for sample in stepped:
            sample.stages.step(started_at, seconds, len(stepped))
            sample.denoise_s += seconds
            sample.device_s += seconds / len(stepped)
        return stepped

    def _limit_batches(self, shape: Shape, samples: int) -> None:
        """More than `samples` of a shape ran out of memory."""
        with self._board.changed:
            self._board.planner.budget.forbid(shape, samples + 1)

    def _tell(self, sample: SampleRun) -> None:
        """Send the step just done, before any decoding: a message should not wait for that."""
        run, state = sample.run, sample.sample
        if state is not None:
            self._board.send(run, Step(run.job.job_id, sample.index, state.steps_done, state.steps))

    def _fail_for_good(self) -> None:
        """A thread died: nothing that is inside will ever be done, nor what comes."""
        with self._board.changed:
            self._board.refusal = self._board.refusal or (Unavailable, DEAD)
            self._fail_everything(GenerationFailed(FAILED))

    def _fail_everything(self, error: AppError) -> None:
        """End every job and forget every prompt. Holds the board's lock."""
        self._board.end_all(error)
        self._prompts.fail(error)
