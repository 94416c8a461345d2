"""`flux-serve images sweep`: the image store by hand.

Data flow: a config file -> `ImageStore` -> text or JSON. Must not import obstore at module level.
"""

import asyncio

import typer

from serve_app.commands.support import (
    DEFAULT_CONFIG,
    CommandGroup,
    ConfigOption,
    JsonOption,
    print_json,
)
from serve_app.errors import ConfigError

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="The image store.")


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: flux-serve images sweep --config configs/gpu.yaml")
def sweep(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Delete the images whose URLs have expired. Gateways do so by themselves; safe beside them."""
    from serve_app.configfile import load_app_config
    from serve_app.storage.store import ImageStore

    loaded = load_app_config(config or DEFAULT_CONFIG)
    if loaded.store is None:
        raise ConfigError("this configuration has no image store: `store` is null")
    store = ImageStore.open(loaded.store, loaded.public_url)
    deleted = asyncio.run(store.sweep())
    if as_json:
        print_json({"deleted": deleted})
    else:
        typer.echo(f"deleted {deleted:,} expired images")
