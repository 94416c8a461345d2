"""One generation as a stream of events, with retries that cannot charge twice.

Data flow: body -> `draw` -> `Opened`, then what the server tells, `Retrying` in between. Tries of
one call share an idempotency key. What is retried: error replies that say so, and requests that no
reply began to. A stream that began is never retried: what it delivered is paid for.
"""

import secrets
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from serve_app.client.events import Completed, Partial, Progress, Queued, parse_event
from serve_app.client.failures import BrokenOff, ClientFailure, NoReply, ServerSaid
from serve_app.client.server import Server
from serve_app.client.sse import event_data

GENERATIONS = "/v1/images/generations"
QUOTE = "/v1/images/quote"
PREVIEWS = 3
"""The API's maximum; a server makes at most steps - 1."""
BACKOFF_S = (1.0, 2.0, 4.0, 8.0)
"""Waits where the server names none; the last one repeats."""


@dataclass(frozen=True)
class Opened:
    """The server took the request and holds its units."""

    model: str
    units: int
    available: int
    request_id: str


@dataclass(frozen=True)
class Retrying:
    """A try failed, free of charge; the next one comes in `wait_s`."""

    failure: ClientFailure
    wait_s: float


Event = Opened | Retrying | Queued | Progress | Partial | Completed


def draw(server: Server, body: dict[str, Any], retries: int) -> Generator[Event, None, None]:
    """The events of one generation; returns after the last image.

    Raises:
        ClientFailure: the images not yet told of will not come.
    """
    headers = {"idempotency-key": f"cli-{secrets.token_hex(16)}"}
    for number in range(retries + 1):
        try:
            yield from _stream(server, body, headers)
            return
        except (ServerSaid, NoReply) as failure:
            wait_s = _wait_s(failure, number)
            if wait_s is None or number == retries:
                raise
            again = Retrying(failure, wait_s)
        yield again
        time.sleep(wait_s)


def _wait_s(failure: ServerSaid | NoReply, number: int) -> float | None:
    """Seconds until the next try; None when there should be none."""
    backoff = BACKOFF_S[min(number, len(BACKOFF_S) - 1)]
    if isinstance(failure, NoReply):
        return backoff
    if not failure.retryable:
        return None
    return backoff if failure.retry_after_s is None else failure.retry_after_s


def _stream(server: Server, body: dict[str, Any], headers: dict[str, str]) -> Iterator[Event]:
    whole = {**body, "stream": True, "stream_progress": True}
    missing = set(range(body.get("n") or 1))
    with server.stream(GENERATIONS, whole, headers) as reply:
        opened = _opened(reply)
        yield opened
        try:
            for data in event_data(reply.iter_bytes()):
                event = parse_event(data, opened.request_id)
                if isinstance(event, Completed):
                    if event.image_index not in missing:
                        raise BrokenOff(f"{server.url} sent an image that was not asked for")
                    missing.remove(event.image_index)
                if event is not None:
                    yield event
        except httpx.HTTPError as exc:
            why = str(exc) or type(exc).__name__
            raise BrokenOff(f"the connection to {server.url} broke off ({why})") from None
    if missing:
        raise BrokenOff(f"{server.url} ended the stream before its last image")


def _opened(reply: httpx.Response) -> Opened:
    headers = reply.headers

    def number(name: str) -> int:
        text = headers.get(name, "")
        return int(text) if text.isdecimal() else 0

    return Opened(
        headers.get("x-model", ""),
        number("x-compute-units"),
        number("x-compute-units-available"),
        headers.get("x-request-id", ""),
    )
