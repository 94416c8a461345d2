"""From latents to pixels: the last thing that a device does for a sample, and for its previews.

Data flow: device thread -> `finish` and `preview` after a step -> VAE, on the device thread before
the next step, or beside it (`lane.py`) -> pixels -> image encoders (`images.py`). What is too large
to run beside a step, or ran out of memory there, is done between two steps with the device to
itself. A decode that fails fails its own job only; a preview that fails, nobody.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from serve_app.engine.board import Board, SampleRun
from serve_app.engine.images import Images
from serve_app.engine.parts import NonFiniteLatents, Sample, Sampler
from serve_app.engine.retry import Retrying, is_out_of_memory, release
from serve_app.engine.schedule import Shape
from serve_app.engine.watchdog import Watchdog
from serve_app.errors import GenerationFailed

if TYPE_CHECKING:
    from serve_app.engine.lane import Lane  # loads torch

logger = logging.getLogger(__name__)

FAILED = "The model failed while drawing the image."

Decode = Callable[[Sample], Any]


class Decoding:
    """Decodes between steps, or beside them where there is a lane. Device thread, but `died`."""

    def __init__(
        self,
        board: Board,
        sampler: Sampler,
        retrying: Retrying,
        images: Images,
        watchdog: Watchdog,
        lane: "Lane | None",
        fits_beside: Callable[[Shape], bool],
    ) -> None:
        """`fits_beside` tells the sizes that memory suffices for beside a step."""
        self._board = board
        self._sampler = sampler
        self._retrying = retrying
        self._images = images
        self._watchdog = watchdog
        self._lane = lane
        self._fits_beside = fits_beside
        self._returned: deque[SampleRun] = deque()
        self.out_of_memory = 0
        """Decodes that ran out of memory beside a step. Written by the lane."""
        self.alone = 0
        """Decodes that had to have the device to themselves although there is a lane."""

    @property
    def has_room(self) -> bool:
        """Whether a step may be taken before more is decoded. Holds the board's lock."""
        return self._lane is None or self._lane.has_room

    @property
    def returned(self) -> bool:
        """Whether `finish_returned` has something to do. Holds the board's lock."""
        return bool(self._returned)

    def wait_idle(self) -> bool:
        """Wait until nothing is decoded beside; returns whether anything was."""
        return self._lane is not None and self._lane.wait_idle()

    def finish(self, sample: SampleRun) -> None:
        """After its last step, decode a sample and pass its pixels on."""
        run, state = sample.run, sample.sample
        if run.ended or state is None or not state.done:
            return
        sample.decoding = True
        if self._lane is not None and self._fits_beside((state.height, state.width)):
            self._lane.submit(state.latents, partial(self._finish_beside, sample))
        else:
            self._finish_alone(sample)

    def finish_returned(self) -> None:
        """Decode what ran out of memory beside a step."""
        while True:
            with self._board.changed:
                if not self._returned:
                    return
                sample = self._returned.popleft()
            self._finish_alone(sample)

    def preview(self, sample: SampleRun) -> None:
        """Decode the preview that the step just done kept, if any; without it the job goes on."""
        run, state = sample.run, sample.sample
        if run.ended or state is None or state.preview is None:
            return
        latents, state.preview = state.preview, None  # the next step may leave another
        if self._lane is not None and self._fits_beside((state.height, state.width)):
            beside = self._lane.watchdog
            self._lane.submit(latents, partial(self._preview, sample, latents, beside))
        else:
            self._have_device()
            self._preview(sample, latents, self._watchdog)

    def rehearse(self, state: Sample) -> None:
        """Decode for nobody, on the thread that will: compiled code is made for its thread."""
        if self._lane is None or not self._fits_beside((state.height, state.width)):
            self._sampler.decode(state)
            return
        done: Future[None] = Future()

        def work() -> None:
            try:
                self._sampler.decode(state)
            except Exception as error:  # noqa: BLE001 - raised below, where it is waited for
                done.set_exception(error)
            else:
                done.set_result(None)

        self._lane.submit(state.latents, work)
        self._lane.wait_idle()
        if done.done():  # else the engine is being closed
            done.result()

    def _have_device(self) -> None:
        if self._lane is not None:
            self._lane.wait_idle()
            self.alone += 1

    def _finish_alone(self, sample: SampleRun) -> None:
        self._have_device()
        self._finish(sample, self._retrying.decode, self._watchdog)

    def _finish_beside(self, sample: SampleRun) -> None:
        """On the lane."""
        if self._lane is not None:
            self._finish(sample, self._sampler.decode, self._lane.watchdog)

    def _finish(self, sample: SampleRun, decode: Decode, watchdog: Watchdog) -> None:
        """Pixels on the host, and on to the encoders; its job fails for want of them."""
        run, state = sample.run, sample.sample
        if run.ended or state is None:
            return
        beside, too_tight, pixels = watchdog is not self._watchdog, False, None
        started_at = time.monotonic()
        watchdog.begin(("decode", state.height, state.width))
        try:
            pixels = decode(state)
        except NonFiniteLatents:
            logger.error("latents hold NaN or infinity: job %s", run.job.job_id, extra=run.job.ids)
        except Exception as error:
            too_tight = beside and is_out_of_memory(error)
            if not too_tight:
                logger.exception("decoding failed: job %s", run.job.job_id, extra=run.job.ids)
        finally:
            watchdog.end(learn=pixels is not None)
        if too_tight:
            self._hand_back(sample)
        elif pixels is None:
            self._board.end(run, GenerationFailed(FAILED))
        else:
            sample.stages.decoded_at = time.monotonic()
            sample.decode_s = sample.stages.decoded_at - started_at
            sample.device_s += sample.decode_s
            self._pass_on(sample, pixels)

    def _pass_on(self, sample: SampleRun, pixels: Any) -> None:
        with self._board.changed:
            self._board.decoded(sample, sample.decode_s)
            if sample.run.ended:
                return
            self._board.samples.remove(sample)
        sample.sample = None  # its latents are not needed any more
        self._images.finish(sample, pixels)

    def _hand_back(self, sample: SampleRun) -> None:
        """There was no memory beside a step: the device thread tries again, with none."""
        self.out_of_memory += 1
        release()
        with self._board.changed:
            self._returned.append(sample)
            self._board.changed.notify_all()

    def _preview(self, sample: SampleRun, latents: Any, watchdog: Watchdog) -> None:
        job = sample.run.job
        if sample.run.ended:
            return
        started_at = time.monotonic()
        watchdog.begin(("decode", job.height, job.width))
        learn = False
        try:
            pixels = self._sampler.decode_latents(latents, job.height, job.width)
            learn = True
        except Exception:  # also NaN: the image itself will tell
            logger.exception("a preview failed: job %s", job.job_id, extra=job.ids)
            return
        finally:
            watchdog.end(learn=learn)
        self._board.decoded(sample, time.monotonic() - started_at)
        self._images.preview(sample, pixels)
