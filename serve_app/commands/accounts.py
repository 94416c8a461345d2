"""`flux-serve accounts`: create, list, show, disable and enable.

Data flow: arguments -> `LedgerAdmin` -> a table or JSON. Must not import sqlalchemy at module
level.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.commands.support import (
    CommandGroup,
    ConfigOption,
    JsonOption,
    UrlOption,
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
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an account. It has no compute units until you `grant` some."""
    print_accounts(
        [with_admin(config, ledger_url, lambda admin: admin.create_account(name))], as_json
    )


@app.command("list", epilog="Example: flux-serve accounts list --json")
def list_(
    config: ConfigOption = None, ledger_url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """List accounts, oldest first."""
    found = with_admin(config, ledger_url, lambda admin: admin.list_accounts())
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
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse all keys of an account from now on; what is running may finish."""
    changed = with_admin(
        config, ledger_url, lambda admin: admin.set_disabled(account, disabled=True)
    )
    print_accounts([changed], as_json)


@app.command(epilog="Example: flux-serve accounts enable alice")
def enable(
    account: AccountArgument,
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a disabled account's keys again."""
    changed = with_admin(
        config, ledger_url, lambda admin: admin.set_disabled(account, disabled=False)
    )
    print_accounts([changed], as_json)


def print_accounts(found: list["Account"], as_json: bool) -> None:
    """One account as an object, or any number as a table."""
    if as_json:
        print_json(account_json(found[0]))
        return
    print_table(
        ("ID", "NAME", "GRANTED", "CAPTURED", "HELD", "AVAILABLE", "DISABLED"),
        [
            (
                account.balance.id,
                account.balance.name,
                account.balance.granted,
                account.balance.captured,
                account.balance.held,
                account.balance.available,
                account.disabled_at,
            )
            for account in found
        ],
    )


def account_json(account: "Account") -> dict[str, Any]:
    """The shape of `GET /v1/account`, and when the account was made and disabled."""
    balance = account.balance
    return {
        "id": balance.id,
        "name": balance.name,
        "granted": balance.granted,
        "captured": balance.captured,
        "held": balance.held,
        "available": balance.available,
        "created_at": account.created_at,
        "disabled_at": account.disabled_at,
    }
