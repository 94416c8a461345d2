"""What the commands that use a server share: their options, and how failures read.

Data flow: options -> address, key and request body; a `ClientFailure` -> one sentence on stderr
(and JSON on stdout with --json) -> exit status. Knows a server by its API only.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from serve_app.schema import Quality

if TYPE_CHECKING:
    from serve_app.client.server import Key

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "FLUX_SERVE_URL"
COMPLETION_TIMEOUT_S = 1.0
"""Somebody pressed Tab: no choices are better than a wait."""


def _complete_model(ctx: typer.Context, incomplete: str) -> list[str]:
    """Model ids and aliases of the server, for Tab; none when it does not answer at once."""
    from serve_app.client.failures import ClientFailure
    from serve_app.client.keys import find_key
    from serve_app.client.server import Server, base_url

    try:
        url = base_url(ctx.params.get("url") or os.environ.get(URL_VARIABLE) or DEFAULT_URL)
        file = ctx.params.get("key_file")
        key = find_key(url, Path(file) if file else None, os.environ)
        with Server(url, key, timeout_s=COMPLETION_TIMEOUT_S) as server:
            models = server.get("/v1/models")["data"]
        names = [name for model in models for name in (model["id"], *model["aliases"])]
    except (ClientFailure, LookupError, TypeError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def _complete_quality(incomplete: str) -> list[str]:
    return [name for name in get_args(Quality) if name.startswith(incomplete)]


PromptArgument = Annotated[
    str, typer.Argument(metavar="PROMPT", help="What the picture shows; - reads it from stdin.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="ID",
        help="Who draws. Default: the server's first model.",
        autocompletion=_complete_model,
        show_default=False,
    ),
]
NumberOption = Annotated[int, typer.Option("--n", "-n", min=1, max=10, help="Number of pictures.")]
SizeOption = Annotated[
    str | None,
    typer.Option(metavar="WxH", help="Pixels. Default: the model's.", show_default=False),
]
QualityOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"Chooses the steps: {', '.join(get_args(Quality))}.",
        autocompletion=_complete_quality,
        show_default=False,
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Denoising steps; overrides --quality.", show_default=False),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help="Same seed, same picture. Default: random.", show_default=False),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="How closely FLUX.1-dev follows the prompt; others ignore it.",
        show_default=False,
    ),
]
UrlOption = Annotated[
    str, typer.Option("--url", metavar="URL", envvar=URL_VARIABLE, help="The server.")
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="File with the API key. Default: FLUX_SERVE_API_KEY, else OPENAI_API_KEY; on this "
        "machine else the development key of the server.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def request_body(prompt: str, **fields: Any) -> dict[str, Any]:
    """The API's request: what was not given is left to the server."""
    text = sys.stdin.read().strip() if prompt == "-" else prompt
    return {"prompt": text, **{name: value for name, value in fields.items() if value is not None}}


def key_for(url: str, file: Path | None) -> "Key":
    """The key to use; says so where nobody chose it."""
    from serve_app.client.keys import DEVELOPMENT, find_key

    key = find_key(url, file, os.environ)
    if key.origin == DEVELOPMENT:
        typer.echo(f"no API key is set: using the development key of {url}", err=True)
    return key


@contextmanager
def readable_failures(as_json: bool) -> Iterator[None]:
    """Turns failures into a sentence and an exit status; see docs/cli.md."""
    from serve_app.client.failures import ClientFailure

    try:
        yield
    except ClientFailure as failure:
        typer.echo(f"error: {failure.message}", err=True)
        if as_json:
            typer.echo(json.dumps({"error": failure.as_json()}, indent=2))
        raise typer.Exit(failure.exit_status) from None


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


def count(number: int, noun: str) -> str:
    """2, "picture" -> "2 pictures"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
