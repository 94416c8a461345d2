"""Notices a device that got stuck: a stage that takes far longer than it used to.

Data flow: device thread -> `begin` and `end` of each stage -> how long stages of that kind take ->
`overdue`, asked by the health check from another thread. A first use has no past, and may hold a
compilation, so it gets a limit of its own. Must not know what the stages do.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

FLOOR_S = 30.0  # a busy host or a driver's hiccup may hold anything up for seconds
KINDS_MAX = 1024  # clients choose sizes, so what is remembered about them is bounded
USUAL_WEIGHT = 0.2  # of the newest in the running mean


@dataclass(frozen=True)
class _Stage:
    kind: Hashable
    began_at: float
    limit_s: float


@dataclass(eq=False)
class Watchdog:
    """One writer, the device thread; any number of readers: there is one reference to swap."""

    first_s: float
    """Limit of a stage of a kind never seen before."""
    factor: float
    """Limit of others, in times of what they usually take."""
    floor_s: float = FLOOR_S
    clock: Callable[[], float] = time.monotonic
    """Seconds; tests bring their own."""
    _stage: _Stage | None = None
    _usual_s: OrderedDict[Hashable, float] = field(default_factory=OrderedDict)

    def begin(self, kind: Hashable) -> None:
        """A stage starts; (name, height, width, samples) or the like makes its kind."""
        usual_s = self._usual_s.get(kind)
        limit_s = self.first_s if usual_s is None else max(self.floor_s, self.factor * usual_s)
        self._stage = _Stage(kind, self.clock(), limit_s)

    def end(self, *, learn: bool = True) -> None:
        """The stage is over; `learn` unless it failed."""
        stage, self._stage = self._stage, None
        if stage is None or not learn:
            return
        took_s = self.clock() - stage.began_at
        usual_s = self._usual_s.pop(stage.kind, None)
        self._usual_s[stage.kind] = (
            took_s if usual_s is None else usual_s + USUAL_WEIGHT * (took_s - usual_s)
        )
        if len(self._usual_s) > KINDS_MAX:
            self._usual_s.popitem(last=False)

    def overdue(self) -> str | None:
        """Say which stage takes too long, or None."""
        stage = self._stage
        if stage is None:
            return None
        for_s = self.clock() - stage.began_at
        if for_s <= stage.limit_s:
            return None
        return f"no progress for {for_s:.0f} s in {stage.kind}"
