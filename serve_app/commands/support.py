"""What every command shares: where the ledger is, how answers are printed, how errors read.

Data flow: `--config` or `--ledger-url` -> `LedgerConfig` -> an open ledger for one command -> text
or JSON. Must not import ray, torch or sqlalchemy at module level: `--help` has to be instant.
"""

import asyncio
import getpass
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, is_dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from serve_app.config import LedgerConfig
from serve_app.errors import AppError, ConfigError, LedgerUnavailable

if TYPE_CHECKING:
    from serve_app.metering.admin import LedgerAdmin

Result = TypeVar("Result")

DEFAULT_CONFIG = Path("configs/local.yaml")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help=f"Serve config file whose ledger to use. Default: {DEFAULT_CONFIG}, where it exists.",
        show_default=False,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--ledger-url",
        metavar="URL",
        help="The ledger's database, in place of a config file. '${NAME}' is taken from the "
        "environment, which keeps passwords out of the process list.",
        show_default=False,
    ),
]
ReasonOption = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why, for the log of acts.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class CommandGroup(TyperGroup):
    """Commands whose expected failures are one line on stderr and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (AppError, ConfigError) as exc:
            typer.echo(f"error: {explain(exc)}", err=True)
            raise typer.Exit(1) from None


def explain(exc: AppError | ConfigError) -> str:
    """One line that says what to do about it."""
    if isinstance(exc, ConfigError):
        return " ".join(str(exc).split())
    if not isinstance(exc, LedgerUnavailable):
        return exc.message
    cause = str(getattr(exc.__cause__, "orig", None) or exc.__cause__ or "")
    if "no such table" in cause or ("relation" in cause and "does not exist" in cause):
        return "the ledger has no tables yet: run `flux-serve db upgrade`"
    return f"{exc.message} ({cause.splitlines()[0]})" if cause else exc.message


def ledger_config(config: Path | None, url: str | None) -> LedgerConfig:
    """The ledger that the options of a command name."""
    if config is not None and url is not None:
        raise ConfigError("give --config or --ledger-url, not both")
    if url is not None:
        return LedgerConfig(url=url)
    if config is None and not DEFAULT_CONFIG.exists():
        raise ConfigError(f"which ledger? Give --config or --ledger-url: no {DEFAULT_CONFIG} here")
    from serve_app.configfile import load_app_config

    return load_app_config(config or DEFAULT_CONFIG).ledger


def with_admin(
    config: Path | None,
    url: str | None,
    act: Callable[["LedgerAdmin"], Awaitable[Result]],
    reason: str = "",
) -> Result:
    """Open the ledger, do one thing in the name of the person at the shell, close it."""
    from serve_app.metering.records import Author
    from serve_app.metering.sql import SqlLedger

    settings = ledger_config(config, url)
    author = Author(f"cli:{user()}", reason)

    async def run() -> Result:
        ledger = await SqlLedger.open(settings)
        try:
            return await act(ledger.admin.by(author))
        finally:
            await ledger.close()

    return asyncio.run(run())


def user() -> str:
    """The operating system's name of who runs this, or the number where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's arbitrary user id
        return str(os.getuid())


async def everything(
    fetch: Callable[[int, str | None], Awaitable[Sequence[Any]]], most: int | None = None
) -> list[Any]:
    """All rows of a listing, or the first `most` of them."""
    from serve_app.metering.listings import walk

    found: list[Any] = []
    async for page in walk(fetch):
        found += page
        if most is not None and len(found) >= most:
            return found[:most]
    return found


def print_json(value: Any) -> None:
    """Print a value of the ledger: times as ISO 8601, `available` beside its parts."""
    typer.echo(json.dumps(plain(value), indent=2))


def plain(value: Any) -> Any:
    """Dataclasses, times and tuples as what JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(part) for name, part in asdict(value).items()}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value.isoformat() if isinstance(value, date) else value  # a datetime is a date


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as they need to be; numbers to the right."""
    cells = [[show(value) for value in row] for row in rows]
    lines = [list(header), *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    for number, line in enumerate(lines):
        numeric = [number > 0 and isinstance(value, int) for value in (rows or [()])[number - 1]]
        numeric += [False] * len(header)
        typer.echo(
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, numeric, strict=False)
            ).rstrip()
        )


def show(value: object) -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
