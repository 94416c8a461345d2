"""The sending process against a small HTTP server: open loop, whole outcomes, clean ends."""

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from load_kit import plan

from serve_app.loadtest.conductor import Progress, Sender, Sending
from serve_app.loadtest.plan import Plan
from tests.machine import MACHINE

KEY = "sk-load"


class Server(ThreadingHTTPServer):
    """Answers `hold_back` requests only when all of them are there."""

    daemon_threads = True

    def __init__(self, hold_back: int = 1) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.together = threading.Barrier(hold_back)
        self.arrived = threading.Semaphore(0)
        self.bodies: dict[str, dict[str, Any]] = {}
        self.keys: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies[self.headers["x-request-id"]] = body
        self.server.keys.add(self.headers["authorization"])
        self.server.arrived.release()
        try:
            self.server.together.wait(MACHINE.allow())
        except threading.BrokenBarrierError:
            return
        data = json.dumps({"data": [{"url": "u"}] * body["n"]}).encode()
        self.send_response(200)
        self.send_header("x-compute-units", "5")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def make_server() -> Iterator[Any]:
    servers: list[Server] = []

    def make(hold_back: int = 1) -> Server:
        servers.append(Server(hold_back))
        threading.Thread(target=partial(servers[-1].serve_forever, 0.01), daemon=True).start()
        return servers[-1]

    yield make
    for server in servers:
        server.together.abort()
        server.shutdown()
        server.server_close()


def traced(server: Server, times: list[float], timeout_s: float | None = None) -> Plan:
    arrivals = [(at_s, 0) for at_s in times]
    timeout_s = timeout_s or MACHINE.allow()
    return plan(target=server.url, trace=arrivals, timeout_s=timeout_s, duration_s=times[-1])


class Sent:
    """A sending process and what it has told."""

    def __init__(self, made: Plan, tmp_path: Path, workers: int = 0) -> None:
        self.log = tmp_path / "sender.log"
        self.progress = Progress(made, len(made.schedule()))
        with self.log.open("wb") as words:
            self.sender = Sender(made, KEY, Sending(workers), words)
        self.listener = threading.Thread(target=self.sender.listen, args=(self.progress,))
        self.listener.start()

    def finish(self) -> Progress:
        self.listener.join(MACHINE.allow())
        self.sender.close()
        assert not self.listener.is_alive(), self.log.read_text()
        return self.progress


@pytest.mark.parametrize("workers", [0, 2])
def test_requests_start_on_time_however_slow_the_replies_are(
    make_server: Any, tmp_path: Path, workers: int
) -> None:
    """No reply comes before the last request is there: a closed loop would wait for ever."""
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    server = make_server(hold_back=len(times))
    made = traced(server, times)
    found = Sent(made, tmp_path, workers).finish()
    outcomes = sorted(found.outcomes, key=lambda one: one.index)
    assert [one.scheduled_s for one in outcomes] == times
    assert [one.code for one in outcomes] == ["200"] * len(times)
    assert all(one.sent_s >= one.scheduled_s for one in outcomes)
    if not workers:  # else the first and the last may go by the clocks of two processes
        assert outcomes[0].latency_s > 0.5  # it waited for the last one, on its account
    assert {(one.units, one.images) for one in outcomes} == {(5, 1)}
    assert server.keys == {f"Bearer {KEY}"}
    assert server.bodies == {
        made.request_id(index): made.request(index, 0) for index in range(len(times))
    }


def test_a_request_that_takes_too_long_is_given_up_and_counted(
    make_server: Any, tmp_path: Path
) -> None:
    server = make_server(hold_back=9)
    found = Sent(traced(server, [0.0, 0.1], timeout_s=0.5), tmp_path).finish()
    assert [one.code for one in found.outcomes] == ["client_timeout"] * 2
    assert all(one.latency_s >= 0.5 for one in found.outcomes)


def test_a_server_that_is_not_there_is_an_error_that_costs_nothing(
    make_server: Any, tmp_path: Path
) -> None:
    server = make_server()
    made = traced(server, [0.0])
    server.shutdown()
    server.server_close()
    found = Sent(made, tmp_path).finish()
    assert [one.code for one in found.outcomes] == ["connection_failed"]


def test_stop_ends_the_arrivals_and_lets_replies_come(make_server: Any, tmp_path: Path) -> None:
    server = make_server(hold_back=2)
    sent = Sent(traced(server, [0.0, 0.1, 300.0]), tmp_path)
    assert server.arrived.acquire(timeout=MACHINE.allow())
    assert server.arrived.acquire(timeout=MACHINE.allow())
    sent.sender.tell("stop")
    assert [one.code for one in sent.finish().outcomes] == ["200", "200"]


def test_cut_gives_up_what_is_in_flight(make_server: Any, tmp_path: Path) -> None:
    server = make_server(hold_back=9)
    sent = Sent(traced(server, [0.0, 300.0]), tmp_path)
    assert server.arrived.acquire(timeout=MACHINE.allow())
    sent.sender.tell("cut")
    assert [one.code for one in sent.finish().outcomes] == ["abandoned"]
