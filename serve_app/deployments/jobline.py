"""One line in a replica's log for each job: what became of it, and where its time went.

Data flow: job and its images -> `JobLine` -> a sentence with the ids that the gateway's line has.
"""

import logging
import time
from types import TracebackType
from typing import Self

from serve_app.engine.job import Finished, GenerationJob
from serve_app.observability import error_code

logger = logging.getLogger(__name__)


class JobLine:
    """`with JobLine(job) as line:` around a job; `drawn` for each of its images."""

    def __init__(self, job: GenerationJob) -> None:
        self._job = job
        self._began = time.monotonic()
        self._images: list[Finished] = []

    def drawn(self, image: Finished) -> None:
        """An image is done."""
        self._images.append(image)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        job, images = self._job, self._images
        outcome = "drawn"
        if len(images) < len(job.seeds):
            outcome = "incomplete" if error is None else error_code(error)
        fields = {
            "outcome": outcome,
            "images": len(images),
            "duration_ms": round((time.monotonic() - self._began) * 1000),
            # Of the image that waited longest: the others were drawn beside it.
            "queued_ms": _longest_ms([image.timings.queued_s for image in images]),
            "device_ms": round(sum(image.timings.device_s for image in images) * 1000),
        }
        logger.info(
            "job %s: %s, %d of %d images of %dx%d in %d ms, queued %d ms, device %d ms",
            job.job_id,
            outcome,
            len(images),
            len(job.seeds),
            job.width,
            job.height,
            fields["duration_ms"],
            fields["queued_ms"],
            fields["device_ms"],
            extra={**job.ids, **fields},
        )


def _longest_ms(seconds: list[float]) -> int:
    return round(max(seconds, default=0.0) * 1000)
