"""Nothing outlives the tests: no process and no folder, however the test process ends.

Data flow: `Guard.start` (in each process that runs tests) -> a folder for all temporary files, a
mark in the environment that every child inherits, and this file as a process of its own -> when the
pipe to it closes, all processes with the mark, or in the folder, are killed, and the folder is
removed. Ctrl-C, SIGTERM and SIGKILL of the test process all close it. Linux only: it reads /proc.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MARK = "FLUX_SERVE_TESTS_MARK"
DONE = b"done"
SLOWNESS = "FLUX_SERVE_TESTS_SLOWNESS"
LEAVE_S = 5.0
"""After a run that ended in order: what its servers' last processes have to end by themselves. A
slow machine gets more (machine.py)."""
KILL_S = 60.0
"""Far longer than it takes to kill everything; a process that cannot be killed is given up."""
POLL_S = 0.1


class Guard:
    """The guard of one test process."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the folder, and have it guarded from now on."""
        temporary = tempfile.gettempdir()
        # Short: the path of a unix socket has at most 107 bytes, and Ray's are long.
        self.folder = Path(tempfile.mkdtemp(prefix="fs"))
        self.folder.chmod(0o711)  # PostgreSQL runs as another user than root
        os.environ[MARK] = self.folder.name
        # Folders of pytest's own stay where they can be looked at after a failure.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", temporary)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is not for it
        )

    def close(self) -> list[str]:
        """End the guard in order; returns the processes that it had to kill."""
        if self._process is None:
            return []
        said, _ = self._process.communicate(DONE)
        self._process = None
        return said.decode().splitlines()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid


def guard(folder: str) -> None:
    """Wait until the test process is gone or says that it is done; then clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    in_order = sys.stdin.buffer.read() == DONE
    deadline = time.monotonic() + LEAVE_S * max(1.0, float(os.environ.get(SLOWNESS, "1")))
    while in_order and marked(folder) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    left = marked(folder)
    deadline = time.monotonic() + KILL_S
    while (found := marked(folder)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
    shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write("".join(f"{pid} {name}\n" for pid, name in left.items()))


def marked(folder: str) -> dict[int, str]:
    """Processes that belong to the tests, by number; what runs in them.

    The mark is in a process' first environment. Ray's workers write their titles over that, but
    work in the folder.
    """
    mark = f"{MARK}={os.path.basename(folder)}".encode()
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = Path(entry.path, "cmdline").read_bytes()
            if (
                mark in Path(entry.path, "environ").read_bytes().split(b"\0")
                or folder.encode() in words
                or Path(os.readlink(f"{entry.path}/cwd")).is_relative_to(folder)
            ) and words:  # without words: it has ended already
                found[int(entry.name)] = words.replace(b"\0", b" ").decode(errors="replace")[:200]
        except OSError:
            continue  # it has ended meanwhile, or is not ours to look at
    return found


if __name__ == "__main__":
    guard(sys.argv[1])
