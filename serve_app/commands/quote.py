"""`flux-serve quote`: what a request would cost, and whether the account could pay it.

Data flow: options -> `POST /v1/images/quote` -> a line or JSON. Knows a server by its API only.
"""

import json

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
    duration,
    key_for,
    readable_failures,
    request_body,
)


def quote(
    prompt: PromptArgument,
    model: ModelOption = None,
    n: NumberOption = 1,
    size: SizeOption = None,
    quality: QualityOption = None,
    steps: StepsOption = None,
    seed: SeedOption = None,
    guidance: GuidanceOption = None,
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a picture would cost, whether you can pay it, and how long it would take.

    Takes what `generate` takes. Draws nothing and charges nothing.
    """
    from serve_app.client.drawing import QUOTE
    from serve_app.client.server import Server, base_url

    with readable_failures(as_json):
        root = base_url(url)
        body = request_body(
            prompt,
            model=model,
            n=n,
            size=size,
            quality=quality,
            num_inference_steps=steps,
            seed=seed,
            guidance_scale=guidance,
        )
        with Server(root, key_for(root, key_file)) as server:
            answer = server.post(QUOTE, body)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(
        f"{answer['units']:,} compute units: {count(answer['n'], 'picture')} of {answer['size']} "
        f"in {count(answer['steps'], 'step')} by {answer['model']}"
    )
    typer.echo("you can pay it" if answer["affordable"] else "you cannot pay it now")
    if answer.get("estimated_s") is not None:
        typer.echo(f"sent now it would take about {duration(answer['estimated_s'])}")
