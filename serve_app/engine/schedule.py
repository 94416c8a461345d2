"""What runs next: a pure choice among the samples that a replica holds.

Data flow: device thread -> list of `Candidate` in order of arrival -> indices of the next step
batch. Must not import torch: the policy is tested and simulated without a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """What the policy may know about one sample that waits for its next step."""

    width: int
    height: int
    steps_left: int
    account: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width): only samples that agree in it can share a transformer call.

        RoPE ids have no batch dimension, so even 768x1024 and 1024x768 cannot.
        """
        return (self.height, self.width)


def choose_step_batch(candidates: Sequence[Candidate], samples_max: int) -> list[int]:
    """Pick the next step batch: first come, first served.

    The oldest sample always runs; younger ones of its shape ride along, oldest first. A running
    sample is older than a queued one, so none is left half done while others start.

    Args:
        candidates: samples in order of arrival.
        samples_max: samples that may share a transformer call, at least 1.

    Returns:
        Ascending indices into `candidates`; empty only when there are none.
    """
    if not candidates:
        return []
    shape = candidates[0].shape
    same_shape = (index for index, other in enumerate(candidates) if other.shape == shape)
    return [index for index, _ in zip(same_shape, range(samples_max), strict=False)]
