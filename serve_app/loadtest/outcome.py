"""Outcome: what became of one request, as the client saw it.

Data flow: `sender` makes them -> a line of JSON each -> `figures`, `books`, `report`. Times are
seconds after the start of the test. Latency counts from the scheduled time, so a sender or a server
that is late cannot hide it (coordinated omission).
"""

from dataclasses import dataclass
from typing import Any

DELIVERED = "200"
TIMED_OUT = "client_timeout"
DISCONNECTED = "disconnected"
ABANDONED = "abandoned"
LOST = "lost"
DOUBTFUL = frozenset({TIMED_OUT, DISCONNECTED, ABANDONED, LOST, "bad_reply"})
"""The client cannot know whether these were charged: no whole reply told it."""


@dataclass(frozen=True)
class Outcome:
    """One request.

    `code` is `200` for delivered images, an error code of the API, or what happened on this side:
    `client_timeout`, `disconnected` (sent, then the connection broke), `connection_failed` (never
    sent), `abandoned` (the test was cut short), `client_saturated` (too many in flight here; never
    sent), `bad_reply` (a 200 that is no list of images) or `lost` (its sender died).
    """

    index: int
    entry: int
    scheduled_s: float
    sent_s: float
    done_s: float
    status: int
    code: str
    units: int
    images: int
    retry_after_s: float | None

    @property
    def delivered(self) -> bool:
        return self.code == DELIVERED

    @property
    def latency_s(self) -> float:
        return self.done_s - self.scheduled_s

    @property
    def waited_out(self) -> bool:
        """Whether its latency says how slow the server is; a refusal says only how fast it is."""
        return self.delivered or self.code == TIMED_OUT

    def row(self) -> list[Any]:
        """Plain values in the order of the fields: what crosses processes."""
        return [
            self.index,
            self.entry,
            round(self.scheduled_s, 6),
            round(self.sent_s, 6),
            round(self.done_s, 6),
            self.status,
            self.code,
            self.units,
            self.images,
            self.retry_after_s,
        ]


def lost(index: int, entry: int, scheduled_s: float, end_s: float) -> Outcome:
    """A request whose sending process never told what became of it."""
    return Outcome(index, entry, scheduled_s, scheduled_s, end_s, 0, LOST, 0, 0, None)
