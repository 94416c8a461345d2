"""How far a sample came, and when: the engine stamps, whoever traces a job reads.

Data flow: board, device thread, decoding and image encoders -> `SampleStages` -> spans of
`deployments.jobspans`. Times are of `time.monotonic()`; None: it did not get there. Each field has
one writer at a time, so that nothing is locked.
"""

from dataclasses import dataclass


@dataclass(eq=False)
class SampleStages:
    """Of one sample."""

    index: int = 0
    admitted_at: float = 0.0
    started_at: float | None = None
    """When its first step began."""
    stepped_at: float | None = None
    """When its newest step ended."""
    steps: int = 0
    batched: int = 0
    """Samples in all of its step batches."""
    device_s: float = 0.0
    """Its part of its step batches."""
    previews: int = 0
    decoded_at: float | None = None
    filed_at: float | None = None
    file_bytes: int = 0

    def step(self, began: float, seconds: float, samples: int) -> None:
        """It took part in a step batch."""
        if self.started_at is None:
            self.started_at = began
        self.stepped_at = began + seconds
        self.steps += 1
        self.batched += samples
        self.device_s += seconds / samples
