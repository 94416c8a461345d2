"""Which events of a job are worth a message: its steps are thinned out to what one can follow.

Data flow: engine events -> `EventFilter.passes` -> replica -> gateway -> client. Pure but for the
clock handed in; must not import torch, Ray or HTTP.
"""

import time
from collections.abc import Callable

from serve_app.engine.job import Event, Finished, GenerationJob, Step

STEPS_PER_S_MAX = 10
"""Of one job, over all its samples: a bar looks smooth, and every event costs three hops."""


class EventFilter:
    """Passes images, other events but for a job of images only, and steps where they are wanted.

    A turn for each sample: else the first of a step batch would always be the one that is told of.
    """

    def __init__(self, job: GenerationJob, clock: Callable[[], float] = time.monotonic) -> None:
        self._others = not job.images_only
        self._wanted = job.progress and self._others
        self._interval_s = len(job.seeds) / STEPS_PER_S_MAX
        self._clock = clock
        self._told_at: dict[int, float] = {}

    def passes(self, event: Event) -> bool:
        """Whether to send an event on; counts it as sent."""
        if not isinstance(event, Step):
            return self._others or isinstance(event, Finished)
        if not self._wanted:
            return False
        now = self._clock()
        told_at = self._told_at.get(event.index)
        if told_at is not None and now - told_at < self._interval_s:
            return False
        self._told_at[event.index] = now
        return True
