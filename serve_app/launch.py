"""`flux-serve serve FILE`: Ray Serve's own `serve run`, plus a check before and a greeting after.

Data flow: config file -> `check_config_file` -> child process `serve run FILE` -> poll `/ready` ->
print URL, key and a request to paste. Signals go to the child; nothing here serves anything.
"""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from serve_app.checkconfig import check_config_file
from serve_app.config import AppConfig
from serve_app.configfile import load_app_config, read_yaml
from serve_app.errors import ConfigError

POLL_INTERVAL_S = 0.5
PROBE_TIMEOUT_S = 5
STOP_TIMEOUT_S = 60
"""Ray stops in about 10 s; a replica may first finish its pictures."""


def serve_file(path: Path) -> int:
    """Serve a config file until interrupted; returns the exit status."""
    problems = check_config_file(path)
    if problems:
        raise ConfigError("\n".join(problems))
    config = load_app_config(path)
    address = local_address(path)
    refuse_taken(address)
    for stop in (signal.SIGINT, signal.SIGTERM):  # also where a shell had them ignored
        signal.signal(stop, signal.default_int_handler)
    # The child gets a process group of its own, so that Ctrl-C reaches it once, through us.
    child = subprocess.Popen(
        [str(Path(sys.executable).with_name("serve")), "run", str(path)], start_new_session=True
    )
    try:
        if _wait_until_ready(child, address):
            print(greeting(config, address), flush=True)
        return child.wait()
    except KeyboardInterrupt:
        return _stop(child)


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


def _wait_until_ready(child: subprocess.Popen[bytes], address: str) -> bool:
    """False when the child ended first; it says why by itself."""
    while child.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/ready", timeout=PROBE_TIMEOUT_S):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_INTERVAL_S)
    return False


def _stop(child: subprocess.Popen[bytes]) -> int:
    child.send_signal(signal.SIGINT)
    try:
        return child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
