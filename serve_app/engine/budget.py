"""How many samples of one size may share a step: the largest batch that still pays.

Data flow: step times (`cost.py`) -> `limit(shape)`; sizes and batches not measured yet -> `probe`,
which names the batch worth trying next. Operators may set a cap per size or a token budget; memory
may set one, too (`forbid`). Must not import torch or read a clock.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serve_app.engine.cost import TRUSTED, CostModel
from serve_app.engine.schedule import Shape

logger = logging.getLogger(__name__)

GAIN_MIN = 1.05  # throughput that a larger batch must win: less is not worth the longer steps
PROBE_EVERY = 8  # step batches of a size, until its ladder is measured
REPROBE_EVERY = 256  # step batches of a size, after that: a busy machine may have misled us


def ladder(most: int) -> list[int]:
    """Batch sizes worth measuring: 1, 2, 4, ... and the largest."""
    sizes = [1]
    while sizes[-1] * 2 < most:
        sizes.append(sizes[-1] * 2)
    return sizes if most <= 1 else [*sizes, most]


class Budget:
    """Samples per step batch, for every size."""

    def __init__(
        self,
        costs: CostModel,
        samples_max: int,
        tokens_max: int | None = None,
        samples_by_shape: Mapping[Shape, int] | None = None,
        samples_that_fit: Callable[[Shape], int] | None = None,
    ) -> None:
        """`samples_that_fit` estimates what memory allows."""
        self._costs = costs
        self._samples_max = samples_max
        self._samples_that_fit = samples_that_fit
        self._tokens_max = tokens_max
        self._samples_by_shape = dict(samples_by_shape or {})
        self._caps: dict[Shape, int] = {}
        self._batches: Counter[Shape] = Counter()
        self._limits: dict[Shape, int] = {}
        self._version = -1

    def most(self, shape: Shape) -> int:
        """The cap that no measurement lifts."""
        most = min(self._samples_max, self._caps.get(shape, self._samples_max))
        if self._tokens_max is not None:
            most = min(most, self._tokens_max // self._costs.tokens(shape))
        if self._samples_that_fit is not None:
            most = min(most, self._samples_that_fit(shape))
        return max(1, min(most, self._samples_by_shape.get(shape, most)))

    def forbid(self, shape: Shape, samples: int) -> None:
        """Never again so many at once, or more: they did not fit into memory."""
        self._caps[shape] = max(1, min(samples - 1, self.most(shape)))
        self._limits.clear()

    def limit(self, shape: Shape) -> int:
        """Samples of this size that may share a transformer call."""
        if self._version != self._costs.version:
            self._limits.clear()
            self._version = self._costs.version
        if shape not in self._limits:
            self._limits[shape] = self._limit(shape)
        return self._limits[shape]

    def reachable(self, shape: Shape) -> list[int]:
        """Batch sizes worth measuring: those up to the limit, and the next one."""
        sizes, limit = ladder(self.most(shape)), self.limit(shape)
        above = [size for size in sizes if size > limit]
        return [size for size in sizes if size <= limit] + above[:1]

    def probe(self, shape: Shape) -> int | None:
        """The batch size to try now for the sake of knowing, if this is the time for it."""
        self._batches[shape] += 1
        if shape in self._samples_by_shape:
            return None
        reachable = self.reachable(shape)
        if self._batches[shape] % PROBE_EVERY == 0:
            unknown = [
                size for size in reachable if self._costs.measurements(shape, size) < TRUSTED
            ]
            if unknown:
                return unknown[0]
        if self._batches[shape] % REPROBE_EVERY == 0:
            return reachable[-1]
        return None

    def _limit(self, shape: Shape) -> int:
        most = self.most(shape)
        if shape in self._samples_by_shape:
            return most
        best = 1
        for size in ladder(most)[1:]:
            gain = self._rate(shape, size) / self._rate(shape, best)
            if gain < GAIN_MIN:
                break
            best = size
        return best

    def _rate(self, shape: Shape, samples: int) -> float:
        return samples / self._costs.quick_s(shape, samples)


class CostFile:
    """Measured costs on disk, per device and model, so that a restart need not measure."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key

    def read(self) -> dict[str, Any]:
        """What was kept; nothing when there is no such file, or none that can be understood."""
        found = self._entries().get(self._key, {})
        return found if isinstance(found, dict) else {}

    def write(self, costs: CostModel) -> None:
        """Keep what is known now, beside what others have kept."""
        text = json.dumps({**self._entries(), self._key: costs.dump()}, indent=1)
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(text, encoding="utf-8")
            new.replace(self._path)  # another replica never reads half a file
        except OSError as exc:
            logger.warning("cannot keep step costs in %s: %s", self._path, exc.strerror)

    def _entries(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
