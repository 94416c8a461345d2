"""`flux-serve generate`: a prompt in, picture files out, with progress and previews on the way.

Data flow: options -> `Outputs` (checked first) -> `draw` -> `Display` and files -> a summary or
JSON. Ctrl-C closes the connection, which cancels the job. Knows a server by its API only.
"""

import json
import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.commands.remote import (
    DEFAULT_URL,
    GuidanceOption,
    JsonOption,
    KeyFileOption,
    ModelOption,
    NumberOption,
    PromptArgument,
    QualityOption,
    SeedOption,
    SizeOption,
    StepsOption,
    UrlOption,
    count,
    key_for,
    readable_failures,
    request_body,
)

if TYPE_CHECKING:
    from serve_app.client.drawing import Opened
    from serve_app.client.events import Completed
    from serve_app.client.files import Outputs
    from serve_app.client.server import Server

SETTLE_TIMEOUT_S = 5.0
"""A cancelled job ends at its next step, and its units are back then."""

OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Ends with .png, .jpg, .jpeg or .webp. Several pictures: FILE-1, FILE-2, ...",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Replace files that exist.")]
PreviewOption = Annotated[
    bool,
    typer.Option(
        help="Show the pictures in a terminal that can (kitty, iTerm2, sixel). Never with NO_COLOR."
    ),
]
RetriesOption = Annotated[
    int, typer.Option(min=0, help="Tries more when the server is busy or fails.")
]


@dataclass
class Result:
    """What one command got so far."""

    opened: "Opened | None" = None
    images: dict[int, "Completed"] = field(default_factory=dict)
    files: dict[int, Path] = field(default_factory=dict)

    @property
    def units(self) -> int:
        return sum(image.units for image in self.images.values())


def generate(
    prompt: PromptArgument,
    out: OutOption = Path("image.png"),
    model: ModelOption = None,
    n: NumberOption = 1,
    size: SizeOption = None,
    quality: QualityOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    guidance: GuidanceOption = None,
    force: ForceOption = False,
    preview: PreviewOption = True,
    retries: RetriesOption = 2,
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw pictures and save them. Ctrl-C cancels; what has not arrived costs nothing.

    Needs no key for a development server on this machine.
    """
    from serve_app.client.files import Outputs
    from serve_app.client.server import Server, base_url

    began, result = time.monotonic(), Result()
    with readable_failures(as_json):
        root = base_url(url)
        outputs = Outputs.plan(out, n, force=force)
        body = request_body(
            prompt,
            model=model,
            n=n,
            size=size,
            quality=quality,
            num_inference_steps=steps,
            seed=seed,
            guidance_scale=guidance,
            output_format=outputs.format,
        )
        with Server(root, key_for(root, key_file)) as server:
            try:
                _receive(server, body, outputs, result, preview=preview, retries=retries)
            except KeyboardInterrupt:
                _interrupted(server, n, result, as_json)
            except Exception:
                _print_saved(result)
                raise
    _print(result, time.monotonic() - began, as_json)


def _receive(
    server: "Server",
    body: dict[str, Any],
    outputs: "Outputs",
    result: Result,
    *,
    preview: bool,
    retries: int,
) -> None:
    """Draw, show, and save each picture as it arrives."""
    from serve_app.client.drawing import PREVIEWS, Opened, draw
    from serve_app.client.events import Completed
    from serve_app.client.terminal import find_screen
    from serve_app.commands.display import Display

    screen = find_screen(sys.stderr, os.environ) if preview else None
    if screen is not None:
        body = {**body, "partial_images": PREVIEWS}
    with closing(draw(server, body, retries)) as events, Display(body["n"], screen) as display:
        for event in events:
            if isinstance(event, Opened):
                result.opened = event
            elif isinstance(event, Completed):
                result.images[event.image_index] = event
                result.files[event.image_index] = outputs.save(event.image_index, event.b64_json)
            display.show(event)


def _interrupted(server: "Server", n: int, result: Result, as_json: bool) -> None:
    """Say what Ctrl-C cost, by the account's balance where there is something to compare."""
    from serve_app.client.failures import EXIT_INTERRUPTED, ClientFailure

    opened, arrived = result.opened, len(result.images)
    settled = True
    if opened is not None:
        back = opened.available + opened.units - result.units
        try:
            settled = server.until_settled(back, SETTLE_TIMEOUT_S)
        except (ClientFailure, KeyboardInterrupt):
            settled = False
    if not settled:
        words = "the server has not yet confirmed what it cost: see `flux-serve status`"
    elif arrived:
        words = f"{arrived} of {count(n, 'picture')} arrived and cost {result.units:,} units"
    else:
        words = "nothing was charged"
    typer.echo(f"cancelled: {words}", err=True)
    _print_saved(result)
    if as_json:
        found = {"message": f"cancelled: {words}", "exit_status": EXIT_INTERRUPTED}
        typer.echo(json.dumps({"error": found}, indent=2))
    raise typer.Exit(EXIT_INTERRUPTED)


def _print_saved(result: Result) -> None:
    for index in sorted(result.files):
        typer.echo(f"saved {result.files[index]}", err=True)


def _print(result: Result, seconds: float, as_json: bool) -> None:
    from serve_app.client.failures import printable

    if as_json:
        typer.echo(json.dumps(_as_json(result, seconds), indent=2))
        return
    assert result.opened is not None, "a stream without a beginning"
    for index, image in sorted(result.images.items()):
        seed = "" if image.seed is None else f", seed {image.seed}"
        typer.echo(f"{result.files[index]}  {printable(image.size)}{seed}")
    opened = result.opened
    typer.echo(
        f"{printable(opened.model)}, {count(result.units, 'compute unit')}, "
        f"{opened.available:,} left, request {printable(opened.request_id)}"
    )


def _as_json(result: Result, seconds: float) -> dict[str, Any]:
    assert result.opened is not None, "a stream without a beginning"
    return {
        "images": [
            {
                "file": str(result.files[index]),
                "size": image.size,
                "seed": image.seed,
                "units": image.units,
                "url": image.url,
            }
            for index, image in sorted(result.images.items())
        ],
        "model": result.opened.model,
        "units": result.units,
        "units_available": result.opened.available,
        "request_id": result.opened.request_id,
        "seconds": round(seconds, 3),
    }
