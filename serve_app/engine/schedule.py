"""What runs next: a pure choice among the samples that a replica holds.

Data flow: device thread -> `Candidate`s in order of arrival, and what they cost (`Prices`) ->
indices of the next step batch. The policies and their reasons are in `docs/scheduling.md`. Must not
import torch, read a clock or keep state: it is tested and simulated without a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

PolicyName = Literal["fair", "srpt", "fcfs"]

Shape = tuple[int, int]
"""(height, width): only samples that agree in it can share a transformer call.

RoPE ids have no batch dimension, so even 768x1024 and 1024x768 cannot. An adapter would join it.
"""

RIDE_SLOWDOWN_MAX = 1.25
"""How much longer a step may take for the sake of accounts that are past their share."""
TO_COME = 3
"""Jobs that will have gained from a shorter queue, for each that waits now: others will come."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the policy may know about one sample that waits for its next step."""

    width: int
    height: int
    steps_left: int
    account: str = ""
    job: int = 0
    """Samples of one job share it."""
    arrived_s: float = 0.0
    """When its job was admitted, on any clock."""
    decodes: int = 1
    """VAE decodes still to do: its image, and previews on the way."""

    @property
    def shape(self) -> Shape:
        return (self.height, self.width)


class Prices(Protocol):
    """What a choice costs, and whom it would favour."""

    def step_s(self, shape: Shape, samples: int) -> float:
        """Estimated seconds of one step batch."""
        ...

    def decode_s(self, shape: Shape) -> float:
        """Estimated seconds of device time from latents to pixels."""
        ...

    def limit(self, shape: Shape) -> int:
        """Samples that may share a transformer call, at least 1."""
        ...

    def past_share(self, account: str) -> bool:
        """Whether an account has had more than its share lately."""
        ...


@dataclass(frozen=True)
class Rules:
    """How to choose."""

    policy: PolicyName = "fair"
    ageing: float = 0.05
    """Seconds of remaining cost that a second of waiting makes up for."""


def choose_step_batch(
    candidates: Sequence[Candidate], prices: Prices, rules: Rules | None = None
) -> list[int]:
    """Pick the next step batch: the sample ranked first, and others of its shape by rank.

    Args:
        candidates: samples in order of arrival.
        prices: what steps cost, and who is past its share.
        rules: the policy; None takes the default.

    Returns:
        Ascending indices into `candidates`; empty only when there are none.
    """
    if not candidates:
        return []
    rules = rules or Rules()
    ranks = rank(candidates, prices, rules)
    order = sorted(range(len(candidates)), key=ranks.__getitem__)
    shape = candidates[order[0]].shape
    most = max(1, prices.limit(shape))
    if rules.policy == "fcfs":
        return sorted([index for index in order if candidates[index].shape == shape][:most])
    return sorted(_worth_it(candidates, order, prices, most))


Rank = tuple[bool, float, int]


def rank(candidates: Sequence[Candidate], prices: Prices, rules: Rules) -> list[Rank]:
    """Sort keys, one per candidate: lower runs first, ties in order of arrival.

    With ageing, the order of two jobs does not depend on the present: remaining cost minus ageing x
    waited time differs from remaining cost plus ageing x arrival by the same amount for all.
    """
    if rules.policy == "fcfs":
        return [(False, 0.0, index) for index in range(len(candidates))]
    left_s: dict[int, float] = {}
    for one in candidates:
        cost_s = one.steps_left * prices.step_s(one.shape, 1)
        cost_s += one.decodes * prices.decode_s(one.shape)
        left_s[one.job] = left_s.get(one.job, 0.0) + cost_s
    if rules.policy == "srpt":
        return [(False, left_s[one.job], index) for index, one in enumerate(candidates)]
    past = {account: prices.past_share(account) for account in {one.account for one in candidates}}
    return [
        (past[one.account], left_s[one.job] + rules.ageing * one.arrived_s, index)
        for index, one in enumerate(candidates)
    ]


def _worth_it(
    candidates: Sequence[Candidate], order: Sequence[int], prices: Prices, most: int
) -> list[int]:
    """Members of the batch: those of the first one's shape that pay for the time they add.

    One more sample makes the step longer for every job ranked before it. It saves a step of its own
    later, for all who wait now or will come while there is a queue. So it joins when
    (jobs before it) x (time added) <= `TO_COME` x (jobs waiting) x (time saved).
    """
    shape = candidates[order[0]].shape
    alone_s = prices.step_s(shape, 1)
    waiting = len({one.job for one in candidates})
    batch: list[int] = []
    seen: set[int] = set()
    fair_s = alone_s  # of a step with those only who are within their share
    for index in order:
        one = candidates[index]
        if len(batch) == most:
            break
        if one.shape == shape:
            batch_s = prices.step_s(shape, len(batch) + 1)
            added_s = batch_s - (prices.step_s(shape, len(batch)) if batch else 0.0)
            before = len(seen - {one.job})
            rides = prices.past_share(one.account) and not prices.past_share(
                candidates[order[0]].account
            )
            if batch and before * added_s > TO_COME * waiting * (alone_s - added_s):
                break
            if rides and batch_s > RIDE_SLOWDOWN_MAX * fair_s:
                break
            batch.append(index)
            if not rides:
                fair_s = batch_s
        seen.add(one.job)
    return batch
