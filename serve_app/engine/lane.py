"""A second lane of the device: work that goes on beside the steps of the device thread.

Data flow: device thread -> `submit` (a tensor that is being made, and what to do with it) -> a
thread with a CUDA stream of its own, in order -> `has_room` and `wait_idle` for the device thread.
On a GPU the lane's stream waits for the step that makes the tensor by an event, and the device
thread's stream waits for nothing; on a CPU it is a second core that works. Everything shared is
guarded by the board's lock. Must not know about jobs.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from serve_app.engine.watchdog import Watchdog

logger = logging.getLogger(__name__)

# Works inside before steps wait for them. Enough that the lane never runs dry between two steps;
# few, because works leave in order, so that whoever ranks first waits for them all the same.
AHEAD_MAX = 4

Work = Callable[[], None]


class Lane:
    """One thread, one stream, works in order of arrival."""

    def __init__(
        self,
        device: str,
        changed: threading.Condition,
        watchdog: Watchdog,
        prepare_thread: Callable[[], None],
    ) -> None:
        """Make a lane that `start` sets going.

        Args:
            device: of torch; a CUDA device gets a stream.
            changed: the board's lock, told of every work that is done.
            watchdog: of this lane's stages: it takes one writer.
            prepare_thread: called on the new thread before any work.
        """
        self.watchdog = watchdog
        self._device = torch.device(device)
        self._changed = changed
        self._prepare_thread = prepare_thread
        self._stream = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._works: deque[tuple[torch.Tensor, Any, Work]] = deque()
        self._working = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self, died: Callable[[], None]) -> None:
        """Start the thread; `died` is called on it, under the lock, should it end unasked."""
        self._thread = threading.Thread(
            target=self._main, args=(died,), name="flux-decode", daemon=True
        )
        self._thread.start()

    def submit(self, tensor: torch.Tensor, work: Work) -> None:
        """Do something with a tensor that the calling thread's stream is about to make."""
        made = None
        if self._stream is not None:
            made = torch.cuda.Event()  # type: ignore[no-untyped-call]
            made.record(torch.cuda.current_stream(self._device))
        with self._changed:
            if self._stopping:
                return  # every job has been ended, or is about to be
            self._works.append((tensor, made, work))
            self._changed.notify_all()

    @property
    def inside(self) -> int:
        """Works that wait or run."""
        return len(self._works) + self._working

    @property
    def has_room(self) -> bool:
        """Whether another step may be taken."""
        return self.inside <= AHEAD_MAX

    def wait_idle(self) -> bool:
        """Wait until nothing runs beside; returns whether anything did. Not on the lane itself."""
        with self._changed:
            busy = self.inside > 0
            self._changed.wait_for(lambda: self.inside == 0)
        return busy

    def trouble(self) -> str | None:
        """Say why the lane cannot be relied on, or None. Any thread."""
        if self._thread is None or not self._thread.is_alive():
            return "the decode thread is dead"
        return self.watchdog.overdue()

    def stop(self) -> None:
        """Forget what waits, and end the thread after the work in progress."""
        with self._changed:
            self._stopping = True
            self._works.clear()
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _main(self, died: Callable[[], None]) -> None:
        try:
            self._prepare_thread()
            while self._do_next():
                pass
        except BaseException:
            logger.exception("the decode thread died")
            raise
        finally:
            with self._changed:
                self._works.clear()
                self._working = False
                if not self._stopping:
                    self._stopping = True
                    died()
                self._changed.notify_all()

    def _do_next(self) -> bool:
        """Wait for a work and do it; False when the thread shall end.

        A frame of its own, so that an idle lane holds on to nothing.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._works)
            if self._stopping:
                return False
            tensor, made, work = self._works.popleft()
            self._working = True
        if self._stream is None:
            work()
        else:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(made)
                tensor.record_stream(self._stream)  # or its memory might be given away too early
                work()
        with self._changed:
            self._working = False
            self._changed.notify_all()
        return True
