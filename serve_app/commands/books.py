"""`flux-serve usage`, `entries list` and `acts list`: what is on file.

Data flow: arguments -> listings of `LedgerAdmin` -> a table, JSON or CSV. Must not import
sqlalchemy at module level.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app import csvfile
from serve_app.commands.support import (
    CommandGroup,
    ConfigOption,
    JsonOption,
    UrlOption,
    everything,
    print_json,
    print_table,
    with_admin,
)
from serve_app.errors import InvalidValue

if TYPE_CHECKING:
    from serve_app.metering.admin import LedgerAdmin

entries_app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="The books, line by line.")
acts_app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="What operators did, and why.")

GROUPS = ("day", "account", "key", "model")
NEWEST_DEFAULT = 50
"""A screenful; `--limit` shows more."""

CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV, all rows.")]
LimitOption = Annotated[int, typer.Option(min=1, help="Newest rows to show.")]
AccountOption = Annotated[
    str | None, typer.Option("--account", metavar="ACCOUNT", help="Only this account's.")
]


def usage(
    since: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="Default: 29 days before --to.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="Last day, in UTC. Default: today.")
    ] = None,
    by: Annotated[
        str, typer.Option(metavar="LIST", help=f"What to sum up by: {', '.join(GROUPS)}.")
    ] = "day,account,model",
    account: AccountOption = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Only of this key; its id.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Only of this model.")] = None,
    as_csv: CsvOption = False,
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add up captured units by day, account, key and model."""
    last = datetime.now(UTC).date() if until is None else _day(until, "--to")
    groups = tuple(name.strip() for name in by.split(","))

    async def fetch(admin: "LedgerAdmin") -> Sequence[Any]:
        from serve_app.metering.listings import USAGE_DAYS_DEFAULT, UsageQuery

        first = last - timedelta(days=USAGE_DAYS_DEFAULT - 1) if since is None else None
        query = UsageQuery(first or _day(str(since), "--from"), last, groups, account, key, model)
        return await everything(lambda limit, after: admin.usage(query, limit, after))

    rows = with_admin(config, ledger_url, fetch)
    if as_json:
        print_json(rows)
        return
    named = {"day": "day", "account": "account_id", "key": "key_id", "model": "model"}
    columns = [named[name] for name in GROUPS if name in groups] + ["jobs", "images", "units"]
    cells = [[getattr(row, name) for name in columns] for row in rows]
    if as_csv:
        typer.echo(csvfile.lines([columns, *cells]), nl=False)
        return
    print_table([name.removesuffix("_id").upper() for name in columns], cells)


@entries_app.command("list", epilog="Example: flux-serve entries list --account alice --csv")
def list_entries(
    account: AccountOption = None,
    limit: LimitOption = NEWEST_DEFAULT,
    as_csv: CsvOption = False,
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the lines of the books, newest first."""
    most = None if as_csv else limit

    async def fetch(admin: "LedgerAdmin") -> Sequence[Any]:
        return await everything(lambda size, after: admin.list_entries(account, size, after), most)

    rows = with_admin(config, ledger_url, fetch)
    if as_csv:
        from serve_app.metering.records import Entry

        columns = [field.name for field in fields(Entry)]
        table = [[getattr(row, name) for name in columns] for row in rows]
        typer.echo(csvfile.lines([columns, *table]), nl=False)
        return
    _show(
        rows,
        as_json,
        ("ID", "WHEN", "ACCOUNT", "KIND", "UNITS", "HOLD", "MEMO"),
        lambda row: (
            row.id,
            row.created_at,
            row.account_id,
            row.kind,
            row.units,
            row.hold_id,
            row.memo,
        ),
    )


@acts_app.command("list", epilog="Example: flux-serve acts list --subject KEY_ID")
def list_acts(
    subject: Annotated[
        str | None, typer.Option(metavar="ID", help="Only on this account or key; its id.")
    ] = None,
    limit: LimitOption = NEWEST_DEFAULT,
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what operators did, newest first: by the command line, the API and the admin page."""

    async def fetch(admin: "LedgerAdmin") -> Sequence[Any]:
        return await everything(lambda size, after: admin.list_acts(subject, size, after), limit)

    _show(
        with_admin(config, ledger_url, fetch),
        as_json,
        ("WHEN", "ACTOR", "VERB", "SUBJECT", "REASON", "DETAIL"),
        lambda row: (row.at, row.actor, row.verb, row.subject, row.reason, _brief(row.detail)),
    )


def _show(
    rows: Sequence[Any],
    as_json: bool,
    header: Sequence[str],
    cells: Callable[[Any], Sequence[object]],
) -> None:
    if as_json:
        print_json(rows)
    else:
        print_table(header, [cells(row) for row in rows])


def _brief(detail: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in detail.items() if value is not None)


def _day(text: str, option: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidValue(f"{option}: {text!r} is no day such as 2027-01-31") from None
