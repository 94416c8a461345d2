"""`flux-serve status`: a server as its client sees it, and as its operator does with an admin key.

Data flow: `/health`, `/ready`, `/v1/models`, `/v1/account`, `/admin/v1/status` -> one report ->
lines or JSON, and an exit status. Knows a server by its API only.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.commands.remote import (
    DEFAULT_URL,
    JsonOption,
    KeyFileOption,
    UrlOption,
    count,
    duration,
    readable_failures,
)

if TYPE_CHECKING:
    from serve_app.client.failures import ClientFailure
    from serve_app.client.server import Server

AdminKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Key with the scope admin, for replicas and queues. Default: FLUX_SERVE_ADMIN_KEY, "
        "else the API key.",
        show_default=False,
    ),
]


@dataclass
class Report:
    """What was found; None is what was not told. `failure` decides the exit status."""

    url: str
    ready: bool = False
    not_ready_why: str | None = None
    account: dict[str, Any] | None = None
    models: list[dict[str, Any]] | None = None
    next_picture_s: float | None = None
    fleet: list[dict[str, Any]] | None = None
    notes: list[str] = field(default_factory=list)
    failure: "ClientFailure | None" = None


def status(
    url: UrlOption = DEFAULT_URL,
    key_file: KeyFileOption = None,
    admin_key_file: AdminKeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show whether a server is ready, its models, your balance, replicas and the queue.

    Exit status 0: it is ready. 7: it is not, and why. 3: nobody answers. 4: it refuses the key.
    """
    from serve_app.client.keys import (
        ADMIN_KEY_VARIABLE,
        DEVELOPMENT,
        configured_key,
        development_key,
    )
    from serve_app.client.server import Server, base_url

    with readable_failures(as_json):
        root = base_url(url)
        admin = configured_key(admin_key_file, os.environ, (ADMIN_KEY_VARIABLE,))
        with Server(root) as anyone:
            report = _probe(anyone, Report(root))
        key = configured_key(key_file, os.environ) or development_key(root)
        if key is None:
            report.notes.append("without an API key: no models, no balance")
        else:
            if key.origin == DEVELOPMENT:
                report.notes.append("no API key is set: asked with the development key")
            with Server(root, key) as server:
                _ask_as_user(server, report)
        if admin or (key and report.account is not None):
            with Server(root, admin or key) as server:
                _ask_as_operator(server, report, sure=admin is not None)
    typer.echo(json.dumps(_as_json(report), indent=2) if as_json else "\n".join(_lines(report)))
    if report.failure is not None:
        raise typer.Exit(report.failure.exit_status)


def _probe(server: "Server", report: Report) -> Report:
    """Whether it lives and is ready; raises where there is no server at all."""
    from serve_app.client.failures import ServerSaid

    server.get("/health")
    try:
        server.get("/ready")
        report.ready = True
    except ServerSaid as failure:
        report.not_ready_why, report.failure = failure.message, failure
    return report


def _ask_as_user(server: "Server", report: Report) -> None:
    from serve_app.client.failures import ServerSaid

    try:
        report.account = server.get("/v1/account")
        report.models = server.get("/v1/models")["data"]
        report.next_picture_s = server.post("/v1/images/quote", {"prompt": "a"}).get("estimated_s")
    except ServerSaid as failure:
        report.failure = report.failure or failure
        report.notes.append(failure.message)


def _ask_as_operator(server: "Server", report: Report, *, sure: bool) -> None:
    """`sure`: the key was given as an admin's, so that it is none is a failure."""
    from serve_app.client.failures import ServerSaid

    try:
        report.fleet = server.get("/admin/v1/status")["models"]
    except ServerSaid as failure:
        if failure.code == "insufficient_scope" and not sure:
            report.notes.append("replicas and queues need a key with the scope admin")
            return
        report.failure = report.failure or failure
        report.notes.append(f"replicas and queues: {failure.message}")


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "url": report.url,
        "ready": report.ready,
        "not_ready_why": report.not_ready_why,
        "account": report.account,
        "models": report.models,
        "next_picture_s": report.next_picture_s,
        "fleet": report.fleet,
        "notes": report.notes,
    }


def _lines(report: Report) -> list[str]:
    from serve_app.client.failures import printable

    rows = [("server", report.url), ("ready", "yes" if report.ready else "NO")]
    if report.not_ready_why:
        rows[-1] = ("ready", f"NO: {report.not_ready_why}")
    for model in report.models or ():
        can = model["capabilities"]
        names = ", ".join(["", *model["aliases"]]).replace(", ", ", also ", 1)
        rows.append(
            (
                "model",
                f"{model['id']}{names}: {can['default_size']}, edges {can['min_edge']} to "
                f"{can['max_edge']}, {can['reference_steps']} steps, up to "
                f"{count(can['max_images'], 'picture')}",
            )
        )
    if report.next_picture_s is not None:
        rows.append(("queue", f"a picture asked for now takes {duration(report.next_picture_s)}"))
    for model in report.fleet or ():
        replicas = model["replicas"]
        target = "?" if replicas["target"] is None else replicas["target"]
        rows.append(
            (
                "replicas",
                f"{model['id']}: {replicas['running']} of {target} running, "
                f"{replicas['starting']} starting, {replicas['stopping']} stopping; "
                f"{count(model['open_holds'], 'job')}, {count(model['held_images'], 'picture')}, "
                f"{count(model['held_units'], 'unit')} under way",
            )
        )
    if report.account is not None:
        account = report.account
        rows.append(
            (
                "account",
                f"{account['name']}: {count(account['available'], 'compute unit')} available, "
                f"{account['held']:,} held, {account['captured']:,} spent",
            )
        )
    rows += [("note", note) for note in report.notes]
    return [f"{name:<10}{printable(str(text))}" for name, text in rows]
