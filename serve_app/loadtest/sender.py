"""The sending process: Locust's runners pace the plan's arrivals, open loop.

Data flow: one line of JSON on stdin (role, plan) -> Locust master and workers, or one local runner
-> every process sends its share of the arrivals at their times -> outcomes as lines of JSON on
stdout. A line `stop` ends the arrivals, a line `cut` gives up what is in flight. Run as `python -m
serve_app.loadtest.sender`; importing Locust patches the standard library with gevent, so nothing
else may import this module.
"""

import locust  # isort: skip - it patches the standard library, first of all

import json
import os
import subprocess
import sys
from typing import Any

import gevent
from gevent.event import Event
from gevent.fileobject import FileObjectPosix
from locust.env import Environment
from locust.runners import MasterRunner

from serve_app.loadtest.pacer import START_DELAY_S, Pacer
from serve_app.loadtest.plan import Plan

CONNECT_WORKERS_S = 60.0
"""How long local workers may take to start; each imports Locust."""
WORKER_GONE_S = 5.0
"""How often a master looks whether a worker has died."""


class PacingUser(locust.User):
    """One for each process: Locust spawns it, it paces."""

    pacer: Pacer

    @locust.task
    def pace(self) -> None:
        self.pacer.run()
        Event().wait()  # until Locust stops this user


class Desk:
    """The process that talks to the command: hands out the plan, collects outcomes."""

    def __init__(self, environment: Environment, parts: int) -> None:
        self._environment = environment
        self._waiting = set(range(parts))
        self.done = Event()

    def take_outcomes(self, environment: Environment, msg: Any, **_: Any) -> None:
        say({"rows": msg.data["rows"]})

    def take_part_done(self, environment: Environment, msg: Any, **_: Any) -> None:
        self._finish(msg.data["part"])

    def _finish(self, part: int) -> None:
        self._waiting.discard(part)
        if not self._waiting:
            self.done.set()

    def listen(self) -> None:
        """Follow `stop` and `cut`; the end of the input is a `cut`: the command is gone."""
        for line in FileObjectPosix(sys.stdin.fileno(), "rb", close=False):
            self._tell("cut" if line.strip() == b"cut" else "stop_arrivals")
        self._tell("cut")

    def _tell(self, word: str) -> None:
        if self._environment.runner is not None:
            self._environment.runner.send_message(word, {})

    def watch_workers(self, runner: MasterRunner, clients: list[str]) -> None:
        """Wait no longer for a part whose worker has died; `clients` are in the parts' order."""
        while not self.done.is_set():
            gevent.sleep(WORKER_GONE_S)
            gone = {client.id for client in runner.clients.missing}
            for part in sorted(self._waiting):
                if clients[part] in gone or clients[part] not in runner.clients:
                    say({"lost_part": part})
                    self._finish(part)


def say(message: dict[str, Any]) -> None:
    """One line for the command."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def read_line() -> bytes:
    """The first line of the input, and not a byte more: the rest is for `Desk.listen`."""
    found = b""
    while not found.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            break
        found += byte
    return found


def main() -> None:
    """Play the role that the first line of the input names."""
    job = json.loads(read_line())
    key = os.environ["FLUX_SERVE_API_KEY"]
    environment = Environment(user_classes=[PacingUser])
    PacingUser.pacer = Pacer(environment, key)
    if job["role"] == "worker":
        work(environment, job)
    else:
        conduct(environment, job)


def follow(environment: Environment, target: str) -> None:
    """Register what a process that sends must understand."""
    pacer, runner = PacingUser.pacer, environment.runner

    def take_plan(environment: Environment, msg: Any, **_: Any) -> None:
        plan = Plan.model_validate_json(msg.data["plan"])
        if plan.target != target:  # else whoever plays master would be sent the key
            say({"refused": plan.target})
            sys.exit(f"the master's target {plan.target!r} is not {target!r}")
        pacer.take_plan(plan, msg.data["part"], msg.data["parts"])

    if runner is not None:
        runner.register_message("plan", take_plan)
        runner.register_message("stop_arrivals", lambda environment, msg, **_: pacer.stop())
        runner.register_message("cut", lambda environment, msg, **_: pacer.cut())


def work(environment: Environment, job: dict[str, Any]) -> None:
    """A worker: everything but the key comes from its master."""
    runner = environment.create_worker_runner(job["host"], job["port"])
    follow(environment, job["target"])
    runner.greenlet.join()


def conduct(environment: Environment, job: dict[str, Any]) -> None:
    """The one that hands out the plan; it sends, too, when it has no workers."""
    plan = Plan.model_validate(job["plan"])
    parts: int = max(1, job["workers"])
    children: list[subprocess.Popen[bytes]] = []
    desk = Desk(environment, parts)
    if job["workers"] == 0:
        runner: Any = environment.create_local_runner()
        follow(environment, plan.target)
    else:
        runner = environment.create_master_runner(job["host"], job["port"])
        if not job["remote"]:
            children = [start_worker(runner.server.port, plan.target) for _ in range(parts)]
        wait_for_workers(runner, parts, CONNECT_WORKERS_S if children else None)
    runner.register_message("outcomes", desk.take_outcomes)
    runner.register_message("part_done", desk.take_part_done)
    clients = hand_out(runner, plan, parts, remote=job["workers"] > 0)
    say({"starts_in_s": START_DELAY_S})
    gevent.spawn(desk.listen)
    if isinstance(runner, MasterRunner):
        gevent.spawn(desk.watch_workers, runner, clients)
    runner.start(user_count=parts, spawn_rate=parts)
    desk.done.wait()
    say({"done": True})
    runner.quit()
    for child in children:
        child.wait()


def hand_out(runner: Any, plan: Plan, parts: int, *, remote: bool) -> list[str]:
    """Give each process its part of the plan; returns the workers in the order of the parts."""
    clients = [client.id for client in runner.clients.ready][:parts] if remote else ["local"]
    for part, client_id in enumerate(clients):
        data = {"plan": plan.model_dump_json(), "part": part, "parts": parts}
        runner.send_message("plan", data, client_id)
    return clients


def start_worker(port: int, target: str) -> "subprocess.Popen[bytes]":
    """One more process on this machine."""
    child = subprocess.Popen(
        [sys.executable, "-m", "serve_app.loadtest.sender"], stdin=subprocess.PIPE
    )
    job = {"role": "worker", "host": "127.0.0.1", "port": port, "target": target}
    if child.stdin is not None:
        child.stdin.write(json.dumps(job).encode() + b"\n")
        child.stdin.flush()
    return child


def wait_for_workers(runner: MasterRunner, count: int, timeout_s: float | None) -> None:
    """Until so many have connected; `None`: for as long as it takes."""
    say({"waiting_for_workers": count, "port": runner.server.port})
    with gevent.Timeout(timeout_s, RuntimeError("the workers did not connect")):
        while len(runner.clients.ready) < count:
            gevent.sleep(0.1)


if __name__ == "__main__":
    main()
