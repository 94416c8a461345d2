"""`flux-serve accounts`: create, list, show, disable, enable and budget.

Data flow: arguments -> `LedgerAdmin` -> a table or JSON. Must not import sqlalchemy at module
level.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.commands.support import (
    CommandGroup,
    ConfigOption,
    JsonOption,
    ReasonOption,
    UrlOption,
    everything,
    print_json,
    print_table,
    with_admin,
)

if TYPE_CHECKING:
    from serve_app.metering.records import Account

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Accounts and their balances.")

AccountArgument = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its id or its name.")]


@app.command(epilog="Example: flux-serve accounts create alice")
def create(
    name: Annotated[str, typer.Argument(help="A name of its own, for people.")],
    reason: ReasonOption = "",
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an account. It has no compute units until you `grant` some."""
    made = with_admin(config, ledger_url, lambda admin: admin.create_account(name), reason)
    print_accounts([made], as_json)


@app.command("list", epilog="Example: flux-serve accounts list --json")
def list_(
    config: ConfigOption = None, ledger_url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """List accounts, oldest first."""
    found = with_admin(config, ledger_url, lambda admin: everything(admin.list_accounts))
    if as_json:
        print_json([account_json(account) for account in found])
    else:
        print_accounts(found, as_json)


@app.command(epilog="Example: flux-serve accounts show alice")
def show(
    account: AccountArgument,
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one account and its balance."""
    print_accounts(
        [with_admin(config, ledger_url, lambda admin: admin.show_account(account))], as_json
    )


@app.command(epilog="Example: flux-serve accounts disable alice")
def disable(
    account: AccountArgument,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse all keys of an account from now on; what is running may finish."""
    changed = with_admin(
        config, ledger_url, lambda admin: admin.set_disabled(account, disabled=True), reason
    )
    print_accounts([changed], as_json)


@app.command(epilog="Example: flux-serve accounts enable alice")
def enable(
    account: AccountArgument,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a disabled account's keys again."""
    changed = with_admin(
        config, ledger_url, lambda admin: admin.set_disabled(account, disabled=False), reason
    )
    print_accounts([changed], as_json)


@app.command(epilog="Example: flux-serve accounts budget alice --day 5_000_000 --month 90_000_000")
def budget(
    account: AccountArgument,
    day: Annotated[
        int | None, typer.Option(metavar="UNITS", help="Most in a day of UTC. Default: no limit.")
    ] = None,
    month: Annotated[
        int | None,
        typer.Option(metavar="UNITS", help="Most in a month of UTC. Default: no limit."),
    ] = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set both budgets of an account: what you leave out is lifted."""
    changed = with_admin(
        config, ledger_url, lambda admin: admin.set_budgets(account, day, month), reason
    )
    print_accounts([changed], as_json)


def print_accounts(found: list["Account"], as_json: bool) -> None:
    """One account as an object, or any number as a table."""
    if as_json:
        print_json(account_json(found[0]))
        return
    print_table(
        (
            "ID",
            "NAME",
            "GRANTED",
            "CAPTURED",
            "HELD",
            "AVAILABLE",
            "A DAY",
            "A MONTH",
            "DISABLED",
        ),
        [
            (
                account.balance.id,
                account.balance.name,
                account.balance.granted,
                account.balance.captured,
                account.balance.held,
                account.balance.available,
                account.day_budget,
                account.month_budget,
                account.disabled_at,
            )
            for account in found
        ],
    )


def account_json(account: "Account") -> dict[str, Any]:
    """The shape of `GET /admin/v1/accounts/{account}`."""
    balance = account.balance
    return {
        "id": balance.id,
        "name": balance.name,
        "granted": balance.granted,
        "captured": balance.captured,
        "held": balance.held,
        "available": balance.available,
        "day_budget": account.day_budget,
        "month_budget": account.month_budget,
        "created_at": account.created_at,
        "disabled_at": account.disabled_at,
    }
