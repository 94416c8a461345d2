"""A server of its own as users start it: a command as a process, seen from outside."""

import os
import signal
import subprocess
from pathlib import Path

import httpx

from tests.conftest import BIN, Served
from tests.machine import MACHINE, eventually

START_S = 120.0
STOP_S = 60.0


class Command:
    """`serve run` or `flux-serve serve` on a config file, in a cluster of its own by default."""

    def __init__(self, served: Served, *words: str, **environment: str) -> None:
        self.served = served
        self.log = served.folder / "serve.log"
        (served.folder / "r").mkdir(exist_ok=True)
        # A short path, and no other Ray on the machine.
        own = {"RAY_TMPDIR": str(served.folder / "r"), "RAY_ADDRESS": "local"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(BIN / words[0]), *words[1:], str(served.config)],
                cwd=served.folder,
                env={**os.environ, **own, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # As in a terminal: where tests run in the background, children would ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"it ended; its log:\n{self.said()}"
            try:
                reply = httpx.get(f"{self.served.url}/ready", timeout=MACHINE.allow(5))
            except httpx.TransportError:
                return False
            return reply.status_code == 200

        try:
            eventually(ready, "the server is ready", START_S)
        except AssertionError as exc:
            raise AssertionError(f"{exc}; its log ends:\n{self.said()}") from None

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """Ctrl-C, and by force where that does not help: guard.py has the rest."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(MACHINE.allow(STOP_S))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def written(folder: Path, config: str, url: str, key: str) -> Served:
    """A config file in a folder, and what it will serve."""
    path = folder / "config.yaml"
    path.write_text(config)
    return Served(url, key, folder, path)
