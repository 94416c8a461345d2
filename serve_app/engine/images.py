"""Pixels to files, beside the device: the last thing that happens to a sample.

Data flow: device thread -> pixels of an image or a preview -> a thread of the pool (`codec.py`) ->
event on the board. One sample's events keep their order, whichever thread is done first.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from serve_app.engine.board import Board, SampleRun
from serve_app.engine.job import Finished, OutputFormat, Preview, Timings
from serve_app.errors import GenerationFailed

logger = logging.getLogger(__name__)

Send = Callable[[], None]
Encode = Callable[[Any, OutputFormat, int], bytes]
"""Pixels, format and compression to a file, as `codec.encode`."""


class Images:
    """Turns the pixels of samples into events with files."""

    def __init__(self, board: Board, pool: ThreadPoolExecutor, encode: Encode) -> None:
        self._board = board
        self._pool = pool
        self._encode = encode

    def finish(self, sample: SampleRun, pixels: Any) -> None:
        """Encode the image of a sample; it ends the sample. Device thread."""
        self._submit(sample, partial(self._finish, sample, pixels))

    def preview(self, sample: SampleRun, pixels: Any) -> None:
        """Encode the next preview of a sample. Device thread."""
        number = sample.previews
        sample.previews += 1
        sample.stages.previews += 1
        self._submit(sample, partial(self._preview, sample, pixels, number))

    def _submit(self, sample: SampleRun, encode: Callable[[], Send | None]) -> None:
        before = sample.encoding

        def work() -> None:
            send = encode()
            if before is not None:
                wait([before])  # submitted earlier to the same queue, so it runs or has run
            if send is not None:
                send()

        sample.encoding = self._pool.submit(work)

    def _preview(self, sample: SampleRun, pixels: Any, number: int) -> Send | None:
        run, job = sample.run, sample.run.job
        if run.ended:
            return None
        try:
            image = self._encode(pixels, job.output_format, job.output_compression)
        except Exception:
            logger.exception("encoding a preview failed: job %s", job.job_id, extra=job.ids)
            return None
        preview = Preview(job.job_id, sample.index, number, image)
        return lambda: self._board.send(run, preview)

    def _finish(self, sample: SampleRun, pixels: Any) -> Send:
        run, job = sample.run, sample.run.job
        started_at = time.monotonic()
        try:
            image = self._encode(pixels, job.output_format, job.output_compression)
        except Exception:
            logger.exception("encoding the image failed: job %s", job.job_id, extra=job.ids)
            failure = GenerationFailed("The image could not be encoded.")
            return lambda: self._board.end(run, failure)
        sample.stages.filed_at, sample.stages.file_bytes = time.monotonic(), len(image)
        vectors = run.embedding.vectors
        timings = Timings(
            queued_s=sample.queued_s,
            encode_prompt_s=vectors.encode_s if vectors else 0.0,
            denoise_s=sample.denoise_s,
            decode_s=sample.decode_s,
            encode_image_s=sample.stages.filed_at - started_at,
            device_s=sample.device_s,
        )
        finished = Finished(job.job_id, sample.index, sample.seed, image, timings)
        return lambda: self._board.finish(run, finished)
