"""What a job of a replica's present traffic costs: a running mean, in device seconds.

Data flow: each admitted job -> `admitted` -> `job_s`, by which the autoscaling policy weighs jobs
that wait in handles, of which Serve tells it only the number. Must not read a clock.
"""

from dataclasses import dataclass

WEIGHT = 0.1  # of the newest job: follows a change in about ten jobs


@dataclass
class WorkMeter:
    job_s: float = 0.0
    """0.0 before the first."""

    def admitted(self, cost_s: float) -> None:
        """A job came; 0.0 is a cost that nobody knows yet."""
        if cost_s > 0:
            self.job_s += (WEIGHT if self.job_s else 1.0) * (cost_s - self.job_s)
