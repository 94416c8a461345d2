"""`flux-serve keys`: create, list, limit and revoke API keys.

Data flow: arguments -> `LedgerAdmin` -> a table or JSON. A secret is printed once, by `create`, and
is on file nowhere. Must not import sqlalchemy at module level.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from serve_app.commands.support import (
    CommandGroup,
    ConfigOption,
    JsonOption,
    ReasonOption,
    UrlOption,
    everything,
    plain,
    print_json,
    print_table,
    with_admin,
)
from serve_app.errors import InvalidValue
from serve_app.metering.keys import DEFAULT_SCOPES, KNOWN_SCOPES

if TYPE_CHECKING:
    from serve_app.metering.records import ApiKey

RpmOption = Annotated[
    int | None, typer.Option("--rpm", metavar="N", help="Requests a minute. Default: no limit.")
]
ImagesOption = Annotated[
    int | None,
    typer.Option("--images", metavar="N", help="Images in the making at once. Default: no limit."),
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--models",
        metavar="LIST",
        help="Ids of models that it may use, with commas between; repeatable. Default: all.",
    ),
]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Its id, as `keys list` shows it.")]

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="API keys of accounts.")


@app.command(epilog="Example: flux-serve keys create alice --expires-at 2027-01-31 --rpm 60")
def create(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its id or its name.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What it opens; repeatable: {', '.join(KNOWN_SCOPES)}. "
            f"Default: {', '.join(DEFAULT_SCOPES)}.",
            show_default=False,
        ),
    ] = None,
    expires_at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="ISO 8601; UTC where it names no zone. Default: never."),
    ] = None,
    rpm: RpmOption = None,
    images: ImagesOption = None,
    models: ModelsOption = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it. It cannot be shown again: only its SHA-256 is kept."""
    expiry = None if expires_at is None else _parse_time(expires_at)
    made = with_admin(
        config,
        ledger_url,
        lambda admin: admin.create_key(
            account,
            scopes=scope or DEFAULT_SCOPES,
            expires_at=expiry,
            rpm=rpm,
            images_max=images,
            models=_split(models),
        ),
        reason,
    )
    if as_json:
        print_json({**plain(made.key), "secret": made.secret})
        return
    typer.echo(made.secret)
    typer.echo(f"{made.key.id}: keep the key above, it is not shown again.", err=True)


@app.command("list", epilog="Example: flux-serve keys list alice")
def list_(
    account: Annotated[
        str | None, typer.Argument(metavar="[ACCOUNT]", help="Only this account's.")
    ] = None,
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List keys by their first characters, oldest first."""
    found = with_admin(
        config,
        ledger_url,
        lambda admin: everything(lambda limit, after: admin.list_keys(account, limit, after)),
    )
    if as_json:
        print_json(found)
    else:
        _print_keys(found)


@app.command(epilog="Example: flux-serve keys limit KEY_ID --rpm 60 --images 4 --models flux-mini")
def limit(
    key_id: KeyArgument,
    rpm: RpmOption = None,
    images: ImagesOption = None,
    models: ModelsOption = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set all limits of a key, from its next request on: what you leave out is lifted."""
    limited = with_admin(
        config,
        ledger_url,
        lambda admin: admin.limit_key(key_id, rpm=rpm, images_max=images, models=_split(models)),
        reason,
    )
    if as_json:
        print_json(limited)
    else:
        _print_keys([limited])


@app.command(epilog="Example: flux-serve keys revoke key_0123456789abcdef0123456789abcdef")
def revoke(
    key_id: KeyArgument,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    ledger_url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse a key from its next request on. There is no way back: make a new one."""
    revoked = with_admin(config, ledger_url, lambda admin: admin.revoke_key(key_id), reason)
    if as_json:
        print_json(revoked)
    else:
        _print_keys([revoked])


def _print_keys(found: list["ApiKey"]) -> None:
    print_table(
        (
            "ID",
            "ACCOUNT",
            "KEY",
            "SCOPES",
            "RPM",
            "IMAGES",
            "MODELS",
            "EXPIRES",
            "REVOKED",
            "LAST USED",
        ),
        [
            (
                key.id,
                key.account_id,
                f"{key.prefix}...",
                key.scopes,
                key.rpm,
                key.images_max,
                key.models,
                key.expires_at,
                key.revoked_at,
                key.last_used_at,
            )
            for key in found
        ],
    )


def _parse_time(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidValue(f"--expires-at: {text!r} is no time such as 2027-01-31T12:00Z") from None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


def _split(models: list[str] | None) -> list[str] | None:
    return [one for text in models for one in text.split(",")] if models else None
