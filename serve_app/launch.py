"""`flux-serve serve FILE`: a server in a process of its own, and a greeting when it is ready.

Data flow: child process (`launched`: checks the config file, reports what is wrong with it, serves)
-> problems, or: poll `/ready` -> print URL, key and a request to paste. Signals go to the child;
nothing here serves anything. Must not import Ray: that takes as long as the child takes to load it.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from math import ceil
from pathlib import Path
from urllib.parse import urlsplit

from serve_app.config import AppConfig
from serve_app.configfile import load_app_config, read_yaml
from serve_app.engine.source import is_simulated
from serve_app.errors import ConfigError

POLL_INTERVAL_S = 0.2
PROBE_TIMEOUT_S = 5
RESOURCES_VARIABLE = "RAY_OVERRIDE_RESOURCES"
STOP_TIMEOUT_S = 60
"""Ray stops in about 10 s once the replicas have finished their jobs."""
CHILD = "serve_app.launched"
INTERRUPTED = 130
"""Exit status of a program that Ctrl-C ended, as shells have it."""


def serve_file(path: Path, *, dashboard: bool = False) -> int:
    """Serve a config file until interrupted; returns the exit status.

    Raises:
        ConfigError: The file cannot be served; says why.
    """
    stopping = Stopping()
    reported, report = os.pipe()
    # The child gets a process group of its own, so that Ctrl-C reaches it once, through us.
    child = subprocess.Popen(
        [sys.executable, "-m", CHILD, str(path), str(report), *["--dashboard"] * dashboard],
        start_new_session=True,
        pass_fds=[report],
    )
    os.close(report)
    stopping.take(child)
    try:
        with os.fdopen(reported) as pipe:
            said = pipe.read()
        if not said:  # it ended first, and has said why
            return child.wait()
        if problems := json.loads(said):
            child.wait()
            raise ConfigError("\n".join(problems))
        config, address = load_app_config(path), local_address(path)
        stopping.allow(config.limits.request_timeout_s)
        if _wait_until_ready(child, address, stopping):
            # In one piece: what the child prints must not come in between.
            print(greeting(config, address), end="", flush=True)
        return child.wait()
    finally:
        if child.poll() is None:  # nobody reads our output any more, say: it must not stay alone
            stopping.ask()
            child.wait()


class Stopping:
    """Passes interrupts on to the child, and ends it by force where it does not stop.

    The first lets it finish its jobs, the second does not, the third kills it. None of them
    interrupts what goes on here: else one that comes at a bad moment would leave the child alone.
    A terminal that is closed counts, too, unless it is to be ignored (`nohup`).
    """

    def __init__(self) -> None:
        self.asked = 0
        self._waits_s: list[float] = [STOP_TIMEOUT_S, STOP_TIMEOUT_S]
        self._child: subprocess.Popen[bytes] | None = None
        numbers = [signal.SIGINT, signal.SIGTERM]  # also where a shell had them ignored
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, lambda *_: self.ask())

    def allow(self, longest_s: float) -> None:
        """Give the child's jobs so long to finish after the first interrupt."""
        self._waits_s[0] = longest_s + STOP_TIMEOUT_S

    def take(self, child: subprocess.Popen[bytes]) -> None:
        """From now on there is a child; it is told if it was asked for before."""
        self._child = child
        if self.asked:
            self._tell(child, self.asked)

    def ask(self) -> None:
        """Once more."""
        self.asked = asked = self.asked + 1
        if self._child is not None:
            self._tell(self._child, asked)

    def _tell(self, child: subprocess.Popen[bytes], asked: int) -> None:
        """`asked` is handed on, as one more signal may come in the middle of this."""
        if asked > len(self._waits_s):
            child.kill()
            return
        child.send_signal(signal.SIGINT)
        patience = threading.Timer(self._waits_s[asked - 1], self._lose_it, [asked])
        patience.daemon = True
        patience.start()

    def _lose_it(self, asked: int) -> None:
        if self.asked == asked:  # nobody has asked again since
            self.ask()


def made_up_gpus(path: Path, config: AppConfig) -> dict[str, str]:
    """Environment that makes Ray believe in GPUs: only where every model is simulated.

    As many as all models may have replicas. Ray reads it when it starts a cluster, so one that runs
    already keeps the GPUs that it has.
    """
    simulated = all(is_simulated(model.source) for model in config.models)
    if not simulated or RESOURCES_VARIABLE in os.environ:
        return {}
    entries = {
        entry.get("name"): entry
        for application in read_yaml(path)["applications"]
        for entry in application.get("deployments") or []
    }
    gpus = 0.0
    for model in config.models:
        entry = entries.get(model.deployment_name, {})
        scaling = entry.get("autoscaling_config") or {}
        gpus += model.num_gpus * (scaling.get("max_replicas") or entry.get("num_replicas") or 1)
    print(f"\n  SIMULATED: Ray is told of {ceil(gpus)} GPUs; no model draws.\n", flush=True)
    return {RESOURCES_VARIABLE: json.dumps({"GPU": ceil(gpus)})}


def greeting(config: AppConfig, address: str) -> str:
    """What a newcomer needs: where, with which key, and one request to paste."""
    key = config.development.key if config.development else "$FLUX_SERVE_API_KEY"
    model = config.models[0].id
    body = json.dumps({"model": model, "prompt": "a red circle on a blue background"})
    lines = [
        "",
        f"  flux-serve is ready at {address} (OpenAI base URL: {address}/v1)",
        f"  Playground: {address}/",
        f"  API key: {key}",
        "",
        f"  curl {address}/v1/images/generations \\",
        f'    -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\',
        f"    -d '{body}'",
        "",
        "  Ctrl-C stops it.",
        "",
        "",
    ]
    return "\n".join(lines)


def local_address(path: Path) -> str:
    """Where this machine reaches what the file serves."""
    options = read_yaml(path).get("http_options") or {}
    host = options.get("host", "0.0.0.0")
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{options.get('port', 8000)}"


def refuse_taken(address: str) -> None:
    """Raise `ConfigError` when somebody listens there: its answers would pass for ours."""
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), PROBE_TIMEOUT_S).close()
    except OSError:
        return
    raise ConfigError(f"{address} is taken by another server; set http_options.port")


def _wait_until_ready(child: subprocess.Popen[bytes], address: str, stopping: Stopping) -> bool:
    """False when the child ended first, of which it says why by itself, or is to stop."""
    while child.poll() is None and not stopping.asked:
        try:
            with urllib.request.urlopen(f"{address}/ready", timeout=PROBE_TIMEOUT_S):
                return True
        except (OSError, http.client.HTTPException):  # also an HTTP status that is an error
            time.sleep(POLL_INTERVAL_S)
    return False
