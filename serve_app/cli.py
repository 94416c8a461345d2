"""`flux-serve`: the command line of those who use a server and of those who run one.

Data flow: `pyproject` script -> `main` -> `serve_app.commands` -> `client` (HTTP) or metering.
Importing this module imports neither ray, torch nor sqlalchemy: a command loads what it needs when
it runs.
"""

from pathlib import Path
from typing import Annotated

import typer

from serve_app import __version__
from serve_app.commands import accounts, books, images, keys, ledger
from serve_app.commands.generate import generate
from serve_app.commands.loadtest import loadtest
from serve_app.commands.quote import quote
from serve_app.commands.status import status
from serve_app.commands.support import CommandGroup

app = typer.Typer(
    name="flux-serve",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks print local variables, secrets included
    help="Draw pictures with flux-serve, serve it, administer it: accounts, API keys, units.",
)
app.command(epilog="Example: flux-serve generate 'a red circle' -o circle.png")(generate)
app.command(epilog="Example: flux-serve quote 'a red circle' --n 4 --quality hd")(quote)
app.command(epilog="Example: flux-serve status --url http://127.0.0.1:8000")(status)
app.add_typer(accounts.app, name="accounts")
app.add_typer(keys.app, name="keys")
app.command(epilog="Example: flux-serve grant alice 100_000_000 --reason 'invoice 17'")(
    ledger.grant
)
app.command(epilog="Example: flux-serve audit -c configs/local.yaml")(ledger.audit)
app.command(epilog="Example: flux-serve usage --from 2027-01-01 --by day,model --csv")(books.usage)
app.add_typer(books.entries_app, name="entries")
app.add_typer(books.acts_app, name="acts")
app.add_typer(ledger.db, name="db")
app.add_typer(images.app, name="images")
app.command(epilog="Example: flux-serve loadtest --target http://127.0.0.1:8000 --slo p95=2s")(
    loadtest
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flux-serve {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command("check-config", epilog="Example: flux-serve check-config configs/gpu.yaml")
def check_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Serve config file.")],
) -> None:
    """Find what is wrong with a config file; unknown keys, too, which Serve would ignore."""
    from serve_app.checkconfig import check_config_file

    problems = check_config_file(file)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{file}: ok")


@app.command(epilog="Example: flux-serve serve configs/local.yaml")
def serve(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Serve config file.")] = Path(
        "configs/local.yaml"
    ),
    dashboard: Annotated[
        bool,
        typer.Option(
            "--dashboard",
            help="Start Ray's dashboard, too: a web page, and what `serve status` and "
            "`serve deploy` talk to. About ten more processes. Without effect on a Ray cluster "
            "that runs already.",
        ),
    ] = False,
) -> None:
    """Check a config file, serve it, and say where it listens. Ctrl-C stops it."""
    from serve_app.launch import serve_file

    raise typer.Exit(serve_file(file, dashboard=dashboard))


def main() -> None:
    """The `flux-serve` script."""
    app()


if __name__ == "__main__":
    main()
