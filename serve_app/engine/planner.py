"""The planner: what the engine knows about time, and the choices it makes from that.

Data flow: step batches and decodes that were timed -> costs, budgets, shares of accounts ->
`choose` (the next step batch) and `finish_s` (when a job would be done). It is the whole of
scheduling that the device thread and `benchmarks/scheduling.py` share. Must not import torch, read
a clock or know of threads: the board's lock guards it.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from serve_app.engine.budget import Budget, CostFile
from serve_app.engine.cost import CostModel
from serve_app.engine.schedule import Candidate, Rules, Shape, choose_step_batch, rank
from serve_app.engine.shares import Shares
from serve_app.engineconfig import EngineConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """Device seconds until a job would be done, were it admitted now and no other after it."""

    ahead_s: float
    """Work of others that would be done before it, or beside it."""
    own_s: float

    @property
    def finish_s(self) -> float:
        return self.ahead_s + self.own_s


class Planner:
    """Chooses step batches and foretells ends, for one model on one device."""

    def __init__(
        self,
        config: EngineConfig,
        token_px: int,
        text_tokens: int,
        device_name: str = "",
        samples_that_fit: Callable[[Shape], int] | None = None,
    ) -> None:
        """Plan for one model on one device.

        Args:
            config: policy, caps, shares.
            token_px: edge of an image token.
            text_tokens: of every prompt.
            device_name: names device and model in the cache of measured costs.
            samples_that_fit: what memory allows, estimated.
        """
        self.rules = Rules(config.schedule, config.ageing)
        self.costs = CostModel(token_px, text_tokens)
        sizes = {_shape(size): count for size, count in config.step_batch_samples.items()}
        self.budget = Budget(
            self.costs,
            config.step_batch_max_samples,
            config.step_batch_max_tokens,
            sizes,
            samples_that_fit,
        )
        self.shares = Shares(config.share_burst_s, config.account_weights)
        self._file = CostFile(config.cost_cache, device_name) if config.cost_cache else None
        self._restore()

    def choose(self, candidates: Sequence[Candidate]) -> list[int]:
        """Ascending indices of the next step batch; empty only when there are no candidates."""
        chosen = choose_step_batch(candidates, self, self.rules)
        if not chosen:
            return []
        shape = candidates[chosen[0]].shape
        wanted = self.budget.probe(shape)
        if wanted is None or wanted == len(chosen):
            return chosen
        ranks = rank(candidates, self, self.rules)
        same = [index for index, one in enumerate(candidates) if one.shape == shape]
        return sorted(sorted(same, key=ranks.__getitem__)[:wanted])

    def stepped(self, batch: Sequence[Candidate], seconds: float) -> None:
        """Learn from a step batch, and charge the accounts in it.

        Those past their share pay for the time that they added, the others for the rest.
        """
        shape = batch[0].shape
        past = [self.past_share(one.account) for one in batch]
        riders, others = sum(past), len(batch) - sum(past)
        rider_s = other_s = seconds / len(batch)
        if riders and others:
            other_s *= min(1.0, self.step_s(shape, others) / self.step_s(shape, len(batch)))
            other_s *= len(batch) / others
            rider_s = (seconds - others * other_s) / riders
        self.costs.record_step(shape, len(batch), seconds)
        for one, rides in zip(batch, past, strict=True):
            self.shares.charge(one.job, max(0.0, rider_s if rides else other_s))

    def decoded(self, sample: Candidate, seconds: float) -> None:
        """Learn from a decode, and charge its account."""
        self.costs.record_decode(sample.shape, seconds)
        self.shares.charge(sample.job, seconds)

    def estimate(self, candidates: Sequence[Candidate], job: Sequence[Candidate]) -> Estimate:
        """Foretell the end of a job: what ranks before it has to be done first.

        Args:
            candidates: the samples inside.
            job: those of the job in question, with an arrival not before any other.
        """
        everyone = [*candidates, *job]
        ranks = rank(everyone, self, self.rules)
        last = max(ranks[len(candidates) :])
        ahead: dict[str, list[Candidate]] = {job[0].account: []}
        for one, place in zip(candidates, ranks, strict=False):
            if place < last:
                ahead.setdefault(one.account, []).append(one)
        own_s = self._work_s(job, job)
        ahead_s = {account: self._work_s(ones, everyone) for account, ones in ahead.items()}
        before_s = self._fair_s(ahead_s, own_s, job[0].account)
        behind = [one for one, place in zip(candidates, ranks, strict=False) if place > last]
        return Estimate(before_s + self._beside_s(behind, job), own_s)

    def _beside_s(self, behind: Sequence[Candidate], job: Sequence[Candidate]) -> float:
        """What a job's steps take longer for the sake of those that ride along."""
        shape = job[0].shape
        alone = min(len(job), self.limit(shape))
        together = len(job) + sum(one.shape == shape for one in behind)
        longer_s = self.step_s(shape, min(together, self.limit(shape))) - self.step_s(shape, alone)
        return job[0].steps_left * max(0.0, longer_s)

    def _fair_s(self, ahead_s: Mapping[str, float], own_s: float, account: str) -> float:
        """Work that comes before a job: of its own account all, of others at most their share."""
        if self.rules.policy != "fair":
            return sum(ahead_s.values())
        mine_s = ahead_s[account]
        served_s = (mine_s + own_s) / self.shares.weight(account) + self.shares.burst_s
        return mine_s + sum(
            min(work_s, served_s * self.shares.weight(other))
            for other, work_s in ahead_s.items()
            if other != account
        )

    def backlog_s(self, candidates: Sequence[Candidate]) -> float:
        """Device seconds of everything inside; 0.0 before anything was measured."""
        return self._work_s(candidates, candidates) if self.costs.measured else 0.0

    def keep(self) -> None:
        """Write what was measured to the cache on disk, if there is one."""
        if self._file:
            self._file.write(self.costs)

    def step_s(self, shape: Shape, samples: int) -> float:
        return self.costs.step_s(shape, samples)

    def decode_s(self, shape: Shape) -> float:
        return self.costs.decode_s(shape)

    def limit(self, shape: Shape) -> int:
        return self.budget.limit(shape)

    def past_share(self, account: str) -> bool:
        return self.shares.past(account)

    def _work_s(self, samples: Sequence[Candidate], among: Sequence[Candidate]) -> float:
        """Device seconds of samples, in step batches as large as those of `among` allow."""
        spent_s: dict[Shape, float] = {}
        for shape, count in Counter(one.shape for one in among).items():
            together = min(count, self.limit(shape))
            spent_s[shape] = self.step_s(shape, together) / together
        return sum(
            one.steps_left * spent_s[one.shape] + one.decodes * self.decode_s(one.shape)
            for one in samples
        )

    def _restore(self) -> None:
        if self._file is None:
            return
        try:
            self.costs.restore(self._file.read())
        except (ValueError, TypeError, AttributeError):
            logger.warning("the cache of step costs cannot be understood; measuring anew")


def _shape(size: str) -> Shape:
    width, height = (int(edge) for edge in size.split("x"))
    return (height, width)
