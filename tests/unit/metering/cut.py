"""A wire to PostgreSQL that breaks at a commit, and stays broken until it is mended.

Data flow: the ledger -> a unix socket of this -> the server's. `at_commit` arms it: the next COMMIT
is passed on or swallowed, the server's answer to it never arrives, and nobody can connect any more.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

PORT = ".s.PGSQL.5432"
COMMIT = b"COMMIT;"
CHUNK = 65_536


@dataclass
class Wire:
    """`host` is where the ledger connects to."""

    host: Path
    server: Path
    armed: bool | None = None
    """Whether the COMMIT that breaks this is passed on to the server; None while not armed."""
    broken: asyncio.Event = field(default_factory=asyncio.Event)
    _links: set[asyncio.StreamWriter] = field(default_factory=set)
    _listener: asyncio.Server | None = None

    async def mend(self) -> None:
        self.broken.clear()
        self._listener = await asyncio.start_unix_server(self._serve, self.host / PORT)

    def at_commit(self, *, arrives: bool) -> None:
        self.armed = arrives

    def cut(self) -> None:
        """Every connection breaks, and none can be made."""
        assert self._listener is not None
        self._listener.close()
        (self.host / PORT).unlink()
        self.broken.set()
        for link in self._links:
            link.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, server = await asyncio.open_unix_connection(self.server / PORT)
        self._links |= {writer, server}
        back = asyncio.create_task(self._answer(answers, writer))
        try:
            while data := await reader.read(CHUNK):
                if self.armed is not None and COMMIT in data:
                    await self._break(data, server, back, answers)
                    return
                server.write(data)
                await server.drain()
        except ConnectionError:
            pass
        finally:
            back.cancel()
            self._links -= {writer, server}
            writer.transport.abort()
            server.transport.abort()

    async def _break(
        self,
        data: bytes,
        server: asyncio.StreamWriter,
        back: "asyncio.Task[None]",
        answers: asyncio.StreamReader,
    ) -> None:
        back.cancel()
        await asyncio.wait([back])
        if self.armed:
            server.write(data)
            await server.drain()
            await answers.read(1)  # the server answers when it has committed
        self.armed = None
        self.cut()

    async def _answer(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await answers.read(CHUNK):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.transport.abort()


@asynccontextmanager
async def wire_to(server: Path) -> AsyncIterator[Wire]:
    """A wire to the server whose unix socket is in this folder."""
    # The path of a unix socket is at most 107 bytes, which pytest's own folders exceed.
    with tempfile.TemporaryDirectory(prefix="wire-") as name:
        wire = Wire(Path(name), server)
        await wire.mend()
        yield wire
        if not wire.broken.is_set():
            wire.cut()
