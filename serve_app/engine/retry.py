"""One step for every sample that can take it: a batch that fails is taken apart, not given up.

Data flow: step batch -> one transformer call -> on failure smaller calls, until each sample has
stepped or failed by itself. Out of memory: halves, after giving back what torch keeps, and the
scheduler is told of the new limit. Anything else: one by one, so that the culprit harms nobody.
A healthy batch costs nothing extra. Device thread only; must not know about jobs or the board.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

from serve_app.engine.parts import Sample, Sampler
from serve_app.engine.schedule import Shape

logger = logging.getLogger(__name__)

Failure = Literal["out of memory", "failed"]


class Retrying:
    """A sampler whose failures are contained."""

    def __init__(
        self,
        sampler: Sampler,
        limit: Callable[[Shape, int], None],
        wait_alone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Contain the failures of a sampler.

        Args:
            sampler: takes the steps.
            limit: takes the most samples of a shape that should be tried again.
            wait_alone: waits until nothing else runs on the device; whether anything did.
        """
        self._sampler = sampler
        self._limit = limit
        self._wait_alone = wait_alone
        self.out_of_memory = 0
        """Calls that ran out of memory so far."""
        self.failures = 0
        """Step calls that failed for any reason so far."""

    def step(self, samples: Sequence[Sample]) -> list[Sample]:
        """Advance every sample by one step; returns those that cannot."""
        before = [sample.steps_done for sample in samples]
        failure = self._try(samples)
        if failure is None:
            return []
        # A scheduler that failed half-way through the batch has moved those before it already.
        left = [
            sample
            for sample, done in zip(samples, before, strict=True)
            if sample.steps_done == done
        ]
        if failure == "out of memory" and self._wait_alone():
            release()  # what ran beside had the memory: the batch itself may well fit
            return self.step(left) if left else []
        if failure == "out of memory":
            return self._step_halves(left, len(samples))
        if len(samples) == 1:
            return left
        return [failed for sample in left for failed in self.step([sample])]

    def decode(self, sample: Sample) -> Any:
        """Pixels of a sample; tried again once memory has been given back."""
        try:
            return self._sampler.decode(sample)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.out_of_memory += 1
        release()
        return self._sampler.decode(sample)

    def _step_halves(self, left: list[Sample], tried: int) -> list[Sample]:
        if not left:
            return []
        self._limit((left[0].height, left[0].width), max(1, tried // 2))
        release()
        if tried == 1:  # fragments may have been the reason: once more, on its own
            return left if self._try(left) else []
        middle = (len(left) + 1) // 2
        parts = (left[:middle], left[middle:])
        return [failed for part in parts if part for failed in self.step(part)]

    def _try(self, samples: Sequence[Sample]) -> Failure | None:
        """One call; its exception is let go at once, for the frames in it hold on to memory."""
        try:
            self._sampler.step(samples)
        except Exception as error:
            self.failures += 1
            if is_out_of_memory(error):
                self.out_of_memory += 1
                logger.warning("a step batch of %d samples ran out of memory", len(samples))
                return "out of memory"
            logger.exception("a step batch of %d samples failed", len(samples))
            return "failed"
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might have worked."""
    from serve_app.engine import memory  # loads torch, which a simulated engine does without

    return memory.is_out_of_memory(error)


def release() -> None:
    """Give back what a failed call left behind, before another one is tried."""
    from serve_app.engine import memory

    memory.release()
