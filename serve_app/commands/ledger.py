"""`flux-serve grant`, `audit` and `db upgrade`: the ledger as a whole.

Data flow: arguments -> `LedgerAdmin` or `migrate` -> text or JSON and an exit status. Must not
import sqlalchemy at module level.
"""

from typing import Annotated

import typer

from serve_app.commands.accounts import AccountArgument, print_accounts
from serve_app.commands.support import (
    CommandGroup,
    ConfigOption,
    JsonOption,
    UrlOption,
    ledger_config,
    plain,
    print_json,
    print_table,
    with_admin,
)

db = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="The ledger's database.")


def grant(
    account: AccountArgument,
    units: Annotated[int, typer.Argument(help="Compute units, 1 or more; 1_000_000 is fine.")],
    reason: Annotated[
        str,
        typer.Option(
            "--reason", "--memo", metavar="TEXT", help="Why, for the books and the log of acts."
        ),
    ],
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="A name of your own: the same grant again adds nothing."),
    ] = None,
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an account compute units. One 1024x1024 image at reference steps costs 1,048,576."""
    granted = with_admin(
        config, ledger_url, lambda admin: admin.grant(account, units, idempotency_key), reason
    )
    if granted.replayed:
        typer.echo("granted before under this idempotency key: nothing was added", err=True)
    print_accounts([granted.account], as_json)


def audit(
    config: ConfigOption = None, ledger_url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """Check every invariant of the books at one moment; exit status 1 if one is broken.

    Safe while the server runs. Overdue holds are shown but break nothing: start a gateway, which
    sweeps them.
    """
    report = with_admin(config, ledger_url, lambda admin: admin.audit())
    if as_json:
        print_json({"balanced": report.balanced, **plain(report)})
    else:
        found = (*report.findings, *report.overdue)
        if found:
            print_table(
                ("INVARIANT", "ACCOUNT", "AT", "DETAIL"),
                [(one.invariant, one.account_id, one.subject, one.detail) for one in found],
            )
        typer.echo(
            f"{'balanced' if report.balanced else 'NOT BALANCED'}: {report.accounts:,} accounts, "
            f"{report.holds:,} holds, {report.entries:,} entries, {len(report.findings):,} broken, "
            f"{len(report.overdue):,} overdue"
        )
    if not report.balanced:
        raise typer.Exit(1)


@db.command(epilog="Example: flux-serve db upgrade --ledger-url '${LEDGER_URL}'")
def upgrade(
    config: ConfigOption = None, ledger_url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """Create or migrate the tables. Safe to repeat, and from several machines at once."""
    from serve_app.metering import migrate

    url = ledger_config(config, ledger_url).url
    before = migrate.current(url)
    migrate.upgrade(url)
    after = migrate.current(url)
    if as_json:
        print_json({"from": before, "to": after})
    elif before == after:
        typer.echo(f"the ledger was already at revision {after}")
    else:
        typer.echo(f"the ledger is at revision {after} (was {before or 'empty'})")
