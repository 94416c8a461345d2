"""Closed-loop HTTP load over raw sockets, in a process of its own: what a benchmark asks, it sends.

Data flow: one JSON line on stdin (`Shot`) -> `concurrency` keep-alive connections, each with one
request under way -> one JSON line on stdout (`Result`). Parses no more of a reply than its status
and its end, so that the client takes little of the machine. Imports nothing of the product.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast
from urllib.parse import urlsplit

import uvloop

WARM_UP_S = 0.3
"""Sent and not counted: connections open, caches and routes fill."""
REPLIES_MIN = 2
"""Of each connection: a shot on a busy machine lasts longer rather than measure nothing."""
RECONNECTS_MAX = 3
"""Of a connection in one shot: a server that hangs up more often is broken."""
GRACE_S = 30.0
"""How long a reply may stay away before the run fails."""


@dataclass(frozen=True)
class Shot:
    """One measurement: `body` is posted, or the URL is got when it is empty."""

    url: str
    body: str
    headers: Mapping[str, str]
    concurrency: int
    seconds: float


@dataclass(frozen=True)
class Result:
    rps: float
    p50_ms: float
    p99_ms: float
    replies: int
    reply_bytes: int
    failed: int
    """Replies whose status is not 200."""


Where = tuple[str, int]
"""Host and port."""


class Load:
    """A load generator in a child process; `shoot` blocks for as long as its shot takes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gateway_load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def shoot(self, shot: Shot) -> Result:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(shot)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("the load generator died")
        return Result(**json.loads(answer))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class _Client(asyncio.Protocol):
    """One connection: sends, waits for the whole reply, notes the time, sends again."""

    def __init__(self, where: Where, request: bytes, until: float, counted_from: float) -> None:
        self._where = where
        self._request = request
        self._until = until
        self._counted_from = counted_from
        self._buffer = bytearray()
        self._sent = 0.0
        self._again: asyncio.Task[object] | None = None
        self.times: list[float] = []
        self.failed = 0
        self.reconnected = 0
        self.reply_bytes = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has a class of its own
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        end = head + 4 + _content_length(bytes(self._buffer[:head]))
        if len(self._buffer) < end:
            return
        now = time.perf_counter()
        if self._sent >= self._counted_from:
            self.times.append(now - self._sent)
            self.failed += not self._buffer.startswith(b"HTTP/1.1 200")
            self.reply_bytes = end - head - 4
        self._buffer.clear()
        if now < self._until or len(self.times) < REPLIES_MIN:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done.done():
            return
        early = time.perf_counter() < self._until or len(self.times) < REPLIES_MIN
        if early and not self._buffer and self.reconnected < RECONNECTS_MAX:
            self.reconnected += 1  # HAProxy takes new settings: whoever was idle is hung up on
            self._again = asyncio.ensure_future(
                asyncio.get_running_loop().create_connection(lambda: self, *self._where)
            )
            return
        self.done.set_result(f"{exc!r} after {bytes(self._buffer)!r}" if early else "")


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise SystemExit(f"a reply without a content-length: {head!r}")


def _request(shot: Shot) -> bytes:
    parts = urlsplit(shot.url)
    body = shot.body.encode()
    lines = [f"{'POST' if body else 'GET'} {parts.path} HTTP/1.1", f"host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in shot.headers.items()]
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _shoot(shot: Shot) -> Result:
    parts = urlsplit(shot.url)
    request = _request(shot)
    where = parts.hostname or "", parts.port or 80
    counted_from = time.perf_counter() + WARM_UP_S
    until = counted_from + shot.seconds
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(shot.concurrency):
        _, client = await loop.create_connection(
            lambda: _Client(where, request, until, counted_from), *where
        )
        clients.append(client)
    async with asyncio.timeout(WARM_UP_S + shot.seconds + GRACE_S):
        closed = await asyncio.gather(*(client.done for client in clients))
    if any(closed):
        raise SystemExit(f"{shot.url} closed its connections: {set(closed)}")
    elapsed_s = time.perf_counter() - counted_from
    times = [one for client in clients for one in client.times]
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return Result(
        rps=len(times) / elapsed_s,
        p50_ms=cuts[49] * 1000,
        p99_ms=cuts[98] * 1000,
        replies=len(times),
        reply_bytes=clients[0].reply_bytes,
        failed=sum(client.failed for client in clients),
    )


def main() -> None:
    """Answer one line for each line, until stdin ends."""
    for line in sys.stdin:
        result = uvloop.run(_shoot(Shot(**json.loads(line))))
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
