"""Pace: the work that one gateway has out for one model, and how soon it will be done.

Data flow: jobs sent and images that came back -> device seconds per size -> work still out ->
`Retry-After`, and whether a job has a chance before its deadline. Holds plain numbers only; the
clock is injected.
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serve_app.engine.job import Finished, GenerationJob

RETRY_AFTER_MAX_S = 120  # clients ignore a longer Retry-After
RATE_WINDOW_S = 30.0  # of the completion rate: follows replicas that start and stop
RATE_IMAGES_MIN = 3  # images in the window before their rate says anything
COST_WEIGHT = 0.2  # of the newest image in the running mean of its size
SIZES_MAX = 256  # clients choose sizes, so what is remembered about them is bounded

Size = tuple[int, int]


@dataclass(eq=False)
class Pace:
    """Used from the gateway's event loop only."""

    clock: Callable[[], float] = time.monotonic
    _out: dict[object, GenerationJob] = field(default_factory=dict)
    _step_s: OrderedDict[Size, float] = field(default_factory=OrderedDict)
    """Device seconds of a step of one image, decode included; newest size last."""
    _done: deque[tuple[float, float]] = field(default_factory=deque)
    """(time, device seconds) of images that came back lately."""

    @contextmanager
    def sent(self, job: GenerationJob) -> Iterator[None]:
        """The job is out for as long as this lasts."""
        token = object()
        self._out[token] = job
        try:
            yield
        finally:
            del self._out[token]

    def drawn(self, job: GenerationJob, image: Finished) -> None:
        """Learn from an image that came back."""
        device_s = image.timings.device_s
        if device_s <= 0:
            return
        size, step_s = (job.width, job.height), device_s / job.steps
        known_s = self._step_s.pop(size, step_s)
        self._step_s[size] = known_s + COST_WEIGHT * (step_s - known_s)
        if len(self._step_s) > SIZES_MAX:
            self._step_s.popitem(last=False)
        self._done.append((self.clock(), device_s))
        self._forget()

    def cost_s(self, job: GenerationJob) -> float:
        """Device seconds of a job; 0.0 before any image came back."""
        size = (job.width, job.height)
        if size in self._step_s:
            step_s = self._step_s[size]
        elif self._step_s:  # a size never seen: by its pixels, as the newest one that was
            (width, height), newest_s = next(reversed(self._step_s.items()))
            step_s = newest_s * job.width * job.height / (width * height)
        else:
            return 0.0
        return len(job.seeds) * job.steps * step_s

    def out_s(self) -> float:
        """Device seconds of all jobs that are out."""
        return sum(self.cost_s(job) for job in self._out.values())

    def hopeless(self, job: GenerationJob, replicas: int) -> bool:
        """Whether work of others would last past a job's deadline, with so many replicas.

        Replicas all there at once and for this gateway alone: in truth it takes longer still.
        """
        return self.out_s() / max(1, replicas) > job.timeout_s

    def drain_s(self, replicas: int = 1) -> float:
        """When the jobs that are out will be done, as fast as images came back lately.

        The rate holds what this gateway cannot see: replicas, step batches, other gateways. Before
        there is one, `replicas` are taken to work for this gateway alone.
        """
        self._forget()
        if len(self._done) < RATE_IMAGES_MIN:
            return self.out_s() / max(1, replicas)
        since_s = max(self.clock() - self._done[0][0], 1e-3)
        first_s = self._done[0][1]  # drawn before the time that is counted
        return self.out_s() * since_s / max(1e-9, sum(one for _, one in self._done) - first_s)

    def _forget(self) -> None:
        while self._done and self.clock() - self._done[0][0] > RATE_WINDOW_S:
            self._done.popleft()


def retry_after_s(seconds: float) -> int:
    """For the header: whole seconds, at least one, and no more than clients heed."""
    return max(1, min(RETRY_AFTER_MAX_S, math.ceil(seconds)))
