"""Whose turn it is among accounts: device seconds that each has had, against its share.

Data flow: jobs enter and leave, step batches charge them -> `past(account)`. Virtual time runs as a
perfectly fair device would serve everyone at once: a second of work advances it by one over the
weights of all accounts that have jobs inside. An account is measured by the jobs that it has had
done: the one in progress is not held against it, or long jobs would be chopped. Must not read a
clock. Not safe for threads: the board's lock guards it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

WEIGHT = 1.0  # of an account that has none of its own


@dataclass
class _Account:
    weight: float
    settled_s: float
    """Virtual time up to which it has been served, by jobs that have left."""
    jobs: int = 0


@dataclass
class Shares:
    """Service of each account within one busy period."""

    burst_s: float = 0.0
    """What an account may be ahead of its share, in virtual seconds."""
    weights: Mapping[str, float] = field(default_factory=dict)
    virtual_s: float = 0.0
    _weight_inside: float = 0.0
    _accounts: dict[str, _Account] = field(default_factory=dict)
    _jobs: dict[int, tuple[_Account, float]] = field(default_factory=dict)

    def weight(self, account: str) -> float:
        """Share of an account, in proportion to the others."""
        return self.weights.get(account, WEIGHT)

    def enter(self, job: int, account: str) -> None:
        """A job came. An account that had none starts from now: nobody saves up while idle."""
        new = _Account(self.weight(account), self.virtual_s)
        found = self._accounts.setdefault(account, new)
        if found.jobs == 0:
            found.settled_s = max(found.settled_s, self.virtual_s)
            self._weight_inside += found.weight
        found.jobs += 1
        self._jobs[job] = (found, 0.0)

    def charge(self, job: int, seconds: float) -> None:
        """A job had the device to itself for so long, or its part of a step batch."""
        if job not in self._jobs:  # it ended during the step
            return
        account, served_s = self._jobs[job]
        self._jobs[job] = (account, served_s + seconds)
        self.virtual_s += seconds / self._weight_inside

    def leave(self, job: int) -> None:
        """A job ended, however: what it had counts now."""
        if job not in self._jobs:
            return
        account, served_s = self._jobs.pop(job)
        account.settled_s += served_s / account.weight
        account.jobs -= 1
        if account.jobs == 0:
            self._weight_inside -= account.weight
        if not self._jobs:  # the busy period is over, and with it all debts
            self._accounts.clear()
            self.virtual_s = self._weight_inside = 0.0
            return
        if account.jobs == 0:
            self._accounts = {
                name: one
                for name, one in self._accounts.items()
                if one.jobs or one.settled_s > self.virtual_s
            }

    def past(self, account: str) -> bool:
        """Whether an account has had more than its share and the burst."""
        found = self._accounts.get(account)
        return found is not None and found.settled_s - self.virtual_s > self.burst_s
